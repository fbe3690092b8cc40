"""``pocketsam embed``: writes embeddings of images to files, for prompts later."""

import argparse
from pathlib import Path

from pocketsam import terminal
from pocketsam.errors import ImageError
from pocketsam.images import Pixels, find_images, load_image
from pocketsam.runtime.backends.ort import check_threads
from pocketsam.runtime.commands.options import (
    add_bundle,
    add_device,
    check_is_no_bundle,
    open_segmenter,
)
from pocketsam.runtime.embedding import hash_pixels, read_embedding


def add_embed(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "embed",
        help="encode images and keep their embeddings, for prompts later",
        description="`pocketsam segment … --embedding FILE` then runs only the decoder.",
    )
    add_bundle(parser)
    add_device(parser)
    parser.add_argument("image", help="an image, or a folder; images done before are skipped")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for NAME.npz of each image"
    )
    parser.set_defaults(run=run_embed)


def run_embed(args: argparse.Namespace) -> None:
    """Runs the command."""
    check_threads(args.threads)
    check_is_no_bundle(args.image)
    files = find_images(args.image)
    segmenter = open_segmenter(args)
    for number, file in enumerate(files, start=1):
        path = args.output / f"{file.name}.npz"
        pixels = load_image(file)
        if path.is_file() and _is_done(path, pixels, segmenter.encoder_sha256):
            print(f"{number}/{len(files)} {file.name}: done before")
            continue
        segmenter.set_image(pixels)
        segmenter.embedding().save(path)
        print(f"{number}/{len(files)} wrote {path}")


def _is_done(path: Path, pixels: Pixels, encoder_sha256: str) -> bool:
    try:
        embedding = read_embedding(path)
    except ImageError:
        return False
    hashes = embedding.encoder_sha256, embedding.image_sha256
    return hashes == (encoder_sha256, hash_pixels(pixels))
