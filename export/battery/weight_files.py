"""The constants inside ONNX, TFLite and Core ML files, to read and to damage; opens all kinds."""

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pocketsam.export.battery.engine_weights import AimodelWeights, PteWeights
from pocketsam.export.battery.weight_types import Weight, WeightFile, is_epsilon


class OnnxWeights(WeightFile):
    """Initializers of an ONNX file."""

    def __init__(self, path: Path) -> None:
        import onnx

        self._onnx, self._path, self._model = onnx, path, onnx.load(str(path))

    def weights(self) -> Iterator[Weight]:
        """Yields the initializers."""
        for tensor in self._model.graph.initializer:
            yield Weight(tensor.name, self._onnx.numpy_helper.to_array(tensor).copy())

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Replaces an initializer."""
        (tensor,) = (t for t in self._model.graph.initializer if t.name == name)
        tensor.CopyFrom(self._onnx.numpy_helper.from_array(values, name))
        self._save()

    def change_epsilon(self, value: float) -> bool:
        """Changes the attribute of the first LayerNormalization, or a constant of that value."""
        for node in self._model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "epsilon":
                    attribute.f = value
                    self._save()
                    return True
        for weight in self.weights():
            if weight.values.size == 1 and is_epsilon(weight.values.item()):
                self.write(weight.name, np.full_like(weight.values, value))
                return True
        return False

    def _save(self) -> None:
        self._onnx.save(self._model, str(self._path))


class TfliteWeights(WeightFile):
    """Buffers of a TFLite file, changed where they lie."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._path, self._data = path, bytearray(path.read_bytes())
        self._types = {
            schema.TensorType.FLOAT32: np.float32,
            schema.TensorType.FLOAT16: np.float16,
            schema.TensorType.INT8: np.int8,
            schema.TensorType.INT32: np.int32,
        }
        model = schema.Model.GetRootAs(self._data, 0)
        graph = model.Subgraphs(0)
        self._views: dict[str, NDArray[Any]] = {}
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            buffer = model.Buffers(tensor.Buffer())
            kind = self._types.get(tensor.Type())
            if kind is not None and (data := self._bytes(buffer)) is not None:
                shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
                self._views[tensor.Name().decode()] = data.view(kind).reshape(shape)

    def _bytes(self, buffer: Any) -> NDArray[np.uint8] | None:
        """Returns a view of a buffer, inside the flatbuffer or, as the quantizer has it, after it."""
        if buffer.DataLength():
            inside: NDArray[np.uint8] = buffer.DataAsNumpy()
            return inside
        if buffer.Offset() > 1:
            return np.frombuffer(self._data, np.uint8, buffer.Size(), buffer.Offset())
        return None

    def weights(self) -> Iterator[Weight]:
        """Yields the constant tensors."""
        for name, view in self._views.items():
            yield Weight(name, view.copy())

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Replaces a constant tensor."""
        self._views[name][...] = values.reshape(self._views[name].shape)
        self._path.write_bytes(self._data)

    def change_epsilon(self, value: float) -> bool:
        """Changes the first constant of that value: normalisations are taken apart here."""
        for name, view in self._views.items():
            if view.size == 1 and view.dtype.kind == "f" and is_epsilon(view.item()):
                self.write(name, np.full_like(view, value))
                return True
        return False


class CoremlWeights(WeightFile):
    """Blobs of an ``.mlpackage``, changed where they lie in its ``weight.bin``."""

    TYPES: ClassVar = {10: np.float16, 11: np.float32, 21: np.int8, 31: np.uint8, 22: np.int16}
    """Core ML's numbers of the types in ``MIL.proto``."""

    def __init__(self, path: Path) -> None:
        from coremltools.proto import Model_pb2

        root = path / "Data" / "com.apple.CoreML"
        self._model_path, self._bin = root / "model.mlmodel", root / "weights" / "weight.bin"
        self._spec = Model_pb2.Model.FromString(self._model_path.read_bytes())
        self._data = bytearray(self._bin.read_bytes())
        self._views: dict[str, NDArray[Any]] = {}
        (function,) = self._spec.mlProgram.functions.values()
        (block,) = function.block_specializations.values()
        self._operations = list(block.operations)
        for operation in self._operations:
            attributes = {**operation.attributes}
            bound = {
                key: binding.value
                for key, argument in operation.inputs.items()
                for binding in argument.arguments
                if binding.WhichOneof("binding") == "value"
            }
            for key, value in (attributes | bound).items():
                if value.WhichOneof("value") == "blobFileValue":
                    self._views[f"{operation.outputs[0].name}.{key}"] = self._view(value)

    def _view(self, value: Any) -> NDArray[Any]:
        kind = self.TYPES[value.type.tensorType.dataType]
        shape = [d.constant.size for d in value.type.tensorType.dimensions]
        # a record of 64 bytes: 0xDEADBEEF, type, size in bytes, where the values begin
        _, _, size, start = struct.unpack_from("<IIQQ", self._data, value.blobFileValue.offset)
        values = np.frombuffer(self._data, np.uint8, size, start).view(kind)
        return values.reshape(shape) if values.size == np.prod(shape) else values

    def weights(self) -> Iterator[Weight]:
        """Yields the blobs."""
        for name, view in self._views.items():
            yield Weight(name, view.copy())

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Replaces a blob."""
        self._views[name][...] = values.reshape(self._views[name].shape)
        self._bin.write_bytes(self._data)

    def change_epsilon(self, value: float) -> bool:
        """Changes the first constant that a layer_norm takes as epsilon."""
        wanted = {
            binding.name
            for operation in self._operations
            if operation.type == "layer_norm" and "epsilon" in operation.inputs
            for binding in operation.inputs["epsilon"].arguments
        }
        for operation in self._operations:
            if operation.type == "const" and operation.outputs[0].name in wanted:
                tensor = operation.attributes["val"].immediateValue.tensor
                if tensor.WhichOneof("value") == "floats":
                    tensor.floats.values[0] = value
                else:
                    tensor.bytes.values = np.float16(value).tobytes()
                self._model_path.write_bytes(self._spec.SerializeToString())
                return True
        return False


KINDS = {
    ".onnx": OnnxWeights,
    ".tflite": TfliteWeights,
    ".mlpackage": CoremlWeights,
    ".aimodel": AimodelWeights,
    ".pte": PteWeights,
}


def open_weights(path: Path, copy: Path) -> WeightFile:
    """Copies a network's file or directory and opens the copy's constants.

    Args:
        path: what an exporter wrote.
        copy: where the copy goes; what was there is removed.
    """
    if path.is_dir():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
    else:
        shutil.copyfile(path, copy)
    opened: WeightFile = KINDS[path.suffix](copy)
    return opened
