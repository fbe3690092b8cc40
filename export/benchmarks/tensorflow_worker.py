"""A SavedModel to an 8-bit TFLite file by TensorFlow's own converter; runs in TensorFlow's environment.

``python tensorflow_worker.py dynamic|integer SAVED_MODEL OUTPUT PHOTOS``, for ``int8_converters``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main(kind: str, saved: str, output: str, photos: str) -> None:
    """Writes ``output``."""
    import numpy as np
    import tensorflow as tf  # type: ignore[import-untyped]  # it lives in another environment

    converter = tf.lite.TFLiteConverter.from_saved_model(saved)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "integer":

        def representative() -> Iterator[list[Any]]:
            for photo in np.load(photos):
                yield [np.ascontiguousarray(photo[None])]

        converter.representative_dataset = representative
    Path(output).write_bytes(converter.convert())


if __name__ == "__main__":
    main(*sys.argv[1:])
