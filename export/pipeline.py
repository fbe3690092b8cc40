"""From a checkpoint to a verified bundle, and the check of a bundle against a checkpoint."""

import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pocketsam import constants
from pocketsam.export import parity
from pocketsam.export.bundle import describe_file, staged_bundle, write_manifest
from pocketsam.export.options import Options
from pocketsam.export.reference import Reference
from pocketsam.export.target import Call, Progress, Target
from pocketsam.export.targets import find_precision, find_target, open_converter
from pocketsam.export.traced import REFERENCE_TYPES, count_macs
from pocketsam.export.usage import write_usage
from pocketsam.models.checkpoint import Loaded
from pocketsam.runtime import contract as c
from pocketsam.runtime.backends.networks import open_for_device
from pocketsam.runtime.bundle import Bundle, open_bundle
from pocketsam.runtime.machine import package_version
from pocketsam.runtime.manifest import (
    GOLDEN_NAME,
    SCHEMA_VERSION,
    GoldenFile,
    Manifest,
    ModelInfo,
    NetworkFile,
    Preprocessing,
)

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
    force: bool = False,
    progress: Progress = lambda _: None,
) -> parity.Report | None:
    """Writes a bundle; if it fails parity, ``output`` is left as it was.

    Args:
        reference: the checkpoint and PyTorch's answers.
        output: the bundle's directory.
        target: what to write.
        options: precision, and what else the target lets one choose.
        also: further precisions, each a bundle of its own inside, named by its precision; the runtime
            takes what suits the device.
        verify: False skips parity; the manifest then says that the bundle is unverified.
        force: whether a bundle already there gives way.
        progress: called with a line about each step.

    Returns:
        The parity report of the first precision, or None without ``verify``.

    Raises:
        ParityError: the files do not compute what the checkpoint computes.
        ConversionError, BundleError: what could not be converted or written.
    """
    find_precision(target, options.precision)  # raises UsageError before anything is written
    resolved = target.resolve(options)
    with staged_bundle(output, force) as work:
        manifest = _write_files(reference, work, target, resolved, progress)
        manifest = replace(manifest, also=tuple(also))
        write_usage(work, target, manifest)
        write_manifest(work, manifest)  # open_bundle reads it
        report = None
        if verify:
            bundle = open_bundle(work)
            artefact = open_artefact(bundle)
            report = parity.verify(reference.cases, artefact, _report_photo(bundle, progress))
            write_manifest(work, replace(manifest, parity=report.to_json()))
            report.raise_if_failed()
        for precision in also:
            inner = replace(options, precision=precision)
            write_bundle(reference, work / precision, target, inner, verify=verify, progress=progress)
    return report


def _write_files(
    reference: Reference, work: Path, target: Target, options: Options, progress: Progress
) -> Manifest:
    """Writes both networks and the golden vectors; returns the manifest without a parity report."""
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
    np.savez(work / GOLDEN_NAME, **reference.golden)  # type: ignore[arg-type]
    golden = vars(describe_file(work / GOLDEN_NAME))
    return _describe(
        loaded, target, options, networks, GoldenFile(**golden, tolerance=precision.tolerance.error)
    )


def verify_bundle(
    directory: Path,
    checkpoint: str,
    *,
    images: Sequence[str] = (),
    providers: Providers = "cpu",
    threads: int | None = None,
    precision: str | None = None,
    progress: Progress = lambda _: None,
) -> parity.Report:
    """Returns the parity report of a bundle and the checkpoint that it was made from.

    Args:
        directory: the bundle.
        checkpoint: as for ``load_model``.
        images: files or folders to verify on; empty: scikit-image's photographs.
        providers, threads: how to run it, as for the runtime's ``Segmenter``.
        precision: which one of a bundle that holds several; None: by the device.
        progress: called with a line about each step.

    Raises:
        BundleError, IntegrityError, CheckpointError, ImageError: what could not be read.
    """
    bundle = open_for_device(directory, providers, precision)
    artefact = open_artefact(bundle, providers=providers, threads=threads)
    reference = Reference(checkpoint, bundle.image_size, images=images, progress=progress)
    return parity.verify(reference.cases, artefact, _report_photo(bundle, progress))


def _report_photo(bundle: Bundle, progress: Progress) -> Progress:
    """Returns a function that reports the photograph that is being compared."""
    what = f"comparing {bundle.manifest.target} {bundle.manifest.precision} with PyTorch on"
    return lambda name: progress(f"{what} {name}")


def open_artefact(
    bundle: Bundle, *, providers: Providers = "cpu", threads: int | None = None
) -> parity.Artefact:
    """Returns a bundle's files, open for ``parity.verify``.

    Args:
        bundle: the bundle; of several precisions, its first.
        providers, threads: how to run it, as for the runtime's ``Segmenter``.

    Raises:
        IntegrityError, BundleError: a file cannot be read or run.
        ProviderError: a provider is missing here.
    """
    target = find_target(bundle.manifest.target)
    converter = open_converter(target)
    networks: dict[str, Call] = {}
    inside: list[str] = []
    for name in REFERENCE_TYPES:
        source, label = bundle.source(name), f"{bundle.path}: {name}"
        intermediates = bundle.manifest.network(name).intermediates
        plain = converter.load(source, label, providers=providers, threads=threads)
        networks[name] = networks[f"{name}_intermediates"] = plain
        if intermediates:
            networks[f"{name}_intermediates"] = converter.load(
                source, label, intermediates, providers, threads
            )
            inside += intermediates
    return parity.Artefact(
        **networks,
        intermediates=frozenset(inside),
        runtime_name=converter.runtime_name(),
        tolerance=find_precision(target, bundle.manifest.precision).tolerance,
    )


def _describe(
    loaded: Loaded,
    target: Target,
    options: Options,
    networks: dict[str, NetworkFile],
    golden: GoldenFile,
) -> Manifest:
    """Returns the manifest without a parity report."""
    tools = (*COMMON_PACKAGES, *target.packages)
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
            mean=constants.PIXEL_MEAN,
            std=constants.PIXEL_STD,
            padding="zeros on the right and below, after normalising",
        ),
        prompt_labels={
            "absent": constants.LABEL_PADDING,
            "pad": constants.LABEL_NOT_A_POINT,
            "background": constants.LABEL_BACKGROUND,
            "foreground": constants.LABEL_FOREGROUND,
            "box_first_corner": constants.LABEL_BOX_FIRST,
            "box_second_corner": constants.LABEL_BOX_SECOND,
        },
        mask_threshold=constants.MASK_THRESHOLD,
        tools={
            "python": platform.python_version(),
            **{name: package_version(name) for name in tools},
            **target.programs,
        },
        encoder=networks["encoder"],
        decoder=networks["decoder"],
        golden=golden,
    )
