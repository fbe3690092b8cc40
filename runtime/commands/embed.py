"""``pocketsam embed``: embeddings of images in files, for many prompts later."""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketsam import terminal
from pocketsam.errors import ImageError
from pocketsam.runtime.embedding import hash_pixels, read_embedding
from pocketsam.runtime.image import find_images, load_image
from pocketsam.runtime.segmenter import Segmenter


def add_embed(subparsers: terminal.Subparsers) -> None:
    """Adds ``embed``."""
    parser = subparsers.add_parser(
        "embed",
        help="encode images and keep their embeddings, for many prompts later",
        description="`pocketsam segment … --embedding FILE` then needs the decoder alone.",
    )
    parser.add_argument("bundle", help="directory that `pocketsam export` wrote")
    parser.add_argument("image", help="an image; or a folder, of which images done before are skipped")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="for NAME.npz of each image"
    )
    terminal.add_device_options(parser)
    terminal.add_precision(parser)
    parser.set_defaults(run=run_embed)


def run_embed(args: argparse.Namespace) -> None:
    """Runs the command."""
    segmenter = Segmenter(args.bundle, terminal.providers(args), args.threads, args.precision)
    files = find_images(args.image)
    for number, file in enumerate(files, start=1):
        path = args.output / f"{file.name}.npz"
        pixels = load_image(file)
        if path.is_file() and _is_done(path, pixels, segmenter.encoder_sha256):
            print(f"{number}/{len(files)} {file.name}: done before")
            continue
        segmenter.set_image(pixels)
        segmenter.embedding().save(path)
        print(f"{number}/{len(files)} wrote {path}")


def _is_done(path: Path, pixels: NDArray[np.uint8], encoder_sha256: str) -> bool:
    try:
        one = read_embedding(path)
    except ImageError:
        return False
    return one.encoder_sha256 == encoder_sha256 and one.image_sha256 == hash_pixels(pixels)
