"""The manifest of a bundle: all that ``manifest.json`` may hold, with types, defaults and checks.

The exporter builds a ``Manifest`` and writes ``to_json()``. ``from_json`` refuses a missing field, a
wrong type and a value out of range.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path

from pocketsam.errors import BundleError, IntegrityError
from pocketsam.runtime.json_fields import Fields, Json
from pocketsam.runtime.manifest_files import GoldenFile, NetworkFile
from pocketsam.runtime.verification.tolerance import GRADE_NAMES, Grade
from pocketsam.thresholds import Thresholds
from pocketsam.traits import MAX_EMBEDDING_SIDE, Normalisation, Traits

SCHEMA_VERSION = 2
"""Version 1 had no grades, and golden vectors with a single number as tolerance."""
MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.npz"
IMAGE_SIZES = range(64, 4096 + 1, 64)


@dataclass(frozen=True)
class ModelInfo:
    """The checkpoint that a bundle was made from.

    Attributes:
        architecture: the network's name, such as ``mobile_sam``.
        checkpoint: the checkpoint's file name, or another name that the loader knows.
        checkpoint_sha256: hash of the file, or of seeded weights.
        trained: False for random weights, which give masks without meaning.
    """

    architecture: str
    checkpoint: str
    checkpoint_sha256: str
    trained: bool

    @classmethod
    def from_json(cls, fields: Fields) -> "ModelInfo":
        """Returns the model that the JSON describes."""
        keys = ("architecture", "checkpoint", "checkpoint_sha256")
        architecture, checkpoint, sha256 = (fields.required(key, str) for key in keys)
        return cls(architecture, checkpoint, sha256, fields.required("trained", bool))


@dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes the encoder's input.

    Attributes:
        input: name of the encoder's input: ``pixel_values`` (normalised) or ``image`` (0..255).
        color, layout: order of the channels and of the axes.
        resize, filter, padding: how the picture gets onto the square canvas, in words.
        mean, std: of red, green and blue in 0..255.
        stretch: whether the picture's least and greatest value become 0 and 1 before that; see
            ``Normalisation``.
    """

    input: str
    color: str
    layout: str
    resize: str
    filter: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: str
    stretch: bool = False

    @classmethod
    def from_json(cls, fields: Fields) -> "Preprocessing":
        """Returns the preprocessing that the JSON describes."""
        texts = ("input", "color", "layout", "resize", "filter", "padding")
        return cls(
            **{key: fields.required(key, str) for key in texts},  # type: ignore[arg-type]
            mean=fields.channels("mean"),
            std=fields.channels("std"),
            stretch=fields.optional("stretch", bool) or False,
        )

    def to_json(self) -> Json:
        """Returns the manifest's entry of the preprocessing; ``stretch`` only where it is true."""
        entry = vars(self) | {"mean": list(self.mean), "std": list(self.std)}
        return {key: value for key, value in entry.items() if key != "stretch" or value}


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says. The attributes stand in the order of its keys.

    Attributes:
        schema_version: version of this page; a reader refuses a newer one.
        model: the checkpoint.
        target: ``onnx``, ``coreml``, ``tflite``, ``coreai`` or ``executorch``.
        precision: ``fp32``, or another that the target offers.
        image_size: side of the square canvas in pixels, one of ``IMAGE_SIZES``.
        preprocessing: how a photograph becomes the encoder's input.
        prompt_labels: meaning of the point labels, by name.
        mask_threshold: logits above it are mask.
        tools: versions of what wrote the bundle.
        encoder, decoder: the networks.
        golden: the golden vectors.
        embedding_stride: pixels of the canvas to a cell of the embedding, along a side.
        multimask: whether masks 1 to 3, the readings of an ambiguous prompt, were trained.
        thresholds: what suits the checkpoint's scores in ``everything``; SAM's where there are none.
        grade: what the verification found the masks to be worth; None if the bundle was not verified.
        parity: the report of the verification with PyTorch; None if the bundle was not verified.
        also: further precisions, each a bundle in a directory of that name inside this one; by name,
            the sha256 of its manifest (empty in schema version 1).
    """

    schema_version: int
    model: ModelInfo
    target: str
    precision: str
    image_size: int
    preprocessing: Preprocessing
    prompt_labels: Mapping[str, int]
    mask_threshold: float
    tools: Mapping[str, str]
    encoder: NetworkFile
    decoder: NetworkFile
    golden: GoldenFile
    embedding_stride: int = Traits.stride
    multimask: bool = True
    thresholds: Thresholds = field(default_factory=Thresholds)
    grade: Grade | None = None
    parity: Json | None = None
    also: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: object, where: Path) -> "Manifest":
        """Returns the manifest that parsed JSON describes.

        Keys that this version does not know are kept in a network's ``details``, and ignored elsewhere.

        Args:
            value: what ``json.loads`` returned.
            where: the manifest's path, for errors.

        Raises:
            IntegrityError: a field is missing, or of a wrong type, or out of range.
            BundleError: a newer schema.
        """
        fields = Fields(value, where, "")
        version = _check_version(fields.get("schema_version"), where)
        size = fields.required("image_size", int)
        if size not in IMAGE_SIZES:
            raise IntegrityError(f"{where}: image_size {size} is no multiple of 64, from 64 to 4096")
        return cls(
            schema_version=version,
            model=ModelInfo.from_json(fields.nested("model")),
            target=fields.required("target", str),
            precision=fields.required("precision", str),
            image_size=size,
            preprocessing=Preprocessing.from_json(fields.nested("preprocessing")),
            prompt_labels=fields.mapping("prompt_labels", int),
            mask_threshold=fields.number("mask_threshold"),
            tools=fields.mapping("tools", str),
            encoder=NetworkFile.from_json(fields.nested("encoder")),
            decoder=NetworkFile.from_json(fields.nested("decoder")),
            golden=GoldenFile.from_json(fields.nested("golden"), version),
            embedding_stride=_read_stride(fields, size, where),
            multimask=fields.optional("multimask", bool) is not False,
            thresholds=_read_thresholds(fields, where),
            grade=fields.optional_choice("grade", GRADE_NAMES),
            parity=fields.optional("parity", dict),
            also=_read_also(fields, version, where),
        )

    def to_json(self) -> Json:
        """Returns the manifest as ``json.dumps`` takes it, the keys in the order of the attributes.

        ``embedding_stride`` and ``multimask`` are left out where they are SAM's.
        """
        usual = {"embedding_stride": Traits.stride, "multimask": Traits.multimask}
        entries = {
            "model": dict(vars(self.model)),
            "preprocessing": self.preprocessing.to_json(),
            "prompt_labels": dict(self.prompt_labels),
            "tools": dict(self.tools),
            "encoder": self.encoder.to_json(),
            "decoder": self.decoder.to_json(),
            "golden": self.golden.to_json(),
            "thresholds": dict(vars(self.thresholds)),
            "also": dict(self.also),
        }
        written = vars(self) | entries
        return {key: value for key, value in written.items() if value != usual.get(key, ...)}

    @property
    def traits(self) -> Traits:
        """What sets the network apart from SAM."""
        pixels = self.preprocessing
        normalisation = Normalisation(pixels.mean, pixels.std, pixels.stretch)
        return Traits(self.embedding_stride, normalisation, self.multimask, self.image_size)

    @property
    def embedding_side(self) -> int:
        """Side of the embedding: S/16 in SAM."""
        return self.traits.embedding_side(self.image_size)

    @property
    def mask_side(self) -> int:
        """Side of the low-resolution masks and of a mask input: S/4 in SAM."""
        return self.traits.mask_side(self.image_size)

    def network(self, name: str) -> NetworkFile:
        """Returns the entry of ``encoder`` or ``decoder``."""
        return {"encoder": self.encoder, "decoder": self.decoder}[name]


def _check_version(version: object, where: Path) -> int:
    if type(version) is not int or version < 1:
        raise IntegrityError(f"{where}: has no schema_version")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema version {version}, and this pocketsam reads up to {SCHEMA_VERSION}; "
            "upgrade pocketsam"
        )
    return version


def _read_stride(fields: Fields, size: int, where: Path) -> int:
    stride = fields.optional_whole("embedding_stride", 1, 64) or Traits.stride
    if size % stride or size // stride > MAX_EMBEDDING_SIDE:
        raise IntegrityError(
            f"{where}: embedding_stride {stride} does not go with image_size {size}: the embedding's "
            f"side is a whole number up to {MAX_EMBEDDING_SIDE}"
        )
    return stride


def _read_thresholds(fields: Fields, where: Path) -> Thresholds:
    if fields.get("thresholds") is None:
        return Thresholds()
    nested = fields.nested("thresholds")
    try:
        return Thresholds(
            **{field.name: nested.number(field.name) for field in dataclass_fields(Thresholds)}
        )
    except ValueError as error:
        raise IntegrityError(f"{where}: {error}") from None


def _read_also(fields: Fields, version: int, where: Path) -> dict[str, str]:
    if version == 1:
        return {fields.plain_name("also", name): "" for name in fields.texts("also")}
    also = fields.mapping("also", str) if fields.get("also") is not None else {}
    for name, sha256 in also.items():
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise IntegrityError(f"{where}: also.{name} is {sha256!r}, no sha256 of its manifest")
    return {fields.plain_name("also", name): sha256 for name, sha256 in also.items()}
