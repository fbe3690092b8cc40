"""From a checkpoint to a verified bundle: ``export`` and ``verify``.

The package can be called, so that ``from pocketsam import export`` gives the function whether or not
something has imported a module of this package before.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pocketsam.errors import UsageError
from pocketsam.terminal import extra_needed

if TYPE_CHECKING:
    from pocketsam.export.reference import Reference
    from pocketsam.export.verification.report import Report
    from pocketsam.runtime.verification.golden_result import GoldenResult
    from pocketsam.runtime.verification.tolerance import Grade

__all__ = ["export", "verify"]

StrPath = str | os.PathLike[str]
Providers = str | Sequence[str]
Progress = Callable[[str], None]


def export(
    checkpoint: StrPath,
    output: StrPath,
    *,
    target: str = "onnx",
    precision: str | None = None,
    also: Sequence[str] = (),
    image_size: int | None = None,
    images: Sequence[StrPath] = (),
    calibration: Sequence[StrPath] = (),
    verify: bool = True,
    accept: "Grade" = "close",
    force: bool = False,
    keep_failed: bool = False,
    max_points: int | None = None,
    prompts_per_call: int | None = None,
    input: Literal["tensor", "image"] | None = None,
    deployment_target: str | None = None,
    timeout: float | None = None,
    min_miou: float | None = None,
    min_speedup: float | None = None,
    weight_bits: int | None = None,
    opset: int | None = None,
    disabled_passes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> "Report | None":
    """Turns a checkpoint into a verified bundle, as ``pocketsam export`` does.

    If the files do not compute what the checkpoint computes, ``output`` is left as it was.

    Args:
        checkpoint: a ``.pt``, ``.pth``, ``.ckpt``, ``.bin`` or ``.safetensors`` file; ``mobile_sam``,
            ``sam_vit_b``, ``sam_vit_l``, ``sam_vit_h``: the official weights, downloaded once;
            ``default``: this package's trained weights; ``seeded``: untrained ones.
        output: the bundle's directory.
        target: ``onnx``, ``coreml``, ``tflite``, ``coreai``, ``executorch`` or ``web``.
        precision: one that the target has, such as ``fp32``, ``fp16``, ``int8``; None: ``fp32``, or for
            the web ``int8-weights``.
        also: further precisions in the same bundle; the runtime takes the most precise unless told.
        image_size: side of the canvas in pixels, a multiple of 64; None: what the checkpoint says that
            it was trained at (512 for ``default``), else 1024.
        images: files or folders to verify on; empty: three of scikit-image's photographs.
        calibration: files or folders that ranges are measured on; empty: three more of scikit-image's.
        verify: False skips parity; the manifest then says that the bundle is unverified.
        accept: the worst grade that is written: ``equivalent``, ``close`` or ``lossy``.
        force: whether a bundle already at ``output`` is replaced.
        keep_failed: whether files that fail parity stay, in ``OUTPUT.failed``, with a picture of the
            worst mask in ``OUTPUT.failed.png``.
        max_points: points of a prompt in decoders other than ONNX's, from 10 up (16); a box takes two.
        prompts_per_call: prompts that decoders other than ONNX's answer at once (1); they always
            compute all of them, so 64 is for ``everything``, not for single clicks.
        input: Core ML: the encoder takes a normalised ``tensor``, or an ``image`` that it normalises.
        deployment_target: Core ML: the oldest system to run on, such as ``iOS17``.
        timeout: seconds for one run of an outside converter (1800).
        min_miou: ONNX int8: mean IoU that its masks must have with PyTorch's (0.98).
        min_speedup: ONNX int8: how many times as fast as float32 it must be on this machine (1).
        weight_bits: ONNX int8: bits that its weights use, 7 or 8 (7); 8 round less, and run only on
            CPUs with VNNI or AMX, or ARM's.
        opset: ONNX: operator set of the files, 15 to 20 (20).
        disabled_passes: ONNX: passes of ``to_onnx.passes.PASSES`` to leave out.
        progress: called with a line about each step; None: nothing is reported.

    Returns:
        The parity report of ``precision``; None without ``verify``.

    Raises:
        UsageError: an unknown target or precision, an option out of range or that would do nothing, a
            precision that is lossy and not accepted.
        ParityError: the files do not compute what the checkpoint computes.
        CheckpointError, ConversionError, BundleError, ImageError: what could not be read or written.
        DownloadError: official weights that are not here yet cannot be had.
        MissingExtraError: an optional dependency is not installed.

    Example:
        >>> from pocketsam import export
        >>> report = export("default", "bundle", image_size=256)
    """
    from pocketsam.export.targets import check_network, check_options, find_target, open_converter

    chosen = find_target(target)
    if not verify:
        _check_unverified(images, keep_failed)
    precision = precision or chosen.usual_precision
    options = check_options(
        chosen,
        (precision, *also),
        calibration=calibration,
        max_points=max_points,
        prompts_per_call=prompts_per_call,
        input=input,
        deployment_target=deployment_target,
        timeout=timeout,
        min_miou=min_miou,
        min_speedup=min_speedup,
        weight_bits=weight_bits,
        opset=opset,
        disabled_passes=None if disabled_passes is None else tuple(disabled_passes),
    )
    with extra_needed("export"):
        from pocketsam.export.pipeline import write_bundle
        from pocketsam.export.verification.judgement import check_accepted
    for name in (precision, *also):
        check_accepted(chosen, name, accept)
    open_converter(chosen)
    chosen.prepare()
    say = progress or _ignore
    photos, measured = ([os.fspath(path) for path in paths] for paths in (images, calibration))
    reference = open_reference(
        os.fspath(checkpoint), image_size, images=photos, calibration=measured, progress=say
    )
    check_network(chosen, (precision, *also), options, reference.loaded)
    how: dict[str, Any] = {"verify": verify, "force": force, "keep_failed": keep_failed}
    reports = write_bundle(
        reference, Path(output), chosen, options, also=also, accept=accept, progress=say, **how
    )
    return reports[0] if reports else None


def _check_unverified(images: Sequence[StrPath], keep_failed: bool) -> None:
    """Raises UsageError for what only a verification uses."""
    for name, is_given, what in (
        ("images", images, "are verified on"),
        ("keep-failed", keep_failed, "keeps what fails to verify"),
    ):
        if is_given:
            raise UsageError(f"--{name} {what}, and --no-verify skips that")


def verify(
    bundle: StrPath,
    *,
    checkpoint: StrPath | None = None,
    images: Sequence[StrPath] = (),
    precision: str | None = None,
    providers: Providers = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> "list[Report] | list[GoldenResult]":
    """Asks whether a bundle computes what PyTorch computes, as ``pocketsam verify`` does.

    Args:
        bundle: the bundle's directory.
        checkpoint: compares every tensor with this checkpoint in PyTorch; None: runs the bundle's
            golden vectors on this machine, which needs no torch.
        images: files or folders to compare on; empty: three of scikit-image's photographs.
        precision: which one of a bundle that holds several; None: each of them.
        providers: as for ``Segmenter``: ``cpu``, ``cuda``, ``openvino`` …
        threads: per operator; None: one per core.
        progress: called with a line about each step; None: nothing is reported.

    Returns:
        With a checkpoint a parity report of each precision, otherwise the results of the golden prompts
        of each precision. Neither raises when the answer is no: ask each one's ``ok``.

    Raises:
        UsageError: images without a checkpoint.
        BundleError, IntegrityError, CheckpointError, ImageError: what could not be read.

    Example:
        >>> from pocketsam import verify
        >>> all(result.ok for result in verify("bundle"))
        True
    """
    if checkpoint is None:
        if images:
            raise UsageError("--images are compared with a checkpoint: give --checkpoint as well")
        return check_anywhere(bundle, providers=providers, threads=threads, precision=precision)
    with extra_needed("export"):
        from pocketsam.export.pipeline import verify_bundle
    return verify_bundle(
        Path(bundle),
        os.fspath(checkpoint),
        images=[os.fspath(path) for path in images],
        providers=providers,
        threads=threads,
        precision=precision,
        progress=progress or _ignore,
    )


def check_anywhere(
    bundle: StrPath,
    *,
    providers: Providers = "cpu",
    threads: int | None = None,
    precision: str | None = None,
) -> "list[GoldenResult]":
    """Returns ``check_golden``'s results; of what the runtime does not run here, by the target's own.

    That is Core ML on other systems than Apple's, by the interpreter, and ExecuTorch and Core AI.

    Raises:
        BundleError, IntegrityError: what could not be read.
    """
    from pocketsam.export.targets import TARGETS
    from pocketsam.runtime.backends.networks import runs_here
    from pocketsam.runtime.backends.ort import check_threads
    from pocketsam.runtime.bundle import open_bundle
    from pocketsam.runtime.verification.golden import check_golden

    check_threads(threads)
    target = open_bundle(bundle).manifest.target
    if runs_here(target) or target not in TARGETS:
        return check_golden(bundle, providers=providers, threads=threads, precision=precision)
    with extra_needed(TARGETS[target].extra):
        from pocketsam.export.artefact import open_networks
    opened = partial(open_networks, providers=providers, threads=threads)
    return check_golden(bundle, precision=precision, open_networks=opened)


def open_reference(
    source: str, image_size: int | None, *, progress: Progress, **photos: list[str]
) -> "Reference":
    """Returns a loaded checkpoint, and says whether the canvas suits it; see ``Reference``."""
    with extra_needed("export"):
        from pocketsam.export.reference import Reference
        from pocketsam.models.checkpoint import read_settings
    from pocketsam.runtime.manifest import IMAGE_SIZES

    if image_size is not None and (type(image_size) is not int or image_size not in IMAGE_SIZES):
        raise UsageError(f"image_size is {image_size!r}; it must be a multiple of 64, from 64 to 4096")
    _fetch_official(source, progress)
    settings = read_settings(source)
    size = settings.image_size if image_size is None else image_size
    if size not in IMAGE_SIZES:
        raise UsageError(
            f"{source}: is for a canvas of {size} pixels; give a multiple of 64 as image_size"
        )
    reference = Reference(source, size, progress=progress, **photos)
    name = reference.loaded.name
    if settings.is_known and size != settings.image_size:
        progress(
            f"{name} is for a canvas of {settings.image_size} pixels; at {size} masks may be worse"
        )
    return reference


def _fetch_official(name: str, say: Progress) -> None:
    """Downloads an official checkpoint that is not here yet, with a line for each tenth of it."""
    from pocketsam.models.download import CHECKPOINTS, cache_folder, cached

    tenths = -1

    def report(done: int, total: int) -> None:
        nonlocal tenths
        if 10 * done // total > tenths:
            tenths = 10 * done // total
            say(f"downloading {name} to {cache_folder()}: {tenths}0 % of {total / 1e6:.0f} MB")

    if name in CHECKPOINTS:
        cached(name, progress=report)


def _ignore(line: str) -> None:
    pass


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> "Report | None":
        return export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
