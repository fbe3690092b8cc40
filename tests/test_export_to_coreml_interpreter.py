"""The interpreter's operations against coremltools' own value inference, or torch, on many shapes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pocketsam.errors import ConversionError
from pocketsam.export.to_coreml.interpreter import MilProgram
from pocketsam.export.to_coreml.registry import OPS

ct = pytest.importorskip("coremltools")
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813
from coremltools.optimize import _utils as packing  # noqa: E402

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def run(name, arrays, opset=None, **parameters):
    """The outputs of one MIL operation on ``arrays`` (by argument name), through the interpreter."""
    opset = opset or ct.target.iOS17
    specs = [mb.TensorSpec(shape=array.shape) for array in arrays.values()]
    keys = list(arrays)

    def body(*values):
        return getattr(mb, name)(**dict(zip(keys, values, strict=True)), **parameters)

    names = ", ".join(f"x{i}" for i in range(len(keys)))
    scope = {"body": body}
    exec(f"def main({names}):\n    return body({names})", scope)
    program = mb.program(input_specs=specs, opset_version=opset)(scope["main"])
    feeds = {f"x{i}": array for i, array in enumerate(arrays.values())}
    runner = MilProgram(program, name)
    found = runner(feeds)
    return [found[key] for key in runner.outputs]


def inferred(name, **arguments):
    """What coremltools itself computes of an operation whose inputs are all constants."""
    held = {}

    @mb.program(input_specs=[mb.TensorSpec(shape=(1,))], opset_version=ct.target.iOS17)
    def program(x):
        out = getattr(mb, name)(**arguments)
        held["outs"] = out if isinstance(out, list | tuple) else [out]
        return mb.identity(x=x)

    return [np.asarray(var.val) for var in held["outs"]]


def same(found, wanted, tolerance=2e-6):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert np.allclose(one, other, rtol=tolerance, atol=tolerance)


SHAPES = [(3,), (2, 5), (1, 3, 4), (2, 3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "name",
    [
        "abs",
        "acos",
        "asin",
        "atan",
        "ceil",
        "cos",
        "cosh",
        "erf",
        "exp",
        "exp2",
        "floor",
        "relu",
        "relu6",
        "round",
        "sigmoid",
        "sign",
        "sin",
        "sinh",
        "softplus",
        "softsign",
        "square",
        "tan",
        "tanh",
    ],
)
def test_unary(name, shape):
    x = np.clip(normal(*shape), -0.99, 0.99) if name in ("acos", "asin") else normal(*shape) * 2
    same(run(name, {"x": x}), inferred(name, x=x), 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["inverse", "log", "rsqrt", "sqrt"])
def test_unary_of_positive_numbers(name, shape):
    x = np.abs(normal(*shape)) + 0.1
    more = {} if name == "sqrt" else {"epsilon": np.float32(1e-3)}
    same(run(name, {"x": x}, **more), inferred(name, x=x, **more), 1e-5)


@pytest.mark.parametrize(
    "shapes", [((4,), (4,)), ((2, 3), (3,)), ((2, 1, 4), (5, 1)), ((1,), (3, 2, 2))]
)
@pytest.mark.parametrize(
    "name",
    [
        "add",
        "sub",
        "mul",
        "real_div",
        "floor_div",
        "mod",
        "maximum",
        "minimum",
        "pow",
        "equal",
        "not_equal",
        "greater",
        "greater_equal",
        "less",
        "less_equal",
    ],
)
def test_binary(name, shapes):
    x, y = (np.abs(normal(*shape)) + 0.5 for shape in shapes)
    if "equal" in name:
        x, y = np.round(x), np.round(y)
    same(run(name, {"x": x, "y": y}), inferred(name, x=x, y=y), 1e-5)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [[0], [-1], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize(
    "name",
    [
        "reduce_l1_norm",
        "reduce_l2_norm",
        "reduce_log_sum",
        "reduce_log_sum_exp",
        "reduce_max",
        "reduce_mean",
        "reduce_min",
        "reduce_sum",
        "reduce_sum_square",
    ],
)
def test_reductions(name, axes, keep):
    x = np.abs(normal(2, 3, 4)) + 0.1
    wanted = inferred(name, x=x, axes=axes, keep_dims=keep)
    same(run(name, {"x": x}, axes=axes, keep_dims=keep), wanted, 1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("clip", (3, 4), {"alpha": np.float32(-0.5), "beta": np.float32(0.5)}),
        ("threshold", (3, 4), {"alpha": np.float32(0.2)}),
        ("elu", (3, 4), {"alpha": np.float32(0.7)}),
        ("leaky_relu", (3, 4), {"alpha": np.float32(0.2)}),
        ("linear_activation", (3, 4), {"alpha": np.float32(0.2), "beta": np.float32(0.3)}),
        ("scaled_tanh", (3, 4), {"alpha": np.float32(0.2), "beta": np.float32(0.3)}),
        ("sigmoid_hard", (3, 4), {"alpha": np.float32(0.2), "beta": np.float32(0.3)}),
        ("softmax", (3, 4, 2), {"axis": 1}),
        ("softmax", (3, 4, 2), {"axis": -1}),
        ("gelu", (3, 4), {"mode": "EXACT"}),
        ("gelu", (3, 4), {"mode": "TANH_APPROXIMATION"}),
        ("gelu", (3, 4), {"mode": "SIGMOID_APPROXIMATION"}),
        ("reshape", (2, 3, 4), {"shape": [4, 6]}),
        ("reshape", (2, 3, 4), {"shape": [-1, 2]}),
        ("transpose", (2, 3, 4), {"perm": [2, 0, 1]}),
        ("expand_dims", (2, 3), {"axes": [0, -1]}),
        ("squeeze", (1, 2, 1, 3), {"axes": [0, 2]}),
        ("squeeze", (1, 2, 1, 3), {}),
        ("split", (4, 6), {"num_splits": 3, "axis": 1}),
        ("split", (4, 6), {"split_sizes": [1, 5], "axis": -1}),
        ("slice_by_index", (4, 5, 6), {"begin": [1, 0, 2], "end": [3, 5, 6], "stride": [1, 2, 3]}),
        (
            "slice_by_index",
            (4, 5, 6),
            {
                "begin": [0, 1, 2],
                "end": [4, 2, -1],
                "begin_mask": [True, False, False],
                "end_mask": [True, False, False],
                "squeeze_mask": [False, True, False],
            },
        ),
        ("slice_by_index", (5, 3), {"begin": [4, 0], "end": [1, 3], "stride": [-1, 1]}),
        ("slice_by_size", (4, 5), {"begin": [1, 2], "size": [2, -1]}),
        ("pad", (2, 3), {"pad": [1, 2], "mode": "constant", "constant_val": np.float32(7)}),
        ("pad", (2, 3, 4), {"pad": [0, 1, 2, 0], "mode": "constant"}),
        ("pad", (2, 5), {"pad": [2, 1], "mode": "reflect"}),
        ("pad", (2, 5), {"pad": [2, 1], "mode": "replicate"}),
        ("tile", (2, 3), {"reps": [2, 3]}),
        ("gather", (4, 5), {"indices": [2, 0], "axis": 0}),
        ("gather", (4, 5), {"indices": [[1, 0], [3, 3]], "axis": -1}),
        ("gather_along_axis", (2, 3), {"indices": [[1, 0, 1]], "axis": 0}),
        ("reverse", (2, 3, 4), {"axes": [0, 2]}),
        ("reverse", (2, 3), {}),
        ("band_part", (4, 5), {"lower": 1, "upper": 0}),
        ("cast", (3, 4), {"dtype": "int32"}),
    ],
)
def test_parameters(name, shape, parameters):
    x = normal(*shape) * 2
    found, wanted = run(name, {"x": x}, **parameters), inferred(name, x=x, **parameters)
    same(found, wanted, 1e-5)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_and_stack(axis):
    x, y = normal(2, 3), normal(2, 3)
    tensors = [torch.from_numpy(x), torch.from_numpy(y)]
    assert torch.equal(OPS["concat"]([x, y], axis), torch.cat(tensors, axis))
    assert torch.equal(OPS["stack"]([x, y], axis), torch.stack(tensors, axis))
    woven = OPS["concat"]([x, y], 1, True).numpy()
    assert np.array_equal(woven, np.stack([x, y], 2).reshape(2, 6))


def test_what_coremltools_does_not_infer():
    x = normal(3, 4)
    same(run("cumsum", {"x": x}, axis=1), [x.cumsum(1)], 1e-5)
    backwards = x[::-1].cumsum(0)[::-1] - x
    same(run("cumsum", {"x": x}, axis=0, exclusive=True, reverse=True), [backwards], 1e-5)
    same(run("reduce_argmax", {"x": x}, axis=1), [x.argmax(1)])
    same(run("reduce_argmin", {"x": x}, axis=0, keep_dims=True), [x.argmin(0)[None]])


@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("flip_y", [False, True])
def test_matrix_products(flip_x, flip_y):
    x, y = normal(2, 3, 4), normal(2, 4, 5)
    wanted = x @ y
    found = run(
        "matmul",
        {"x": x.swapaxes(1, 2) if flip_x else x, "y": y.swapaxes(1, 2) if flip_y else y},
        transpose_x=flip_x,
        transpose_y=flip_y,
    )
    same(found, [wanted], 1e-5)
    weight, bias = normal(6, 4), normal(6)
    same(run("linear", {"x": x}, weight=weight, bias=bias), [x @ weight.T + bias], 1e-5)
    q, k, v = normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)
    scores = np.exp(q @ k.swapaxes(2, 3) / 2)
    attended = scores / scores.sum(-1, keepdims=True) @ v
    found = run("scaled_dot_product_attention", {"query": q, "key": k, "value": v}, ct.target.iOS18)
    same(found, [attended], 1e-5)


def direct_convolution(x, weight, stride, pads, dilation, groups):
    """Sums written out, in float64."""
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), *pads))
    (kh, kw), per = weight.shape[2:], weight.shape[1]
    height = (x.shape[2] - (kh - 1) * dilation - 1) // stride + 1
    width = (x.shape[3] - (kw - 1) * dilation - 1) // stride + 1
    out = np.zeros((len(x), len(weight), height, width))
    for o in range(len(weight)):
        first = o // (len(weight) // groups) * per
        for i, j in np.ndindex(height, width):
            top, left = i * stride, j * stride
            window = x[
                :,
                first : first + per,
                top : top + (kh - 1) * dilation + 1 : dilation,
                left : left + (kw - 1) * dilation + 1 : dilation,
            ]
            out[:, o, i, j] = (window * weight[o]).sum((1, 2, 3))
    return out.astype(np.float32)


@pytest.mark.parametrize(
    ("pad_type", "pad", "pads"),
    [
        ("valid", None, ((0, 0), (0, 0))),
        ("custom", [1, 0, 2, 1], ((1, 0), (2, 1))),
        ("same", None, ((0, 1), (1, 1))),
        ("same_lower", None, ((1, 0), (1, 1))),
    ],
)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions(pad_type, pad, pads, groups):
    x, weight, bias = normal(1, 4, 6, 7), normal(8, 4 // groups, 3, 3), normal(8)
    more = {} if pad is None else {"pad": pad}
    found = run(
        "conv",
        {"x": x},
        weight=weight,
        bias=bias,
        strides=[2, 2],
        pad_type=pad_type,
        groups=groups,
        **more,
    )
    wanted = direct_convolution(x, weight, 2, pads, 1, groups) + bias[:, None, None]
    same(found, [wanted], 1e-4)
    found = run("conv", {"x": x}, weight=weight, dilations=[2, 2], groups=groups)
    same(found, [direct_convolution(x, weight, 1, ((0, 0), (0, 0)), 2, groups)], 1e-4)


def test_transposed_convolutions():
    x, weight, bias = normal(1, 4, 5, 6), normal(4, 3, 2, 2), normal(3)
    found = run("conv_transpose", {"x": x}, weight=weight, bias=bias, strides=[2, 2])
    wanted = np.zeros((1, 3, 10, 12), np.float32) + bias[:, None, None]
    for i, j, di, dj in np.ndindex(5, 6, 2, 2):
        wanted[0, :, 2 * i + di, 2 * j + dj] += x[0, :, i, j] @ weight[:, :, di, dj]
    same(found, [wanted], 1e-5)
    cropped = run(
        "conv_transpose", {"x": x}, weight=weight, strides=[2, 2], pad_type="custom", pad=[1, 0, 0, 1]
    )
    same(cropped, [(wanted - bias[:, None, None])[:, :, 1:, :-1]], 1e-5)


def test_norms():
    x, gamma, beta = normal(2, 3, 4, 5) * 3 + 1, normal(3), normal(3)
    found = run("layer_norm", {"x": x}, axes=[-1], gamma=normal(5) * 0 + 2, epsilon=np.float32(1e-3))
    wanted = 2 * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    same(found, [wanted], 1e-5)
    found = run("layer_norm", {"x": x}, axes=[1], gamma=gamma, beta=beta)  # channels first
    centred = x - x.mean(1, keepdims=True)
    wanted = centred / np.sqrt(x.var(1, keepdims=True) + 1e-5) * gamma[:, None, None]
    same(found, [wanted + beta[:, None, None]], 1e-5)
    mean, variance = normal(3), np.abs(normal(3)) + 0.2
    scaled = (x - mean[:, None, None]) / np.sqrt(variance + 1e-5)[:, None, None]
    wanted = scaled * gamma[:, None, None] + beta[:, None, None]
    found = run("batch_norm", {"x": x}, mean=mean, variance=variance, gamma=gamma, beta=beta)
    same(found, [wanted], 1e-4)
    flat = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + 1e-5)
    same(run("instance_norm", {"x": x}, gamma=gamma * 0 + 1, beta=beta * 0), [flat], 1e-4)


def test_pooling_and_resizing():
    x = normal(1, 2, 6, 7)
    tensor = torch.from_numpy(x)
    found = run("max_pool", {"x": x}, kernel_sizes=[2, 3], strides=[2, 2], pad_type="valid")
    same(found, [F.max_pool2d(tensor, (2, 3), 2).numpy()])
    for exclude in (False, True):
        found = run(
            "avg_pool", {"x": x}, kernel_sizes=[3, 3], strides=[2, 2], pad_type="custom",
            pad=[1, 1, 1, 1], exclude_padding_from_average=exclude,
        )  # fmt: skip
        wanted = F.avg_pool2d(tensor, 3, 2, 1, count_include_pad=not exclude).numpy()
        same(found, [wanted], 1e-5)
    found = run(
        "upsample_bilinear", {"x": x}, scale_factor_height=2, scale_factor_width=3, align_corners=False
    )
    same(found, [F.interpolate(tensor, (12, 21), mode="bilinear", align_corners=False).numpy()], 1e-5)
    found = run("upsample_nearest_neighbor", {"x": x}, scale_factor_height=2, scale_factor_width=2)
    same(found, [x.repeat(2, 2).repeat(2, 3)])
    x = normal(1, 8, 2, 3)
    wanted = F.pixel_shuffle(torch.from_numpy(x), 2).numpy()
    same(run("pixel_shuffle", {"x": x}, upscale_factor=2), [wanted])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_palettes_of_ios16(bits):
    lut, numbers = normal(2**bits), RNG.integers(0, 2**bits, (5, 7)).astype(np.uint8)
    packed = packing.pack_elements_into_bits(numbers, bits)
    found = OPS["constexpr_lut_to_dense"](packed, lut, np.array([5, 7], np.uint32)).numpy()
    assert np.array_equal(found, lut[numbers])


def test_constants_in_blocks():
    data = RNG.integers(-8, 8, (4, 6)).astype(np.int8)
    scale, offset = np.abs(normal(2, 3)), RNG.integers(-3, 3, (2, 3)).astype(np.int8)
    found = OPS["constexpr_blockwise_shift_scale"](data, scale, offset).numpy()
    wanted = (data - np.kron(offset, np.ones((2, 2)))) * np.kron(scale, np.ones((2, 2)))
    assert np.allclose(found, wanted, atol=1e-6)
    lut = normal(2, 1, 4, 1)  # a table for each half of the rows
    numbers = RNG.integers(0, 4, (4, 3)).astype(np.uint8)
    found = OPS["constexpr_lut_to_dense"](numbers, lut).numpy()
    wanted = np.concatenate([lut[0, 0, numbers[:2], 0], lut[1, 0, numbers[2:], 0]])
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("axis", [0, 1])
def test_affine_and_sparse_constants(axis):
    data = RNG.integers(-128, 128, (3, 4)).astype(np.int8)
    scale, zero = np.abs(normal((3, 4)[axis])), RNG.integers(-9, 9, (3, 4)[axis]).astype(np.int8)
    shape = (3, 1) if axis == 0 else (1, 4)
    wanted = (data.astype(np.float32) - zero.reshape(shape)) * scale.reshape(shape)
    found = OPS["constexpr_affine_dequantize"](data, zero, scale, axis).numpy()
    assert np.allclose(found, wanted, atol=1e-6)
    mask = RNG.random((3, 5)) < 0.5
    values = normal(int(mask.sum()))
    bits = np.packbits(mask.ravel(), bitorder="little")
    found = OPS["constexpr_sparse_to_dense"](values, bits, np.array([3, 5], np.uint32)).numpy()
    assert np.array_equal(found[mask], values)
    assert not found[~mask].any()


def test_quantized_activations():
    x = normal(2, 3) * 3
    more = {"scale": np.float32(0.05), "zero_point": np.int8(3), "output_dtype": "int8"}
    same(run("quantize", {"input": x}, **more), [np.clip(np.round(x / 0.05) + 3, -128, 127)], 1e-6)
    numbers = np.array([[-128, 0, 127]], np.int8)
    wanted = (numbers.astype(np.float32) + 4) * np.float32(0.1)
    found = OPS["dequantize"](numbers, np.float32(0.1), np.int8(-4)).numpy()
    assert np.allclose(found, wanted)


def test_float16_is_rounded_after_each_operation():
    @mb.program(input_specs=[mb.TensorSpec(shape=(2,))], opset_version=ct.target.iOS16)
    def program(x):
        half = mb.cast(x=x, dtype="fp16")
        grown = mb.mul(x=half, y=np.float16(1000))
        return mb.cast(x=mb.mul(x=grown, y=np.float16(0.001)), dtype="fp32")

    runner, x = MilProgram(program), np.array([1.0001, 100.0], np.float32)
    (name,) = runner.outputs
    half = x.astype(np.float16)
    with np.errstate(over="ignore"):
        wanted = (half * np.float16(1000)) * np.float16(0.001)
    assert np.array_equal(runner({"x": x})[name], wanted.astype(np.float32))
    assert np.isinf(wanted[1])
    seen = {}
    wide = runner(
        {"x": x}, observe=lambda key, value: seen.update({key: value.abs().max()}), rounding=False
    )
    assert np.isfinite(wide[name]).all()
    assert max(seen.values()) > 65504  # the headroom check sees what float16 could not hold


def test_an_unknown_operation_is_named():
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4, 4, 1))], opset_version=ct.target.iOS16)
    def program(x):
        return mb.space_to_batch(x=mb.relu(x=x), block_shape=[2, 2], paddings=[[0, 0], [0, 0]])

    with pytest.raises(ConversionError, match=r"my program: .*does not simulate: space_to_batch \(1\)"):
        MilProgram(program, "my program")


def test_wrong_feeds_are_named():
    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS16)
    def program(x):
        return mb.relu(x=x)

    with pytest.raises(ConversionError, match=r"input x wants \[1, 4\], got \[4\]"):
        MilProgram(program)({"x": np.zeros(4, np.float32)})
    with pytest.raises(ConversionError, match="got nothing"):
        MilProgram(program)({})
