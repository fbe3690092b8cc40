"""From a checkpoint to a verified bundle, and the check of a bundle against a checkpoint."""

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pocketsam import constants
from pocketsam.errors import ParityError
from pocketsam.export.artefact import open_artefact, open_networks
from pocketsam.export.bundle import check_free, describe_file, staged_bundle, write_manifest
from pocketsam.export.options import Options
from pocketsam.export.reference import Reference
from pocketsam.export.target import Arrays, Progress, Target
from pocketsam.export.targets import open_converter
from pocketsam.export.traced import REFERENCE_TYPES, count_macs
from pocketsam.export.usage import write_usage
from pocketsam.export.verification import parity
from pocketsam.export.verification.golden import thinned
from pocketsam.export.verification.judgement import check_accepted, failed_place, judge, keep_failure
from pocketsam.export.verification.report import Report
from pocketsam.models.checkpoint import Loaded
from pocketsam.runtime import contract as c
from pocketsam.runtime.bundle import Bundle, choose_bundles, open_bundle
from pocketsam.runtime.machine import package_version
from pocketsam.runtime.manifest import (
    GOLDEN_NAME,
    SCHEMA_VERSION,
    Manifest,
    ModelInfo,
    Preprocessing,
)
from pocketsam.runtime.manifest_files import GoldenFile, NetworkFile
from pocketsam.runtime.verification.golden import answer_prompts
from pocketsam.runtime.verification.tolerance import Grade, Tolerance

COMMON_PACKAGES = ("pocketsam", "torch", "numpy", "pillow")

Providers = str | Sequence[str]


def write_bundle(
    reference: Reference,
    output: Path,
    target: Target,
    options: Options,
    *,
    also: Sequence[str] = (),
    verify: bool = True,
    accept: Grade = "close",
    force: bool = False,
    keep_failed: bool = False,
    progress: Progress = lambda _: None,
) -> list[Report]:
    """Writes a bundle; if it fails parity, ``output`` is left as it was.

    Args:
        reference: the checkpoint and PyTorch's answers.
        output: the bundle's directory.
        target: what to write.
        options: precision, and what else the target lets one choose.
        also: further precisions, each a bundle of its own inside, named by its precision; the runtime
            takes the most precise unless told.
        verify: False skips parity; the manifest then says that the bundle is unverified.
        accept: the worst grade that is written.
        force: whether a bundle already there gives way.
        keep_failed: whether files that fail parity stay, in ``OUTPUT.failed``, with a picture of the
            worst mask in ``OUTPUT.failed.png``.
        progress: called with a line about each step.

    Returns:
        The parity report of each precision; none without ``verify``.

    Raises:
        UsageError: an unknown precision, or one that is lossy and not accepted.
        ParityError: the files do not compute what the checkpoint computes.
        ConversionError, BundleError: what could not be converted or written.
    """
    precisions = (options.precision, *also)
    for precision in precisions:  # before anything is written
        check_accepted(target, precision, accept)
    reports, hashes, folders = [], {}, []
    if keep_failed:
        check_free(failed_place(output), force=True)
    with staged_bundle(output, force) as work:
        for precision in precisions:
            folder = work if precision == options.precision else work / precision
            folder.mkdir(exist_ok=True)
            chosen = target.resolve(replace(options, precision=precision))
            manifest, answers = _write_files(reference, folder, target, chosen, progress)
            if verify:
                report = _verify_files(reference, folder, progress)
                failed = output if keep_failed else None
                manifest = _judge(report, manifest, target, accept, failed, folder)
                tolerance = reference.golden.tolerance(report.tolerance, answers)
                golden = replace(manifest.golden, tolerance=tolerance)
                manifest = replace(manifest, golden=golden)
                reports.append(report)
            write_usage(folder, target, manifest)
            hashes[precision] = write_manifest(folder, manifest)
            folders.append(folder)
        outer = open_bundle(work).manifest
        write_manifest(work, replace(outer, also={name: hashes[name] for name in also}))
        for folder in folders:
            target.add_files(folder)  # what they say of the manifest holds: it is not written again
    return reports


def _write_files(
    reference: Reference, folder: Path, target: Target, options: Options, progress: Progress
) -> tuple[Manifest, dict[str, Arrays]]:
    """Writes one precision's files.

    Returns:
        The manifest without a parity report, and the files' answers to the golden prompts.
    """
    golden = reference.golden
    precision = target.precision(options.precision)
    empty = _save_golden(folder, golden.arrays, precision.tolerance, None)
    networks = _write_networks(reference, folder, target, options, progress)
    manifest = _describe(reference.loaded, target, options, networks, empty)
    write_manifest(folder, manifest)  # open_bundle reads it
    bundle = open_bundle(folder)
    opened = open_networks(bundle)
    answers = answer_prompts(golden.arrays, bundle.manifest, *opened)
    arrays = golden.arrays if precision.drift is None else golden.with_own(answers)
    saved = _save_golden(folder, arrays, thinned(precision.tolerance), precision.drift)
    manifest = replace(manifest, golden=saved)
    write_manifest(folder, manifest)
    return manifest, answers


