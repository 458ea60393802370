"""LRN is a drop-in for torch's layer.

Everything that can be done to that one can be done to this.
"""

import subprocess
import sys

import pytest
import torch

from alexnet_nb.lrn import LRN, lrn

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def naive(x, n, k, scale, beta, columns):
    """The printed formula, kernel map by kernel map."""
    out, size = torch.empty_like(x), x.shape[1] // columns
    for i in range(x.shape[1]):
        first = i // size * size
        window = x[:, max(first, i - n // 2) : min(first + size, i + n // 2 + 1)]
        out[:, i] = x[:, i] / (k + scale * (window**2).sum(1)) ** beta
    return out


def draw(*shape, layout=torch.contiguous_format, **kw):
    return (
        (torch.randn(shape, dtype=torch.float64) * 30).to(memory_format=layout).to(**kw)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [1, 3, 5, 7, 9])
@pytest.mark.parametrize(
    ("channels", "columns"), [(1, 1), (4, 1), (12, 1), (12, 2), (6, 3)]
)
def test_agrees_with_the_naive_loop_forward_and_backward(n, channels, columns, layout):
    for beta in (0.75, 0.6):
        settings, x, g = (
            (n, 2.0, 1e-3, beta, columns),
            draw(3, channels, 5, 4, layout=layout),
            draw(3, channels, 5, 4),
        )
        want, got = (
            naive(x.requires_grad_(), *settings),
            lrn(x, n, 2.0, 1e-3, beta, columns=columns),
        )
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
        a, b = (torch.autograd.grad(y, x, g)[0] for y in (want, got))
        torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-13)
        assert got.is_contiguous(memory_format=layout) or channels == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_derivatives_of_every_kind(layout):
    x = draw(2, 6, 2, 2, layout=layout).requires_grad_()

    def f(x):
        return lrn(x, 3, alpha=1e-2, columns=2)

    assert torch.autograd.gradcheck(
        f, x, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(f, x)


def test_function_transforms():
    x, value = draw(3, 2, 6, 2, 2), lambda x: lrn(x).square().sum()
    torch.testing.assert_close(
        torch.func.vmap(lrn)(x), torch.stack([lrn(i) for i in x])
    )
    torch.testing.assert_close(
        torch.func.vmap(lrn, 1, 1)(x), torch.stack([lrn(x[:, i]) for i in range(2)], 1)
    )
    for one, g in zip(x, torch.func.vmap(torch.func.grad(value))(x), strict=True):
        one.requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(value(one), one)[0], g)
    torch.testing.assert_close(
        torch.func.jacrev(lrn)(x[0]), torch.func.jacfwd(lrn)(x[0])
    )
    assert torch.func.hessian(value)(x[0]).isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_sum(dtype, layout):
    """300² is beyond float16.

    Within the rounding of the result, half precision agrees with float32, forward and
    backward.
    """
    x = (draw(2, 8, 3, 3, layout=layout) * 10).to(dtype)
    g, tolerance = torch.ones_like(x), dict(rtol=2 * torch.finfo(dtype).eps, atol=1e-2)
    half, full = (
        torch.autograd.grad(lrn(t), t, g.to(t.dtype))[0]
        for t in (x.clone().requires_grad_(), x.float().requires_grad_())
    )
    torch.testing.assert_close(half.float(), full, **tolerance)
    with torch.autocast("cpu", torch.bfloat16):
        y = lrn(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), lrn(x.float()), **tolerance)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    """For a processor with channels last, which is slow; to the same graph else."""
    for layout, backend in zip(LAYOUTS, ["aot_eager", "inductor"], strict=True):
        compiled = torch.compile(LRN(columns=2), fullgraph=True, backend=backend)
        x = draw(2, 12, 5, 5, layout=layout, dtype=torch.float32).requires_grad_()
        (a,), (b,) = (
            torch.autograd.grad(f(x).square().sum(), x)
            for f in (compiled, LRN(columns=2))
        )
        torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), LRN(columns=2)(x))


@pytest.mark.parametrize(
    "shape",
    [(0, 5, 3, 3), (1, 5, 3, 3), (2, 5), (2, 5, 4), (1, 5, 2, 2, 2), (2, 5, 0, 3)],
)
def test_any_shape_of_batch(shape):
    x = draw(*shape).requires_grad_()
    torch.testing.assert_close(lrn(x), naive(x, 5, 2.0, 1e-4, 0.75, 1))
    assert torch.autograd.grad(lrn(x).sum(), x)[0].shape == shape


def test_keeps_only_the_input():
    kept = []
    x = draw(2, 6, 3, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t) or t, lambda t: t
    ):
        lrn(x)
    assert {t.data_ptr() for t in kept} == {x.data_ptr()}


RACE = """
import sys, time, statistics, torch
from torch.nn import functional as F
from alexnet_nb.lrn import lrn
torch.set_num_threads(2)
layout = getattr(torch, sys.argv[1])
x, g = (torch.randn(32, 96, 55, 55).contiguous(memory_format=layout) for _ in range(2))
x.requires_grad_()
def seconds(f):
    begin = time.perf_counter()
    torch.autograd.grad(f(x), x, g)
    return time.perf_counter() - begin
theirs = lambda x: F.local_response_norm(x, 5, alpha=5e-4, beta=.75, k=2.)
rounds = [(seconds(theirs), seconds(lrn)) for _ in range(5)]
print(statistics.median(a / b for a, b in rounds[1:]))
"""


@pytest.mark.speed
@pytest.mark.slow  # `-m "not slow"` takes the place of `-m "not speed"`
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_is_faster_than_torch_on_a_busy_machine(layout):
    """With another process on one of the cores."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        out = subprocess.run(
            [sys.executable, "-c", RACE, layout],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
    finally:
        busy.kill()
    assert float(out) >= 1.5
