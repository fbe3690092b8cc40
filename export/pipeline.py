"""From a checkpoint to a verified bundle, and the check of a bundle against a checkpoint."""

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pocketsam.export import bundle as writer
from pocketsam.export import parity
from pocketsam.export.metrics import TOLERANCES
from pocketsam.export.parts import PART_TYPES, Decoder, Encoder, run
from pocketsam.export.photos import load_photos
from pocketsam.export.targets import open_target
from pocketsam.models.checkpoint import Loaded, load_model
from pocketsam.models.sam import Sam
from pocketsam.runtime import contract as c
from pocketsam.runtime import golden
from pocketsam.runtime.bundle import Bundle, open_bundle
from pocketsam.runtime.image import preprocess

TOOLS = ("pocketsam", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "numpy", "pillow")

Progress = Callable[[str], None]


def export_bundle(
    checkpoint: str,
    destination: Path,
    target: str = "onnx",
    precision: str = "fp32",
    image_size: int = 1024,
    verify: bool = True,
    replace: bool = False,
    photos: Sequence[str] = (),
    progress: Progress = lambda _: None,
) -> parity.Report | None:
    """Writes a bundle; unless it passes parity, nothing is left at ``destination``.

    Args:
        checkpoint: as for ``load_model``.
        destination: the bundle's directory.
        target, precision: see ``targets.TARGETS``.
        image_size: side of the canvas, a multiple of 64.
        verify: False skips parity; the manifest then says that the bundle is unverified.
        replace: whether a bundle already there gives way.
        photos: files or folders to verify on, instead of scikit-image's photographs.
        progress: called with a line about each step.

    Returns:
        The parity report, or None without ``verify``.

    Raises:
        ParityError: the files do not compute what the checkpoint computes.
        CheckpointError, ConversionError, BundleError, ImageError: what could not be read or written.
    """
    converter = open_target(target, precision)
    images = load_photos(photos) if verify else []
    progress(f"loading {checkpoint}")
    loaded = load_model(checkpoint, image_size)
    tolerance = TOLERANCES[target, precision]
    with writer.staged(destination, replace) as work:
        manifest = _describe(loaded, target, precision)
        for name, part_type in PART_TYPES.items():
            progress(f"converting the {name}")
            path = work / f"{name}{converter.SUFFIX}"
            entry = converter.convert(part_type(loaded.model), path)
            manifest[name] = writer.describe_file(path) | entry
        _write_golden(loaded.model, work / c.GOLDEN_NAME)
        described = writer.describe_file(work / c.GOLDEN_NAME)
        manifest["golden"] = described | {"tolerance": tolerance.error}
        manifest["parity"] = report = None
        writer.write_manifest(work, manifest)
        if verify:
            report = _verify(open_bundle(work), loaded.model, images, progress)
            manifest["parity"] = report.to_json()
            writer.write_manifest(work, manifest)
            report.raise_if_failed()
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
    target, precision = bundle.manifest["target"], bundle.manifest["precision"]
    converter = open_target(target, precision)
    calls = {}
    for part in PART_TYPES:
        data = bundle.read(part)
        stages = PART_TYPES[part](model).stages()
        name, device = f"{bundle.path}: {part}", {"providers": providers, "threads": threads}
        calls[part] = converter.load(data, name, **device)
        calls[f"{part}_stages"] = converter.load(data, name, stages, **device)
    return parity.verify(
        model,
        parity.Artefact(**calls),
        images,
        TOLERANCES[target, precision],
        lambda name: progress(f"comparing with PyTorch on {name}"),
    )


def _describe(loaded: Loaded, target: str, precision: str) -> dict[str, Any]:
    """The manifest without its files."""
    return {
        "schema_version": c.SCHEMA_VERSION,
        "model": {
            "architecture": loaded.architecture,
            "checkpoint": loaded.name,
            "checkpoint_sha256": loaded.sha256,
            "trained": loaded.trained,
        },
        "target": target,
        "precision": precision,
        "image_size": loaded.model.image_size,
        "preprocessing": {
            "color": "RGB",
            "layout": "NCHW",
            "resize": "longest side to image_size: int(side * scale + 0.5), at least 1",
            "filter": "bilinear with antialiasing (Pillow)",
            "mean": c.PIXEL_MEAN,
            "std": c.PIXEL_STD,
            "padding": "zeros on the right and below, after normalising",
        },
        "prompt_labels": {
            "pad": c.LABEL_PAD,
            "background": c.LABEL_BACKGROUND,
            "foreground": c.LABEL_FOREGROUND,
            "box_first_corner": c.LABEL_BOX_FIRST,
            "box_second_corner": c.LABEL_BOX_SECOND,
        },
        "mask_threshold": c.MASK_THRESHOLD,
        "tools": {"python": platform.python_version()} | {name: version(name) for name in TOOLS},
    }


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
