"""The files of a bundle and their tensors, as the manifest describes them."""

from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields

from pocketsam.runtime.json_fields import MAX_NUMBER, Fields, Json
from pocketsam.runtime.verification.tolerance import Tolerance

MAX_POINTS, MAX_PROMPTS = 2**16, 2**16
"""Largest number of points per prompt that a manifest may ask to pad to."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a network.

    Attributes:
        shape: sizes; a string where the size is free, such as ``B`` for the number of prompts.
        dtype: numpy's name of the type.
        layout: ``NCHW`` or ``NHWC`` where the target has both.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    layout: str | None = None

    @classmethod
    def from_json(cls, fields: Fields) -> "TensorInfo":
        """Returns the tensor that the JSON describes."""
        name, dtype = fields.required("name", str), fields.required("dtype", str)
        return cls(name, fields.shape("shape"), dtype, fields.optional("layout", str))

    def to_json(self) -> Json:
        """Returns the manifest's entry of the tensor."""
        layout = {} if self.layout is None else {"layout": self.layout}
        return {"name": self.name, **layout, "shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class BundleFile:
    """A file of a bundle, or a directory such as an ``.mlpackage``.

    Attributes:
        file: its name in the bundle.
        sha256: its hash in hexadecimal; of a directory, see ``bundle.hash_tree``.
        bytes: its size.
    """

    file: str
    sha256: str
    bytes: int

    def to_json(self) -> Json:
        """Returns the manifest's entry of the file."""
        return {"file": self.file, "sha256": self.sha256, "bytes": self.bytes}


@dataclass(frozen=True)
class GoldenFile(BundleFile):
    """The golden vectors.

    Attributes:
        tolerance: what answers may differ by from PyTorch's; None in schema version 1.
        drift: what they may differ by from the files' own answers at export; None: those are left out.
    """

    tolerance: Tolerance | None
    drift: Tolerance | None = None

    @classmethod
    def from_json(cls, fields: Fields, version: int) -> "GoldenFile":
        """Returns the golden file that the JSON describes."""
        if version == 1:
            fields.number("tolerance")
            return cls(**_read_file(fields), tolerance=None)
        tolerance = _read_tolerance(fields.nested("tolerance"))
        drift = fields.get("drift")
        nested = None if drift is None else _read_tolerance(fields.nested("drift"))
        return cls(**_read_file(fields), tolerance=tolerance, drift=nested)

    def to_json(self) -> Json:
        """Returns the manifest's entry of the golden vectors."""
        drift = {} if self.drift is None else {"drift": self.drift.to_json()}
        tolerance = None if self.tolerance is None else self.tolerance.to_json()
        return super().to_json() | {"tolerance": tolerance} | drift


@dataclass(frozen=True)
class NetworkFile(BundleFile):
    """The encoder or the decoder.

    Attributes:
        inputs: what the network takes.
        outputs: what it returns.
        macs: multiply-accumulates of one run; of the decoder, for one prompt. None: not counted.
        intermediates: PyTorch's names of tensors inside the file that parity compares as well
            (key ``stages``). A TFLite file has none.
        max_points: points per prompt in a decoder with static shapes (key ``points``), else None.
        signature: name of the signature in a TFLite file.
        weight_bits: bits that weights use which are multiplied by 8-bit inputs; 8 need a CPU that does
            not saturate, see ``backends.saturation``. None: 7 at most, which are right everywhere.
        details: what else the converter reports, such as ``opset`` or ``float16``; nothing reads it.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    macs: int | None = None
    intermediates: tuple[str, ...] = ()
    max_points: int | None = None
    signature: str | None = None
    weight_bits: int | None = None
    details: Json = field(default_factory=dict)

    @classmethod
    def from_json(cls, fields: Fields) -> "NetworkFile":
        """Returns the network that the JSON describes."""
        return cls(
            **_read_file(fields),
            inputs=tuple(map(TensorInfo.from_json, fields.objects("inputs"))),
            outputs=tuple(map(TensorInfo.from_json, fields.objects("outputs"))),
            macs=fields.optional_whole("macs", 0, MAX_NUMBER),
            intermediates=fields.texts("stages"),
            max_points=fields.optional_whole("points", 1, MAX_POINTS),
            signature=fields.optional("signature", str),
            weight_bits=fields.optional_whole("weight_bits", 1, 8),
            details=fields.unread(),
        )

    def to_json(self) -> Json:
        """Returns the manifest's entry of the network."""
        optional = {
            "macs": self.macs,
            "signature": self.signature,
            "points": self.max_points,
            "weight_bits": self.weight_bits,
        }
        entry = super().to_json() | {key: v for key, v in optional.items() if v is not None}
        entry |= self.details
        if self.intermediates:
            entry["stages"] = list(self.intermediates)
        entry["inputs"] = [tensor.to_json() for tensor in self.inputs]
        entry["outputs"] = [tensor.to_json() for tensor in self.outputs]
        return entry


def _read_file(fields: Fields) -> Json:
    return {
        "file": fields.plain_name("file", fields.required("file", str)),
        "sha256": fields.required("sha256", str),
        "bytes": fields.whole("bytes", 0, MAX_NUMBER),
    }


def _read_tolerance(fields: Fields) -> Tolerance:
    names = [field.name for field in dataclass_fields(Tolerance)]
    return Tolerance(**{name: fields.number(name) for name in names})
