"""Runs a TFLite file for a program in another language: names and arrays as lines, float32 in base64.

Reads the signature's name, a line ``NAME BASE64`` for each input, and an empty line; answers alike.
"""

import base64
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main() -> None:
    interpreter = Interpreter(sys.argv[1], num_threads=1)
    while signature := sys.stdin.readline().strip():
        runner = interpreter.get_signature_runner(signature)
        shapes = {name: detail["shape"] for name, detail in runner.get_input_details().items()}
        feeds = {}
        while line := sys.stdin.readline().strip():
            name, text = line.split(" ")
            feeds[name] = np.frombuffer(base64.b64decode(text), "<f4").reshape(shapes[name])
        for name, array in runner(**feeds).items():
            print(name, base64.b64encode(array.astype("<f4").tobytes()).decode())
        print(flush=True)


if __name__ == "__main__":
    main()
