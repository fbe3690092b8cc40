"""Parity: PyTorch and the exported files, on the same photographs and prompts, tensor by tensor.

Each case feeds both networks what PyTorch feeds them, so that an error of the encoder is not blamed on
the decoder; "end to end" then chains the exported networks, as a device does.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketsam.export.cases import Case, DecoderCase
from pocketsam.export.target import Arrays, Call
from pocketsam.export.verification.report import Report
from pocketsam.runtime import contract as c
from pocketsam.runtime.upscale import Upscaler
from pocketsam.runtime.verification.tolerance import Tolerance


@dataclass(frozen=True)
class Artefact:
    """An exported bundle as callables, whatever its format: dict of arrays in, dict of arrays out.

    Attributes:
        encoder, decoder: the files as they are.
        encoder_intermediates, decoder_intermediates: the same, with the intermediate outputs among
            their outputs.
        intermediates: names of the intermediate outputs that the files say they hold.
        runtime_name: what runs them.
        precision: of the files.
        tolerance: what they may differ by.
    """

    encoder: Call
    decoder: Call
    encoder_intermediates: Call
    decoder_intermediates: Call
    intermediates: frozenset[str]
    runtime_name: str
    precision: str
    tolerance: Tolerance


def verify(
    cases: Iterable[Case],
    artefact: Artefact,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Runs the artefact on each case and compares it with the reference's answers.

    Args:
        cases: the reference's answers.
        artefact: the exported files.
        progress: called with the name of each photograph.
    """
    report = Report(artefact.precision, artefact.tolerance, artefact.runtime_name)
    for case in cases:
        progress(case.name)
        add_case(report, artefact, case)
    return report


def add_case(report: Report, artefact: Artefact, case: Case) -> None:
    """Adds one photograph's comparison to a report."""
    feeds = case.feeds
    if held := [name for name in case.intermediates if name in artefact.intermediates]:
        found = artefact.encoder_intermediates(feeds)
        for name in held:
            report.add_tensor("encoder", name, case.name, case.intermediates[name], found.get(name))
    embedding = artefact.encoder(feeds)[c.IMAGE_EMBEDDINGS]
    expected = case.outputs[c.IMAGE_EMBEDDINGS]
    report.add_tensor("encoder", c.IMAGE_EMBEDDINGS, case.name, expected, embedding)

    def compare(part: str, prompt: DecoderCase, full: NDArray[np.float32], found: Arrays) -> None:
        name = prompt.name
        for tensor, add in (
            (c.IOU_PREDICTIONS, report.add_scores),
            (c.LOW_RES_MASKS, report.add_tensor),
        ):
            add(part, tensor, name, prompt.outputs[tensor], found[tensor])
        masks = found.get(c.MASKS)
        if masks is None:  # formats with static shapes leave the upscaling to the application
            lows = found[c.LOW_RES_MASKS]
            upscaler = Upscaler(case.image_size, case.size, lows.shape[-1])
            masks = np.array([[upscaler.logits(low) for low in row] for row in lows])
        report.add_tensor(part, "mask logits", name, full, masks)
        report.add_masks(part, name, case.photo, full, masks)

    for prompt in case.prompts:
        report.cases += 1
        _compare_decoder_intermediates(report, artefact, prompt)
        full = prompt.mask_logits
        compare("decoder", prompt, full, artefact.decoder(prompt.feeds))
        chained = artefact.decoder(prompt.feeds | {c.IMAGE_EMBEDDINGS: embedding})
        chained.pop(c.MASKS, None)  # as a device does it
        compare("end to end", prompt, full, chained)


def _compare_decoder_intermediates(report: Report, artefact: Artefact, prompt: DecoderCase) -> None:
    held = [name for name in prompt.intermediates if name in artefact.intermediates]
    if not held:
        return
    found = artefact.decoder_intermediates(prompt.feeds)
    for name in held:
        value, expected = found.get(name), prompt.intermediates[name]
        if value is not None and value.ndim == 3:  # tokens: static shapes have padding after them
            value = value[:, : expected.shape[1]]
        report.add_tensor("decoder", name, prompt.name, expected, value)
