"""The Triton kernels on a CPU, through the layers, autograd and torch.compile.

`test_triton_kernels.py` runs this file in a process where Triton interprets.
"""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from alexnet_nb.augmentation import AugmentParams, InputTransform
from alexnet_nb.kernels import can_fuse, crop_normalize
from alexnet_nb.lrn import LRN, SpatialNorm, lrn
from alexnet_nb.recipes import caffe, paper, source2012, torchvision
from alexnet_nb.triton_kernels import fused_lrn, fused_spatial_norm
from helpers import LONG

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# a result is rounded once; a factor of two for the sums before it
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SETTINGS = [
    (5, 2.0, 1e-4, 0.75, 1),
    (5, 2.0, 2e-5, 0.75, 2),
    (1, 1.0, 1e-3, 0.75, 2),
    (3, 1.0, 1e-3, 0.5, 2),
    (7, 2.0, 1e-4, 0.75, 1),
    (7, 0.5, 1e-4, 0.5, 2),
    (9, 2.0, 1e-4, 0.6, 2),
]
SHAPES = [
    (1, 3, 1, 1),
    (2, 1, 3, 5),
    (3, 7, 4, 1),
    (2, 12, 5, 7),
    (1, 10, 33, 2),
    (2, 96, 3, 3),
    (5, 8),
    (2, 6, 9),
    (1, 6, 2, 3, 2),
]


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Count what the kernels are asked for; and every test draws the same numbers."""
    torch.manual_seed(0)
    counted = []

    def count(name, function):
        def counting(x, grad, *settings):
            counted.append("backward" if grad is not None else "forward")
            return function(x, grad, *settings)

        monkeypatch.setattr(f"alexnet_nb.triton_kernels.{name}", counting)

    count("fused_lrn", fused_lrn)
    count("fused_spatial_norm", fused_spatial_norm)
    return counted


def naive_lrn(x, n, k, scale, beta, columns):
    """The printed formula, kernel map by kernel map."""
    maps, size = [], x.shape[1] // columns
    for i in range(x.shape[1]):
        first = i // size * size
        window = x[:, max(first, i - n // 2) : min(first + size, i + n // 2 + 1)]
        maps.append(x[:, i] / (k + scale * (window**2).sum(1)) ** beta)
    return torch.stack(maps, 1)


def naive_spatial_norm(x):
    """The released code's formula, pixel by pixel."""
    rows = []
    for i, j in itertools.product(range(x.shape[2]), range(x.shape[3])):
        window = x[:, :, max(0, i - 2) : i + 3, max(0, j - 2) : j + 3]
        sums = (window**2).sum((2, 3))
        rows.append(x[:, :, i, j] / (1 + 0.001 * sums / 25) ** 0.75)
    return torch.stack(rows, 2).reshape(x.shape)


def draw(shape, layout="contiguous", dtype=torch.float32, scale=40):
    t = (torch.randn(shape) * scale).to(dtype)
    return t.to(memory_format=LAYOUTS[layout]) if len(shape) == 4 else t


def compare(function, reference, x, grad):
    """Value and gradient, beside those of the naive formula in float64."""
    wide = x.detach().double().requires_grad_()
    wanted = reference(wide)
    (wanted_grad,) = torch.autograd.grad(wanted, wide, grad.double())
    x = x.detach().requires_grad_()
    found = function(x)
    (found_grad,) = torch.autograd.grad(found, x, grad)
    assert found.dtype == found_grad.dtype == x.dtype
    assert found.stride() == found_grad.stride() == x.stride()
    tolerance = TOLERANCES[x.dtype]
    for ours, theirs in ((found, wanted.detach()), (found_grad, wanted_grad)):
        atol = tolerance * theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lrn_of_any_shape_and_setting(shape, settings, launches):
    n, k, scale, beta, columns = settings
    if shape[1] % columns:
        columns = 1
    layer = LRN(n, k, scale, beta, columns=columns)
    launches.clear()
    for layout in LAYOUTS if len(shape) == 4 else ["contiguous"]:
        x, grad = draw(shape, layout), draw(shape, scale=1)
        assert can_fuse(x)
        compare(layer, lambda x: naive_lrn(x, n, k, scale, beta, columns), x, grad)
    assert launches == ["forward", "backward"] * (len(launches) // 2) != []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_lrn_of_each_type(dtype, layout, launches):
    x, grad = draw((2, 12, 5, 7), layout, dtype, 300), draw((2, 12, 5, 7), dtype=dtype)
    layer = LRN(alpha_over="mean", columns=2)
    launches.clear()
    compare(layer, lambda x: naive_lrn(x, 5, 2, 2e-5, 0.75, 2), x, grad)
    assert launches == ["forward", "backward"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 1), (2, 5, 2, 3), (3, 4, 9, 7), (1, 40, 6, 13)], ids=str
)
def test_spatial_norm(shape, dtype, layout, launches):
    x, grad = draw(shape, layout, dtype), draw(shape, dtype=dtype, scale=1)
    compare(SpatialNorm(), naive_spatial_norm, x, grad)
    assert launches == ["forward", "backward"]


