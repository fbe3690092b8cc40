"""From a checkpoint to a verified bundle, and the check of a bundle against a checkpoint."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace as replace_fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pocketsam import constants
from pocketsam.errors import PocketSamError
from pocketsam.export import bundle as writer
from pocketsam.export import parity
from pocketsam.export.metrics import TOLERANCES
from pocketsam.export.options import Options
from pocketsam.export.photos import CALIBRATION, load_photos
from pocketsam.export.targets import open_target
from pocketsam.export.traced import REFERENCE_TYPES, Decoder, Encoder, count_macs, run
from pocketsam.export.usage import write_usage
from pocketsam.models.checkpoint import Loaded, load_model
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime import golden
from pocketsam.runtime.bundle import Bundle, open_bundle
from pocketsam.runtime.image import preprocess
from pocketsam.runtime.json_fields import Fields
from pocketsam.runtime.manifest import (
    GOLDEN_NAME,
    SCHEMA_VERSION,
    GoldenFile,
    Manifest,
    ModelInfo,
    NetworkFile,
    Preprocessing,
)

COMMON = ("pocketsam", "torch", "numpy", "pillow")
TOOLS = {
    "onnx": (*COMMON, "onnx", "onnxscript", "onnxsim", "onnxruntime"),
    "coreml": (*COMMON, "coremltools"),
    "tflite": (*COMMON, "onnx", "onnxscript", "onnxsim", "ai-edge-litert", "litert-quantizer"),
}
OPTIONS = Options()

Progress = Callable[[str], None]


def export_bundle(
    checkpoint: str,
    destination: Path,
    target: str = "onnx",
    options: Options = OPTIONS,
    image_size: int = 1024,
    verify: bool = True,
    replace: bool = False,
    photos: Sequence[str] = (),
    calibration: Sequence[str] = (),
    progress: Progress = lambda _: None,
    also: Sequence[str] = (),
) -> parity.Report | None:
    """Writes a bundle; unless it passes parity, nothing is left at ``destination``.

    Args:
        checkpoint: as for ``load_model``.
        destination: the bundle's directory.
        target: see ``targets.TARGETS``.
        options: precision and what else the target lets one choose.
        image_size: side of the canvas, a multiple of 64.
        verify: False skips parity; the manifest then says that the bundle is unverified.
        replace: whether a bundle already there gives way.
        photos: files or folders to verify on, instead of scikit-image's photographs.
        calibration: files or folders that ranges are measured on, likewise; read only by precisions
            that need them.
        progress: called with a line about each step.
        also: further precisions, each a bundle of its own inside, named by its precision; the runtime
            takes what suits the device.

    Returns:
        The parity report, or None without ``verify``; of the first precision.

    Raises:
        ParityError: the files do not compute what the checkpoint computes.
        CheckpointError, ConversionError, BundleError, ImageError: what could not be read or written.
    """
    converter = open_target(target, options)
    others = [replace_fields(options, precision=precision) for precision in also]
    for other in others:
        open_target(target, other)
    if len({options.precision, *also}) <= len(also):
        raise PocketSamError(f"a precision twice: {', '.join((options.precision, *also))}")
    images = load_photos(photos) if verify else []
    calibrated = options.precision in converter.CALIBRATED
    measured = load_photos(calibration, CALIBRATION) if calibrated else []
    progress(f"loading {checkpoint}")
    loaded = load_model(checkpoint, image_size)
    tolerance = TOLERANCES[target, options.precision]
    networks: dict[str, NetworkFile] = {}
    with writer.staged(destination, replace) as work:
        samples = calibration_samples(loaded.model, measured)
        about = {"checkpoint": loaded.name, "checkpoint_sha256": loaded.sha256}
        for name, network in converter.traced_networks(loaded.model, options).items():
            progress(f"converting the {name} to {target} {options.precision}")
            path = work / f"{name}{converter.SUFFIX}"
            entry = converter.convert(network, path, options, samples[name], about)
            macs = count_macs(REFERENCE_TYPES[name](loaded.model))
            described = writer.describe_file(path).to_json() | {"macs": macs} | entry
            networks[name] = NetworkFile.from_json(Fields(described, path, ""))
        _write_golden(loaded.model, work / GOLDEN_NAME)
        golden_file = vars(writer.describe_file(work / GOLDEN_NAME))
        manifest = _describe(
            loaded,
            target,
            options,
            **networks,
            golden=GoldenFile(**golden_file, tolerance=tolerance.error),
        )
        manifest = replace_fields(manifest, also=tuple(also))
        write_usage(work, manifest)
        report = None
        writer.write_manifest(work, manifest)
        if verify:
            report = _verify(open_bundle(work), loaded.model, images, progress)
            manifest = replace_fields(manifest, parity=report.to_json())
            writer.write_manifest(work, manifest)
            report.raise_if_failed()
        for other in others:
            export_bundle(
                checkpoint,
                work / other.precision,
                target,
                other,
                image_size,
                verify,
                photos=photos,
                calibration=calibration,
                progress=progress,
            )
    return report


def verify_bundle(
    directory: Path,
    checkpoint: str,
    photos: Sequence[str] = (),
    progress: Progress = lambda _: None,
    providers: str | Sequence[str] = "cpu",
    threads: int | None = None,
) -> parity.Report:
    """Holds a bundle, run as the last two arguments say, against the checkpoint.

    Raises:
        BundleError, IntegrityError, CheckpointError, ImageError: what could not be read.
    """
    bundle = open_bundle(directory)
    images = load_photos(photos)
    progress(f"loading {checkpoint}")
    loaded = load_model(checkpoint, bundle.image_size)
    return _verify(bundle, loaded.model, images, progress, providers, threads)


def _verify(
    bundle: Bundle,
    model: Sam,
    images: list[tuple[str, Any]],
    progress: Progress,
    providers: str | Sequence[str] = "cpu",
    threads: int | None = None,
) -> parity.Report:
    target, precision = bundle.manifest.target, bundle.manifest.precision
    converter = open_target(target, Options(precision))
    calls: dict[str, Any] = {}
    held: list[str] = []
    for network in REFERENCE_TYPES:
        source = bundle.source(network)
        intermediates = bundle.manifest.network(network).intermediates
        name, device = f"{bundle.path}: {network}", {"providers": providers, "threads": threads}
        calls[network] = converter.load(source, name, **device)
        with_intermediates = (
            converter.load(source, name, intermediates, **device) if intermediates else calls[network]
        )
        calls[f"{network}_intermediates"] = with_intermediates
        held += intermediates
    return parity.verify(
        model,
        parity.Artefact(**calls, intermediates=frozenset(held), runner=converter.runner()),
        images,
        TOLERANCES[target, precision],
        lambda name: progress(f"comparing with PyTorch on {name}"),
    )


def _describe(
    loaded: Loaded,
    target: str,
    options: Options,
    *,
    encoder: NetworkFile,
    decoder: NetworkFile,
    golden: GoldenFile,
) -> Manifest:
    """Returns the manifest without a parity report."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=ModelInfo(loaded.architecture, loaded.name, loaded.sha256, loaded.trained),
        target=target,
        precision=options.precision,
        image_size=loaded.model.image_size,
        preprocessing=Preprocessing(
            input=c.IMAGE if options.image_input else c.PIXEL_VALUES,
            color="RGB",
            layout="NCHW",
            resize="longest side to image_size: int(side * scale + 0.5), at least 1",
            filter="bilinear with antialiasing (Pillow)",
            mean=constants.PIXEL_MEAN,
            std=constants.PIXEL_STD,
            padding="zeros on the right and below, after normalising",
        ),
        prompt_labels={
            "absent": constants.LABEL_PADDING,
            "pad": constants.LABEL_PAD_POINT,
            "background": constants.LABEL_BACKGROUND,
            "foreground": constants.LABEL_FOREGROUND,
            "box_first_corner": constants.LABEL_BOX_FIRST,
            "box_second_corner": constants.LABEL_BOX_SECOND,
        },
        mask_threshold=constants.MASK_THRESHOLD,
        tools={"python": platform.python_version()} | _versions(TOOLS[target]),
        encoder=encoder,
        decoder=decoder,
        golden=golden,
    )