def _write_networks(
    reference: Reference, work: Path, target: Target, options: Options, progress: Progress
) -> dict[str, NetworkFile]:
    """Writes both networks; returns what the manifest says of them."""
    loaded, precision = reference.loaded, target.precision(options.precision)
    converter = open_converter(target)
    calibration = reference.calibration if precision.calibrated else []
    about = {"checkpoint": loaded.name, "checkpoint_sha256": loaded.sha256}
    networks = {}
    for name, network in reference.networks(target, options).items():
        progress(f"converting the {name} to {target.name} {precision.name}")
        path = work / f"{name}{target.suffix}"
        converted = converter.convert(network, path, options, calibration, about, progress)
        macs = count_macs(REFERENCE_TYPES[name](loaded.model))
        networks[name] = NetworkFile(**vars(describe_file(path)), macs=macs, **vars(converted))
    return networks


def _save_golden(
    folder: Path, arrays: Arrays, tolerance: Tolerance, drift: Tolerance | None
) -> GoldenFile:
    path = folder / GOLDEN_NAME
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return GoldenFile(**vars(describe_file(path)), tolerance=tolerance, drift=drift)


def _verify_files(reference: Reference, folder: Path, progress: Progress) -> Report:
    """Returns the parity report of one precision's files, on the photographs and the golden prompts."""
    bundle = open_bundle(folder)
    cases = [*reference.cases, reference.golden.case]
    return parity.verify(cases, open_artefact(bundle), _report_photo(bundle, progress))


def _judge(
    report: Report,
    manifest: Manifest,
    target: Target,
    accept: Grade,
    failed: Path | None,
    folder: Path,
) -> Manifest:
    """Returns the manifest with the report, unless the files may not be written.

    Raises:
        ParityError: they may not; they are kept beside ``failed``, if any.
    """
    try:
        judge(report, target, accept)
    except ParityError:
        if failed is not None:
            write_manifest(folder, replace(manifest, grade=report.grade, parity=report.to_json()))
            keep_failure(folder, failed, report)
        raise
    return replace(manifest, grade=report.grade, parity=report.to_json())


def verify_bundle(
    directory: Path,
    checkpoint: str,
    *,
    images: Sequence[str] = (),
    providers: Providers = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    progress: Progress = lambda _: None,
) -> list[Report]:
    """Returns parity reports of a bundle and the checkpoint that it was made from.

    Args:
        directory: the bundle.
        checkpoint: as for ``load_model``.
        images: files or folders to verify on; empty: scikit-image's photographs.
        providers, threads: how to run it, as for the runtime's ``Segmenter``.
        precision: which one of a bundle that holds several; None: each of them.
        progress: called with a line about each step.

    Raises:
        BundleError, IntegrityError, CheckpointError, ImageError: what could not be read.
    """
    bundles = choose_bundles(directory, precision)
    artefacts = [open_artefact(bundle, providers=providers, threads=threads) for bundle in bundles]
    reference = Reference(checkpoint, bundles[0].image_size, images=images, progress=progress)
    return [
        parity.verify(reference.cases, artefact, _report_photo(bundle, progress))
        for bundle, artefact in zip(bundles, artefacts, strict=True)
    ]


def _report_photo(bundle: Bundle, progress: Progress) -> Progress:
    """Returns a function that reports the photograph that is being compared."""
    what = f"comparing {bundle.manifest.target} {bundle.manifest.precision} with PyTorch on"
    return lambda name: progress(f"{what} {name}")


def _describe(
    loaded: Loaded,
    target: Target,
    options: Options,
    networks: dict[str, NetworkFile],
    golden: GoldenFile,
) -> Manifest:
    """Returns the manifest without a parity report."""
    tools, traits = (*COMMON_PACKAGES, *target.packages), loaded.model.traits
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelInfo(loaded.architecture, loaded.name, loaded.sha256, loaded.trained),
        target=target.name,
        precision=options.precision,
        image_size=loaded.model.image_size,
        preprocessing=Preprocessing(
            input=c.IMAGE if options.input == "image" else c.PIXEL_VALUES,
            color="RGB",
            layout=networks["encoder"].inputs[0].layout or "NCHW",
            resize="longest side to image_size: int(side * scale + 0.5), at least 1",
            filter="bilinear with antialiasing (Pillow)",
            padding="zeros on the right and below, after normalising",
            **vars(traits.normalisation),
        ),
        prompt_labels=c.PROMPT_LABELS,
        mask_threshold=constants.MASK_THRESHOLD,
        tools={
            "python": platform.python_version(),
            **{name: package_version(name) for name in tools},
            **target.programs,
        },
        encoder=networks["encoder"],
        decoder=networks["decoder"],
        golden=golden,
        embedding_stride=traits.stride,
        multimask=traits.multimask,
        thresholds=loaded.settings.thresholds,
    )