@pytest.mark.parametrize("layer", [LRN(columns=2), SpatialNorm()], ids=["lrn", "5x5"])
def test_gradients_in_another_layout(layer, launches):
    x = draw((2, 4, 6, 5), "channels_last").requires_grad_()
    dense = draw((2, 4, 6, 5))
    strided = dense.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    launches.clear()
    for grad in (dense, strided, dense[:1, :1, :1, :1].expand(x.shape)):
        found, copied = (
            torch.autograd.grad(layer(x), x, g)[0]
            for g in (grad, grad.contiguous(memory_format=torch.channels_last))
        )
        assert torch.equal(found, copied)
    assert launches.count("backward") == 6


def test_zeros_without_k():
    """A window beyond the column, of zeros only, must not make NaN."""
    settings = (3, 0.0, 1.0, 0.75, 1)
    x, grad = torch.tensor([[0.0, 3.0, 0.0]]), torch.ones(1, 3)
    compare(
        lambda x: lrn(x, 3, k=0.0, alpha=1.0),
        lambda x: naive_lrn(x, *settings),
        x,
        grad,
    )


@pytest.mark.parametrize("layer", [LRN(columns=2), SpatialNorm()], ids=["lrn", "5x5"])
def test_what_takes_the_formula(layer, launches):
    x = draw((2, 4, 6, 5))
    launches.clear()
    layer(x[:0])
    layer(x.double())
    layer(x.permute(0, 1, 3, 2))
    traced = torch.jit.trace(layer, x, check_trace=False)
    exported = torch.export.export(layer, (x,))
    strict = torch.export.export(layer, (x,), strict=True)
    for graph in (traced.inlined_graph, exported.graph, strict.graph):
        assert not re.search(r"alexnet_nb(::|\.\w+\.default)", str(graph))
    if isinstance(layer, SpatialNorm):  # LRN has rules of its own
        torch.func.vmap(layer)(x[None])
        torch.func.jvp(layer, (x,), (x,))
    assert launches == []


