"""The classes that describe a tool: its encoder, its decoder, and the files beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Answers = Literal["official", "low", "cropped", "three"]
"""What a decoder returns: ``official``: ``masks``, ``iou_predictions``, ``low_res_masks`` of one mask;
``low``: its score and low-resolution logits; ``cropped``: its box, its pixels there, and the logits;
``three``: scores and logits of masks 1 to 3 for each prompt."""


@dataclass(frozen=True, kw_only=True)
class EncoderForm:
    """The encoder that a tool runs.

    Attributes:
        file: its path in the directory; ``{suffix}`` stands for the precision's.
        input: name of its input.
        layout: ``HWC`` or ``NCHW`` for a picture in 0..255, of any size up to the frame; None for
            normalised and padded ``[1, 3, S, S]``.
        dtype: of the picture, ``float`` or ``uint8``.
        output: name of the embedding.
        positions: name of an output for the positional embeddings, or None.
    """

    file: str
    input: str
    layout: Literal["HWC", "NCHW"] | None = None
    dtype: Literal["float", "uint8"] = "float"
    output: str = "image_embeddings"
    positions: str | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderForm:
    """The decoder that a tool runs.

    Attributes:
        file: as for the encoder.
        coords, labels: name and type of the points and their labels.
        mask_side: side of ``mask_input``; None: there is none.
        adds_point: whether the decoder must add SAM's point of label -1, as the tool does not.
        answers: what it returns.
    """

    file: str
    coords: tuple[str, str] = ("point_coords", "float[B, N, 2]")
    labels: tuple[str, str] = ("point_labels", "float[B, N]")
    mask_side: int | None = 256
    adds_point: bool = False
    answers: Answers = "official"


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool that takes SAM as files.

    Attributes:
        name: as ``--for`` takes it.
        title: how its users call it, with the versions that were read.
        frame: side of the square that the tool scales pictures and prompts to; None: the canvas.
        suffixes: precision to what stands in file names; the precisions that the tool runs.
        canvas: the only side of a canvas that it reads, or None.
        architectures: the only ones that it reads, or None.
        files: path in the directory to template, of what is written beside the networks.
    """

    name: str
    title: str
    frame: int | None
    suffixes: Mapping[str, str] = field(default_factory=lambda: {"fp32": "", "int8": ""})
    canvas: int | None = None
    architectures: tuple[str, ...] | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def squashes(self) -> bool:
        """Whether the tool makes a square of every picture, whatever its shape."""
        return False

    @property
    def takes_best(self) -> bool:
        """Whether the tool takes the best-scored of three masks for any prompt."""
        return False


@dataclass(frozen=True, kw_only=True)
class TwoFiles(Tool):
    """A tool that takes encoder and decoder as ONNX.

    Attributes:
        encoder, decoder: the networks.
    """

    encoder: EncoderForm
    decoder: DecoderForm

    @property
    def takes_best(self) -> bool:
        """Whether the decoder gives it three."""
        return self.decoder.answers == "three"


@dataclass(frozen=True, kw_only=True)
class OneFile(Tool):
    """A tool that takes both networks as one file, from ``one_file.SquareNetwork``.

    Attributes:
        file: its path in the directory; ``.onnx``, or ``.aimodel`` for Core AI.
    """

    file: str

    @property
    def squashes(self) -> bool:
        """Always: tools that take EfficientSAM do."""
        return True

    @property
    def takes_best(self) -> bool:
        """Always, too."""
        return True


@dataclass(frozen=True, kw_only=True)
class Weights(Tool):
    """A tool that runs MobileSAM in PyTorch, and takes weights in the official layout.

    Attributes:
        file: its path in the directory.
    """

    file: str
