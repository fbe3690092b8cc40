"""``pocketsam embed``: writes embeddings of images to files, for prompts later."""

import argparse
from pathlib import Path

from pocketsam import terminal
from pocketsam.errors import ImageError, UsageError
from pocketsam.images import Pixels
from pocketsam.runtime.backends.ort import check_threads
from pocketsam.runtime.commands.folders import run_folder
from pocketsam.runtime.commands.options import (
    add_bundle,
    add_device,
    add_window,
    check_is_no_bundle,
    open_segmenter,
    read_image,
)
from pocketsam.runtime.embedding import hash_pixels, is_foreign, read_embedding
from pocketsam.runtime.segmenter import Segmenter


def add_embed(subparsers: terminal.Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "embed",
        help="encode images and keep their embeddings, for prompts later",
        description="`pocketsam segment … --embedding FILE` then runs only the decoder.",
    )
    add_bundle(parser)
    add_device(parser)
    add_window(parser)
    parser.add_argument(
        "image",
        help="an image, or a folder, without the folders inside it; images done before are skipped",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for NAME.npz of each NAME.jpg",
    )
    parser.set_defaults(run=run_embed)


def run_embed(args: argparse.Namespace) -> None:
    """Runs the command."""
    check_threads(args.threads)
    check_is_no_bundle(args.image)
    if args.output.exists() and not args.output.is_dir():
        raise UsageError(f"{args.output}: a file, and --output is a folder")
    segmenter = open_segmenter(args)

    def encode(file: Path, name: str) -> str:
        path = args.output / f"{name}.npz"
        pixels = read_image(args, file)
        if path.is_file() and _is_done(path, pixels, segmenter):
            return "done before"
        segmenter.set_image(pixels)
        segmenter.embedding().save(path)
        return f"wrote {path}"

    image = Path(args.image)
    if image.is_dir():
        run_folder(image, encode)
    else:
        print(encode(image, image.stem))


def _is_done(path: Path, pixels: Pixels, segmenter: Segmenter) -> bool:
    """Returns whether a file holds the embedding that would be computed.

    Raises:
        ImageError: it is somebody else's file, which must not be replaced.
    """
    if is_foreign(path):
        raise ImageError(f"{path}: is no embedding, and would be replaced; choose another --output")
    try:
        embedding = read_embedding(path)
    except ImageError:  # damaged
        return False
    found = embedding.encoder_sha256, embedding.image_sha256, embedding.arithmetic
    return found == (segmenter.encoder_sha256, hash_pixels(pixels), segmenter.arithmetic)
