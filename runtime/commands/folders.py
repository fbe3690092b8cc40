"""Does something with each image of a folder: one that cannot be used does not end the run."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pocketsam import terminal
from pocketsam.errors import ImageError
from pocketsam.images import describe_inside, list_folder


def output_names(files: Sequence[Path]) -> list[str]:
    """Returns a name for what is made of each file: its own, without the suffix if that is unique."""
    stems = Counter(file.stem.lower() for file in files)
    names = [file.name if stems[file.stem.lower()] > 1 else file.stem for file in files]
    is_unique = len({name.lower() for name in names}) == len(names)
    return names if is_unique else [file.name for file in files]


def run_folder(folder: Path, work: Callable[[Path, str], str]) -> list[str]:
    """Works on the images of a folder one after the other, and prints a line for each.

    Args:
        folder: the directory.
        work: takes a file and the name for what is made of it; returns what to print.

    Returns:
        The names.

    Raises:
        ImageError: a folder without images; or, when all others are done, an image was not used.
    """
    files, unused = list_folder(folder)
    names = output_names(files)
    for line in unused:
        terminal.say(f"skipped: {line}")
    if inside := describe_inside(folder):
        terminal.say(f"note: {folder}: {inside}")
    done = []
    for number, (file, name) in enumerate(zip(files, names, strict=True), start=1):
        try:
            line = work(file, name)
        except ImageError as error:
            terminal.say(f"skipped: {error}")
            unused.append(str(error))
            continue
        print(f"{number}/{len(files)} {file.name}: {line}", flush=True)
        done.append(name)
    print(f"{len(done)} images done, {len(unused)} skipped")
    if unused:
        raise ImageError(f"{folder}: {len(unused)} images could not be used; the first: {unused[0]}")
    return done