def _versions(tools: Sequence[str]) -> dict[str, str]:
    return {name: version(name) for name in tools}


def calibration_samples(
    model: Sam, photos: Sequence[tuple[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Inputs of each half for photographs and ``parity.PROMPTS``, one prompt at a time, M points each.

    The mask input is the mask of the prompt before, as when a user refines a mask.
    """
    samples: dict[str, list[dict[str, Any]]] = {"encoder": [], "decoder": []}
    side = model.image_size // 4
    for _, photo in photos:
        feeds = parity.encoder_feeds(photo, model.image_size)
        samples["encoder"].append(feeds)
        embedding = run(Encoder(model), feeds)[0][c.IMAGE_EMBEDDINGS]
        mask = np.zeros((1, 1, side, side), np.float32)
        for prompt in parity.PROMPTS:
            size = (photo.shape[0], photo.shape[1])
            wanted = parity.decoder_feeds(prompt, embedding, mask, size, model.image_size)
            mask = run(Decoder(model), wanted)[0][c.LOW_RES_MASKS][:1, 1:2]
            one = {key: array[:1] for key, array in wanted.items() if key != c.ORIG_IM_SIZE}
            samples["decoder"].append(one | {c.ORIG_IM_SIZE: wanted[c.ORIG_IM_SIZE]})
    return samples


def _write_golden(model: Sam, path: Path) -> None:
    """A drawn scene, a point and a box on it, and PyTorch's answers."""
    y, x = np.mgrid[0:96, 0:128].astype(np.float32)
    disk = ((x - 50) ** 2 + (y - 40) ** 2 < 600)[..., None]
    ground = np.stack([2 * x, 2 * y, 255 - x - y / 2], axis=-1)
    image = np.where(disk, np.array([230, 60, 40], np.float32), ground).astype(np.uint8)
    arrays: dict[str, Any] = {
        "image": image,
        "point_coords": np.array([[[50, 40]]], np.float32),
        "point_labels": np.array([[1]], np.float32),
        "boxes": np.array([[24, 14, 76, 66]], np.float32),
    }
    encoder, decoder = Encoder(model), Decoder(model)
    encoded, _ = run(encoder, {c.PIXEL_VALUES: preprocess(image, model.image_size)})
    side = model.image_size // 4
    prompts = {
        golden.POINT_PROMPT: parity.Prompt("point", [[(50 / 128, 40 / 96, 1)]]),
        golden.BOX_PROMPT: parity.Prompt("box", boxes=[(24 / 128, 14 / 96, 76 / 128, 66 / 96)]),
    }
    for name, prompt in prompts.items():
        feeds = parity.decoder_feeds(
            prompt,
            encoded[c.IMAGE_EMBEDDINGS],
            np.zeros((1, 1, side, side), np.float32),
            image.shape[:2],
            model.image_size,
        )
        answers, _ = run(decoder, feeds)
        kept = answers[c.LOW_RES_MASKS][:, 1:, :: golden.STRIDE, :: golden.STRIDE]
        arrays[f"{name}_low_res_masks"] = kept
        arrays[f"{name}_scores"] = answers[c.IOU_PREDICTIONS][:, 1:]
    np.savez(path, **arrays)
