"""Apple's rules for the Neural Engine: each is broken by a program of a few operations, and found."""

import numpy as np
import pytest

from pocketsam.export.to_coreml.interpreter import MilProgram
from pocketsam.export.to_coreml.linter import lint
from pocketsam.export.to_coreml.neural_engine_rules import padded_bytes, summarise

ct = pytest.importorskip("coremltools")
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813

HALF = np.float16


def program(body, *shape):
    """A program of one float16 input, with its float32 casts at the ends."""

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=ct.target.iOS17)
    def main(x):
        return mb.cast(x=body(mb.cast(x=x, dtype="fp16")), dtype="fp32")

    return MilProgram(main)


def weights(*shape):
    return np.full(shape, 0.5, HALF)


BROKEN = {
    "a linear layer": (lambda x: mb.linear(x=x, weight=weights(32, 32)), (1, 32)),
    "a norm in steps": (lambda x: mb.reduce_mean(x=x, axes=[1], keep_dims=True), (1, 8, 1, 32)),
    "several heads in one product": (lambda x: mb.matmul(x=x, y=x), (1, 4, 32, 32)),
    "softmax along height or width": (lambda x: mb.softmax(x=x, axis=-1), (1, 8, 1, 32)),
    "a copy with another last axis": (lambda x: mb.reshape(x=x, shape=[1, 32, 64]), (1, 64, 32)),
    "a comparison": (
        lambda x: mb.cast(x=mb.equal(x=x, y=HALF(1)), dtype="fp16"),
        (1, 64),
    ),
    "an indexed read": (lambda x: mb.gather(x=x, indices=[1, 0], axis=0), (2, 32)),
    "minus infinity": (lambda x: mb.add(x=x, y=HALF(-np.inf)), (1, 32)),
    "a stride with other factors than 2 and 3": (
        lambda x: mb.conv(x=x, weight=weights(4, 4, 1, 1), strides=[5, 5], pad_type="valid"),
        (1, 4, 160, 160),
    ),
    "a last axis of one element": (lambda x: mb.relu(x=x), (1, 32, 1)),
    "a last axis of less than 64 bytes, or not a multiple": (lambda x: mb.relu(x=x), (1, 4, 33)),
    "computed in float32": (
        lambda x: mb.cast(x=mb.relu(x=mb.cast(x=x, dtype="fp32")), dtype="fp16"),
        (1, 32),
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_found(rule):
    body, shape = BROKEN[rule]
    findings = lint(program(body, *shape))
    assert {entry["rule"] for entry in findings} == {rule}
    (line,) = summarise(findings)
    assert rule in line
    assert findings[0]["remedy"] in line


def test_a_program_that_keeps_the_rules():
    def body(x):
        x = mb.conv(x=x, weight=weights(64, 32, 1, 1), pad_type="valid", strides=[2, 2])
        x = mb.layer_norm(x=mb.gelu(x=x), axes=[1], epsilon=HALF(1e-5))
        return mb.softmax(x=mb.transpose(x=x, perm=[0, 2, 1, 3]), axis=1)

    assert lint(program(body, 1, 32, 64, 64)) == []


def test_padding():
    assert padded_bytes([1, 16, 32, 224, 7], 2) == 16 * 32 * 224 * (64 - 14)  # Apple's own example
    assert padded_bytes([5, 1], 2) == 5 * 62  # 32 times the memory
    assert padded_bytes([5, 1], 1) == 5 * 63
    assert padded_bytes([3, 64], 2) == padded_bytes([], 2) == 0
    found = lint(program(lambda x: mb.relu(x=x), 1, 4, 33))
    padded = {entry["where"].split()[0]: entry["padded_bytes"] for entry in found}
    wide = 4 * (192 - 4 * 33)  # the output is float32
    assert padded == {"input": 4 * 62, "cast": 4 * 62, "relu": 4 * 62, "output": wide}
