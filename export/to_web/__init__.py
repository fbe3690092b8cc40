"""A page that segments in the browser: ONNX networks, onnxruntime-web, and the page's own modules."""

from pathlib import Path

from pocketsam.export.target import Converter, Target
from pocketsam.export.to_onnx import TARGET as ONNX


def _open_converter() -> Converter:
    from pocketsam.export.to_onnx import convert

    return convert


def _fetch_engine() -> None:
    from pocketsam.export.to_web.onnxruntime_web import read_engine

    read_engine()


def _add_page(folder: Path) -> None:
    from pocketsam.export.to_web.site import add_page

    add_page(folder)


TARGET = Target(
    name="web",
    extra="export",
    suffix=".onnx",
    packages=ONNX.packages,
    precisions=tuple(ONNX.precision(name) for name in ("fp32", "int8-weights", "int8")),
    default_precision="int8-weights",  # all of it runs on WebGPU, where int8 would leave the GPU
    max_bytes=ONNX.max_bytes,
    next_step="python -m http.server --directory {path}, then open http://localhost:8000",
    open_converter=_open_converter,
    prepare=_fetch_engine,
    add_files=_add_page,
)
