"""The kernels compute what the formulas compute, however the work is cut."""

import pytest
import torch

from alexnet_nb.kernels import can_block, lrn_blocked

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def draw(layout):
    """Draw activities of seven images, with six channels."""
    x = torch.randn(7, 6, 5, 5, dtype=torch.float64) * 30
    return x.to(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_blocks_are_one(layout, monkeypatch):
    """Block sizes that leave a remainder give the same numbers."""
    x, grad, settings = draw(layout), draw(layout), (5, 2.0, 1e-4, 0.75, 2)
    forward = lrn_blocked(x, None, *settings)
    backward = lrn_blocked(x, grad, *settings)
    monkeypatch.setattr("alexnet_nb.kernels._BLOCK", 6 * 5 * 5 * 2)
    cut = lrn_blocked(x, None, *settings)
    torch.testing.assert_close(cut, forward, rtol=1e-12, atol=1e-14)
    cut = lrn_blocked(x, grad, *settings)
    torch.testing.assert_close(cut, backward, rtol=1e-12, atol=1e-14)


def test_tensors_without_memory_of_their_own_are_not_taken():
    x = draw(torch.contiguous_format)
    assert can_block(x)
    assert not can_block(x.transpose(0, 1))
    assert not can_block(x[:0])
    assert not can_block(x.to("meta"))
    assert not torch.func.vmap(lambda image: image * can_block(image))(x).any()
