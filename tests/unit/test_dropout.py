"""Masks depend on seed, step, layer and row alone, and keep half of the units."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from alexnet_nb.dropout import dropout_masks
from alexnet_nb.recipes import paper, torchvision
from helpers.nets import small

LAYERS = ("fc6", "fc7")


def test_the_columns_share_a_mask_and_each_row_has_its_own():
    """Batches of 300 are drawn in more than one block."""
    whole = dropout_masks(small(paper), 300, seed=3, step=7)
    for name in LAYERS:
        halves = [dropout_masks(small(paper), 300, 3, 7, column=c) for c in (0, 1)]
        assert torch.equal(torch.cat([half[name] for half in halves], 1), whole[name])
        some = dropout_masks(small(paper), 300, 3, 7, rows=slice(120, 290))
        assert torch.equal(some[name], whole[name][120:290])
        assert len(whole[name].unique(dim=0)) == 300


@pytest.mark.parametrize("other", [dict(seed=4), dict(step=8)])
def test_another_seed_or_step_draws_other_masks(other):
    usual = dict(seed=3, step=7)
    before = dropout_masks(small(paper), 8, **usual)
    after = dropout_masks(small(paper), 8, **usual | other)
    for name in LAYERS:
        assert not torch.equal(before[name], after[name])
    assert not torch.equal(before["fc6"], before["fc7"])


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_share_that_is_dropped_is_the_recipes(share):
    recipe = replace(small(paper), dropout=share)
    masks = dropout_masks(recipe, 4000, seed=int(torch.randint(2**31, ())), step=0)
    for name in LAYERS:
        kept = masks[name].double().mean().item()
        five_deviations = 5 * (share * (1 - share) / masks[name].numel()) ** 0.5
        assert kept == pytest.approx(1 - share, abs=five_deviations)


def test_torchvision_drops_inputs_instead_of_outputs():
    masks = dropout_masks(torchvision, 1, seed=0, step=0)
    assert [mask.shape[1] for mask in masks.values()] == [256 * 6 * 6, 4096]


@pytest.mark.slow
def test_compiled_they_are_the_same():
    """One graph, and one for all steps, whose number is in a tensor."""
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(
        dropout_masks, fullgraph=True, dynamic=False, backend=counter
    )
    for step in (7, 8, 2**20):
        arguments = (small(paper), 33, 3, torch.tensor(step))
        for found, expected in zip(
            compiled(*arguments).values(),
            dropout_masks(*arguments).values(),
            strict=True,
        ):
            assert torch.equal(found, expected)
    assert counter.frame_count == 1


def test_a_step_in_a_tensor_is_a_step():
    for column in (None, 0, 1):
        by_number = dropout_masks(small(paper), 8, 3, 7, column)
        by_tensor = dropout_masks(small(paper), 8, 3, torch.tensor(7), column)
        for name in LAYERS:
            assert torch.equal(by_number[name], by_tensor[name])