@pytest.mark.parametrize("layer", [LRN(columns=2), SpatialNorm()], ids=["lrn", "5x5"])
def test_derivatives_of_every_kind(layer):
    x, v = draw((2, 4, 3, 4)), draw((2, 4, 3, 4), scale=1)
    wide = x.double()  # the formula
    _, tangent = torch.func.jvp(layer, (x,), (v,))
    _, wanted = torch.func.jvp(layer, (wide,), (v.double(),))
    torch.testing.assert_close(tangent.double(), wanted, rtol=1e-5, atol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        found = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    torch.testing.assert_close(found, tangent)

    def value(x):
        return layer(x).square().sum()

    (one,) = torch.autograd.grad(value(x.requires_grad_()), x, create_graph=True)
    (two,) = torch.autograd.grad((one * v).sum(), x)
    wide.requires_grad_()
    (one,) = torch.autograd.grad(value(wide), wide, create_graph=True)
    (wanted,) = torch.autograd.grad((one * v).sum(), wide)
    torch.testing.assert_close(two.double(), wanted, rtol=1e-4, atol=1e-5)
    each = torch.func.vmap(torch.func.grad(value))(x.detach()[:, None])
    torch.testing.assert_close(each[:, 0], torch.func.grad(value)(x.detach()))
    batch = torch.stack([v, 2 * v])
    found = torch.autograd.grad(layer(x), x, batch, is_grads_batched=True)[0]
    torch.testing.assert_close(found[1], 2 * found[0])


class Net(nn.Module):
    """Both norms behind a convolution; its output has the layout of the input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norms = nn.Sequential(LRN(columns=2), SpatialNorm())

    def forward(self, x):
        return self.norms(self.conv(x).relu()).square().mean(3)


COMPILED = [(layout, "aot_eager") for layout in LAYOUTS]
COMPILED += [
    (layout, "inductor") for layout in LAYOUTS if LONG or layout != "contiguous"
]


@pytest.mark.parametrize(("layout", "backend"), COMPILED)
def test_compiled_in_one_graph(layout, backend, launches):
    torch._dynamo.reset()
    net = Net().to(memory_format=LAYOUTS[layout])
    x = draw((2, 3, 7, 8), layout)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for size in (2, 3):
        x = draw((size, 3, 7, 8), layout).requires_grad_()
        wanted = torch.autograd.grad(net(x).sum(), [x, *net.parameters()])
        launches.clear()
        y = compiled(x)
        found = torch.autograd.grad(y.sum(), [x, *net.parameters()])
        assert launches == ["forward"] * 2 + ["backward"] * 2
        torch.testing.assert_close(y, net(x))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_operators_keep_the_rules_of_torch():
    x, grad = draw((2, 4, 5, 3)).requires_grad_(), draw((2, 4, 5, 3), scale=1)
    for layout in LAYOUTS.values():
        x = x.detach().to(memory_format=layout).requires_grad_()
        ops, settings = torch.ops.alexnet_nb, (5, 2.0, 1e-4, 0.75, 2)
        torch.library.opcheck(ops.lrn, (x, *settings))
        torch.library.opcheck(ops.spatial_norm, (x, 4e-5))
        x = x.detach()
        torch.library.opcheck(ops.lrn_backward, (grad, x, *settings))
        torch.library.opcheck(ops.spatial_norm_backward, (grad, x, 4e-5))


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (1, 2)], ids=str)
def test_operators_under_vmap(dims):
    x = draw((3, 4, 3, 5, 3))
    ops, settings = torch.ops.alexnet_nb, (5, 2.0, 1e-4, 0.75, 1)
    for op, rest in ((ops.lrn, settings), (ops.spatial_norm, (4e-5,))):
        found = torch.func.vmap(lambda t, op=op, rest=rest: op(t, *rest), 1)(x)
        torch.testing.assert_close(found[2], op(x[:, 2], *rest))
    x = draw((3, 3, 3, 5, 3))
    grad = draw((3, 3, 3, 5, 3), scale=1)

    def part(t, dim, i):
        return t[0] if dim is None else t.select(dim, i)

    given = [t[0] if d is None else t for t, d in zip((grad, x), dims, strict=True)]
    ops = (ops.lrn_backward, settings), (ops.spatial_norm_backward, (4e-5,))
    for op, rest in ops:
        found = torch.func.vmap(lambda g, t, op=op, rest=rest: op(g, t, *rest), dims)
        one = [part(t, d, 2) for t, d in zip((grad, x), dims, strict=True)]
        torch.testing.assert_close(found(*given)[2], op(*one, *rest))


RECIPES = {
    "paper": paper,
    "source2012": source2012,
    "caffe": caffe,
    "torchvision": torchvision,
}


@pytest.mark.parametrize("rule", ["image", "channels", "aligned"])
@pytest.mark.parametrize("name", RECIPES)
def test_input_equals_the_transform_bit_for_bit(name, rule):
    recipe = replace(RECIPES[name], crop=13, mean=rule, color_std=0.1)
    mean = (torch.rand(3, 18, 18) * 255).numpy()
    transform = InputTransform(recipe, mean, torch.eye(3).mul(900).numpy())
    images = torch.randint(256, (6, 3, 18, 18), dtype=torch.uint8)
    params = AugmentParams(
        torch.randint(6, (2, 6)).T,
        (torch.arange(12) % 3 == 0)[::2],
        torch.randn(3, 6).T * 0.1,
    )
    for color in (True, False):
        wanted = transform.train(images, params, color)
        shift = (transform.axes @ params.color.T).T if color else None
        aligned = rule == "aligned"
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            out = torch.empty(6, 3, 13, 13, dtype=dtype)
            out = out.to(memory_format=torch.channels_last)
            crop_normalize(
                images,
                params.offsets,
                params.flips,
                shift,
                transform.mean if aligned else transform.center_mean,
                transform.scale.flatten(),
                out,
                recipe.color_divide,
                aligned,
            )
            if dtype == torch.bfloat16:  # the interpreter cuts, it does not round
                torch.testing.assert_close(out.float(), wanted, rtol=2**-7, atol=0)
            else:
                assert torch.equal(out, wanted.to(dtype))
