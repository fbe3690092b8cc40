"""The targets, and the check that options fit the one that is asked for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pocketsam.errors import UsageError
from pocketsam.export.options import LONGEST_PROMPT, Options
from pocketsam.export.target import Converter, Precision, Target
from pocketsam.export.to_coreai import TARGET as COREAI
from pocketsam.export.to_coreml import TARGET as COREML
from pocketsam.export.to_executorch import TARGET as EXECUTORCH
from pocketsam.export.to_onnx import TARGET as ONNX
from pocketsam.export.to_tflite import TARGET as TFLITE
from pocketsam.export.to_web import TARGET as WEB
from pocketsam.terminal import extra_needed

if TYPE_CHECKING:
    from pocketsam.models.checkpoint import Loaded

TARGETS: dict[str, Target] = {
    target.name: target for target in (ONNX, COREML, TFLITE, COREAI, EXECUTORCH, WEB)
}


def find_target(name: str) -> Target:
    """Returns the target called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError(f"unknown target {name!r}; known are {', '.join(TARGETS)}")
    return TARGETS[name]


def find_precision(target: Target, name: str) -> Precision:
    """Returns the target's precision called ``name``.

    Raises:
        UsageError: it has none of that name.
    """
    try:
        return target.precision(name)
    except KeyError:
        known = ", ".join(precision.name for precision in target.precisions)
        raise UsageError(f"{target.name} has no precision {name!r}; it has {known}") from None


def check_options(
    target: Target, precisions: Sequence[str], *, calibration: Sequence[Any] = (), **choices: Any
) -> Options:
    """Returns the options of an export, if a target reads every one that was given.

    Args:
        target: what is exported to.
        precisions: names of the precisions that are written; the first one is the options'.
        calibration: photographs to measure ranges on.
        choices: fields of ``Options``; None: not given.

    Raises:
        UsageError: a precision that the target does not have, an option that would do nothing, values
            out of range or that do not go together.
    """
    given = {name: value for name, value in choices.items() if value is not None}
    chosen = [find_precision(target, name) for name in precisions]
    if len(set(precisions)) < len(precisions):
        raise UsageError(f"a precision twice: {', '.join(precisions)}")
    read = {*target.options, *(name for precision in chosen for name in precision.options)}
    for name in given:
        if name not in read:
            readers = " and ".join(_readers(name))
            raise UsageError(
                f"{target.name} {'/'.join(precisions)} does nothing with "
                f"--{name.replace('_', '-')}: it is for {readers}"
            )
    options = Options(precisions[0], **given)
    if options.max_points < LONGEST_PROMPT:
        raise UsageError(
            f"--max-points is {options.max_points}; it must be {LONGEST_PROMPT} or more, since parity "
            "is checked with nine points and a padding"
        )
    for precision in precisions:
        target.resolve(replace(options, precision=precision))
    if calibration and not any(precision.calibrated for precision in chosen):
        names = [precision.name for precision in target.precisions if precision.calibrated]
        readers = f"it is for {', '.join(names)}" if names else f"{target.name} measures no ranges"
        raise UsageError(
            f"{target.name} {'/'.join(precisions)} does nothing with --calibration: {readers}"
        )
    return options


def check_network(
    target: Target, precisions: Sequence[str], options: Options, loaded: "Loaded"
) -> None:
    """Checks that an export can be made of a checkpoint, before any work is done for it.

    Args:
        target: what is exported to.
        precisions: names of the precisions that are written.
        options: of the export.
        loaded: the checkpoint.

    Raises:
        UsageError: a file would be too large, or the encoder is to normalise as it cannot.
    """
    weights = sum(weight.numel() for weight in loaded.model.image_encoder.parameters())
    check_size(target, precisions, loaded.architecture, weights)
    if options.input == "image" and loaded.model.traits.normalisation.stretch:
        raise UsageError(
            f"{loaded.architecture} normalises each picture by its own least and greatest value, which "
            "--input image does not; leave it out"
        )


def check_size(target: Target, precisions: Sequence[str], architecture: str, weights: int) -> None:
    """Checks that a target's files can hold an encoder, before any work is done for it.

    Args:
        target: what is exported to.
        precisions: names of the precisions that are written.
        architecture: the network's name, for the error.
        weights: number of weights of its encoder.

    Raises:
        UsageError: a precision would be too large; the error names those that are not.
    """
    for name in precisions:
        if target.holds(find_precision(target, name), weights):
            continue
        fitting = [other.name for other in target.precisions if target.holds(other, weights)]
        advice = f"choose --precision {', '.join(fitting)}" if fitting else "export to another target"
        raise UsageError(
            f"{target.name} {name} cannot hold the encoder of {architecture}: it has "
            f"{4 * weights / 1e9:.1f} GB of weights in float32, and such files end at 2 GiB; {advice}"
        )


def _readers(option: str) -> list[str]:
    """What reads an option: targets, or targets with a precision."""
    found = [target.name for target in TARGETS.values() if option in target.options]
    return found + [
        f"{target.name} {precision.name}"
        for target in TARGETS.values()
        for precision in target.precisions
        if option in precision.options
    ]


def open_converter(target: Target) -> Converter:
    """Imports what converts to a target.

    Raises:
        MissingExtraError: its packages are not installed.
    """
    with extra_needed(target.extra):
        return target.open_converter()
