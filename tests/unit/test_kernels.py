"""Faster forms give what the plain ones give, and stay away where they cannot."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from alexnet_nb.kernels import (
    ColumnConv2d,
    FirstConv2d,
    can_block,
    crop_normalize,
    lrn_blocked,
)

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def formula(x, n, k, scale, beta, columns):
    """The printed formula, for channels that a column does not share."""
    parts = []
    for part in x.square().chunk(columns, 1):
        padded = torch.nn.functional.pad(part, (0, 0, 0, 0, n // 2, n // 2))
        sums = [padded[:, i : i + n].sum(1) for i in range(part.shape[1])]
        parts.append(torch.stack(sums, 1))
    return x / (k + scale * torch.cat(parts, 1)) ** beta


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "settings", [(5, 2.0, 1e-4, 0.75, 2), (3, 1.0, 1e-3, 0.6, 1), (1, 1.0, 0.1, 1.0, 3)]
)
def test_blocks_give_the_formula_and_its_gradient(settings, layout):
    x = torch.randn(7, 12, 5, 4, dtype=torch.float64) * 60
    x = x.to(memory_format=LAYOUTS[layout]).requires_grad_()
    grad = torch.randn_like(x)
    expected = formula(x, *settings)
    expected.backward(grad)
    with torch.no_grad():
        torch.testing.assert_close(lrn_blocked(x, None, *settings), expected)
        torch.testing.assert_close(lrn_blocked(x, grad, *settings), x.grad)


def test_what_has_no_memory_of_its_own_is_refused():
    x = torch.randn(2, 12, 5, 4)
    assert can_block(x)
    assert can_block(x.to(memory_format=torch.channels_last))
    assert not can_block(x.transpose(1, 2))
    assert not can_block(x[:0])
    assert not can_block(x.to("meta"))
    asked = []
    torch.func.vmap(lambda row: asked.append(can_block(row)) or row)(x)
    torch.func.vmap(lambda row: asked.append(can_block(x, row)) or row)(x)
    assert asked == [False, False]


def grads(layer, x, form):
    """Output, gradients, and gradients of a sum of squared gradients."""
    layer.form = form
    leaves = [x, *layer.parameters()]
    y = layer(x)
    first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    return y, *first, *second


def assert_rounding(found, wanted):
    """Compare with what rounding may do to a sum of numbers up to the largest."""
    for own, plain in zip(found, wanted, strict=True):
        largest = plain.abs().max().item()
        torch.testing.assert_close(own, plain, rtol=1e-9, atol=1e-11 * largest)


@pytest.mark.parametrize("side", [11, 12, 14, 15, 63, 64, 67])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("edge", [0, 3])
def test_first_convolution_on_blocks_is_the_plain_one(side, padding, edge):
    layer = FirstConv2d(3, 5, 11, 4, padding, edge).double()
    x = torch.randn(2, 3, side, side + 3, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(F.pad(x, (0, edge, 0, edge)), *layer.parameters(), 4, padding)
    found, wanted = (grads(layer, x, form) for form in ("fast", "plain"))
    torch.testing.assert_close(found[0], plain, rtol=1e-12, atol=1e-12)
    assert_rounding(found, wanted)


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_columns_one_by_one_are_the_grouped_convolution(groups, bias, stride):
    layer = ColumnConv2d(6, 12, 3, stride, 1, groups=groups, bias=bias).double()
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(x, layer.weight, layer.bias, stride, 1, groups=groups)
    found, wanted = (grads(layer, x, form) for form in ("fast", "plain"))
    torch.testing.assert_close(found[0], plain, rtol=1e-12, atol=1e-12)
    assert_rounding(found, wanted)


class Calls(TorchDispatchMode):
    """Collect the shapes of convolved kernels, and count casts."""

    def __init__(self):
        super().__init__()
        self.kernels, self.casts = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "conv" in str(function):
            self.kernels.append(tuple(args[1].shape))
        if function is torch.ops.aten._to_copy.default:
            self.casts += 1
        return function(*args, **kwargs or {})


FORMS = {
    "first": (lambda: FirstConv2d(3, 8, 11, 4), (2, 3, 35, 35), [(8, 48, 3, 3)]),
    "columns": (
        lambda: ColumnConv2d(4, 8, 3, groups=2),
        (2, 4, 9, 9),
        [(4, 2, 3, 3)] * 2,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_form_follows_the_measurements(name):
    """On a CPU: blocks in bfloat16 under autocast, the plain convolution otherwise."""
    make, shape, fast = FORMS[name]
    layer, x = make(), torch.randn(shape)
    plain = [tuple(layer.weight.shape)]
    with Calls() as calls:
        layer(x)
    assert calls.kernels == plain
    with Calls() as calls, torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert calls.kernels == (fast if name == "first" else plain)
    layer.form = "fast"
    with Calls() as calls:
        layer(x)
    assert calls.kernels == fast
    layer.form = "measured"  # where autocast is not known
    assert layer.to("meta")(x.to("meta")).is_meta


@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_cast_twice(name):
    """Image, kernel and bias, once each, as the plain convolution does."""
    make, shape, _ = FORMS[name]
    layer, x = make(), torch.randn(shape)
    results = []
    for form in ("plain", "fast"):
        layer.form = form
        with Calls() as calls, torch.autocast("cpu", torch.bfloat16):
            results.append(layer(x))
        assert calls.casts == 3
    assert results[0].dtype == results[1].dtype == torch.bfloat16
    torch.testing.assert_close(*results, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", FORMS)
def test_layer_looks_like_a_plain_one(name):
    make, shape, _ = FORMS[name]
    layer = make()
    layer.form = "fast"
    plain = nn.Conv2d(
        layer.in_channels, 8, layer.kernel_size, layer.stride, groups=layer.groups
    )
    plain.load_state_dict(layer.state_dict())
    assert repr(layer) == repr(plain)
    x = torch.randn(shape)
    traced = torch.jit.trace(layer, x, check_trace=False)
    recorded = torch.fx.symbolic_trace(layer)
    exported = torch.export.export(layer, (x,)).module()
    for record in (traced, recorded, exported):
        with Calls() as calls:
            found = record(x)
        torch.testing.assert_close(found, plain(x))
        assert calls.kernels == [tuple(plain.weight.shape)]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_forms_are_compiled_in_one_graph(name):
    make, shape, _ = FORMS[name]
    layer, x = make(), torch.randn(shape)
    layer.form = "fast"
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    layer.form = "measured"
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("color", [True, False])
def test_input_is_what_is_cut_by_hand(aligned, color):
    images = torch.randint(256, (5, 3, 9, 9), dtype=torch.uint8)
    offsets, flips = torch.randint(4, (5, 2)), torch.arange(5) % 2 == 0
    mean = torch.rand(3, 9, 9) * 255 if aligned else torch.rand(3, 6, 6) * 255
    scale, shift = torch.rand(3) + 50, torch.randn(5, 3) if color else None
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.empty(5, 3, 6, 6, dtype=dtype).to(memory_format=torch.channels_last)
        given = (images, offsets, flips, shift, mean, scale)
        assert crop_normalize(*given, out, 1.1, aligned) is out
        for i, (top, left) in enumerate(offsets.tolist()):
            cut = (slice(None), slice(top, top + 6), slice(left, left + 6))
            x, m = images[i][cut].float(), mean[cut] if aligned else mean
            if flips[i]:
                x, m = x.flip(-1), m.flip(-1) if aligned else m
            x = (x - m) / scale[:, None, None]
            if color:
                x = (x + (shift[i] / scale)[:, None, None]) / 1.1
            torch.testing.assert_close(out[i], x.to(dtype), rtol=0, atol=0)


def test_input_is_written_with_channels_last():
    images = torch.zeros(2, 3, 5, 5, dtype=torch.uint8)
    offsets, flips = torch.zeros(2, 2, dtype=torch.long), torch.zeros(2) > 0
    mean, scale = torch.zeros(3, 1, 1), torch.ones(3)
    out = torch.empty(2, 3, 4, 4)
    with pytest.raises(ValueError, match="expected channels_last"):
        crop_normalize(images, offsets, flips, None, mean, scale, out)
