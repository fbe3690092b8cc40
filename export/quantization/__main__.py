"""What each layer of an image encoder costs in few bits, the others in float: the table behind the
decisions.

``python -m pocketsam.export.quantization [CHECKPOINT]`` prints it in Markdown; ``make layer-costs``.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import nn

from pocketsam import terminal
from pocketsam.errors import PocketSamError
from pocketsam.export.cases import measure_encoder
from pocketsam.export.quantization.decisions import FEW_BITS
from pocketsam.export.quantization.grids import Steps
from pocketsam.export.quantization.plan import Simulator, to_db
from pocketsam.export.quantization.simulation import Rounding
from pocketsam.export.reference import Reference
from pocketsam.export.traced import Encoder, count_macs
from pocketsam.models.checkpoint import DEFAULT, default_image_size

COLUMNS = {
    "8-bit weight": Rounding(Steps(127), inputs=False),
    "8-bit weight, input": Rounding(Steps(127)),
    "8-bit weight, input, output": Rounding(Steps(127), outputs=True),
    "4-bit weight": Rounding(Steps(7, FEW_BITS.block), inputs=False),
}
"""What is rounded; the embedding's SNR in dB stands in the table."""
MASKS = Rounding(Steps(127))
"""What is rounded where the masks are compared."""


class LayerTable:
    """Measures an encoder's layers on photographs that are not the ones it is verified on.

    Args:
        reference: the checkpoint and PyTorch's answers.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        model = reference.loaded.model
        self._simulator = Simulator(model, reference.calibration, (nn.Linear, nn.Conv2d))
        self._macs = self._simulator.count_macs()
        self._all_macs = count_macs(Encoder(model))

    def kinds(self) -> dict[str, list[str]]:
        """Returns the layers by what they do: the end of their names, or the kind of convolution."""
        found: dict[str, list[str]] = {}
        for name, module in self._simulator.layers.items():
            kind = name.rpartition(".")[2]
            if isinstance(module, nn.Conv2d):
                kind = (
                    "depthwise"
                    if module.groups > 1
                    else "1x1"
                    if module.kernel_size == (1, 1)
                    else "3x3"
                )
                kind = f"convolutions, {kind}"
            found.setdefault(f"all {kind}", []).append(name)
        return found

    def row(self, label: str, names: Sequence[str]) -> str:
        """Returns a line of the table.

        Args:
            label: what stands in front.
            names: of the layers that are rounded together.
        """
        share = sum(self._macs[name] for name in names) / self._all_macs
        noises = [to_db(self._simulator.noise(names, how)) for how in COLUMNS.values()]
        accuracy = measure_encoder(
            self._reference.loaded.model,
            self._reference.calibration,
            lambda pixels: self._simulator.encode(names, MASKS, torch.from_numpy(pixels)).numpy(),
        )
        cells = [f"{share:.1%}", *(f"{x:.1f}" for x in noises)]
        return f"| {label} | {' | '.join(cells)} | {accuracy.mean:.4f} | {accuracy.worst:.3f} |"

    def print(self) -> None:
        """Prints a row for each kind of layers, then one for each layer."""
        titles = [
            "layer",
            "multiply-adds",
            *(f"{name}, dB" for name in COLUMNS),
            "mask IoU, mean",
            "worst",
        ]
        print(f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", sep="\n")
        single = {name: [name] for name in self._simulator.layers}
        for label, names in {**self.kinds(), **single}.items():
            print(self.row(label, names), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketsam.export.quantization", description=__doc__.splitlines()[0]
    )
    parser.add_argument("checkpoint", nargs="?", default=DEFAULT)
    parser.add_argument("--image-size", type=terminal.parse_image_size, metavar="S")
    parser.add_argument(
        "--images", nargs="+", default=(), metavar="FILE", help="photographs to measure on"
    )
    args = parser.parse_args(argv)
    try:
        size = args.image_size or default_image_size(args.checkpoint)
        reference = Reference(args.checkpoint, size, calibration=args.images, progress=terminal.say)
        LayerTable(reference).print()
    except PocketSamError as error:
        print(f"pocketsam: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
