"""Blocks give what the formula gives, and are refused where there is no memory."""

import pytest
import torch

from alexnet_nb.kernels import can_block, lrn_blocked

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
