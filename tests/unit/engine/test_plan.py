"""What a run needs is compared with what it has, before its first step."""

import re
from dataclasses import replace

import pytest
import torch

from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.plan import epochs_to_first_drop, plan_training
from alexnet_nb.learning import plateau_steps
from alexnet_nb.model import AlexNet
from alexnet_nb.recipes import caffe, paper, source2012


@pytest.mark.parametrize(
    ("recipe", "epochs", "first"),
    [
        (source2012, 90, 24),
        (source2012, 20, 6),  # 24/90 of 20 is 5.3
        (caffe, 90, 20),
        (paper, 90, 10),  # one epoch is the best so far, nine are not better
        (paper, 3, 2),
        (source2012, 1, 1),
        (replace(source2012, schedule=()), 90, 90),
    ],
    ids=str,
)
def test_the_first_drop(recipe, epochs, first):
    assert epochs_to_first_drop(recipe, epochs) == first


@pytest.fixture(scope="module")
def planned():
    """Plan runs on 1,437 digits, with the same network and images."""
    settings = dict(width_mult=1 / 16)
    recipe = resolve(Config(**settings)).model_recipe
    torch.manual_seed(0)
    model, x = AlexNet(recipe, 10), 50 * torch.randn(16, 3, 64, 64)
    with torch.no_grad():
        spread = model.eval()(x).double().std(0).mean().item()

    def plan(**changes):
        return plan_training(resolve(Config(**settings | changes)), model, x, 1437)

    return plan, plateau_steps(spread)


def test_a_long_run_has_steps_enough(planned):
    plan, (steps, low, high) = planned
    words = plan(epochs=400)
    assert "after 107 of 400 epochs, which is 1,284 steps" in words
    assert f"last {steps:,.0f} steps ({low:,.0f} to {high:,.0f})" in words
    assert words.endswith("**The plateau should end in time.**")


@pytest.mark.parametrize(
    ("epochs", "word"), [(1, "will hardly end before"), (30, "may not end before")]
)
def test_a_short_run_is_told_what_to_change(planned, epochs, word):
    plan, (steps, low, _) = planned
    words = plan(epochs=epochs)
    available = int(re.search(r"which is ([\d,]+) steps", words)[1].replace(",", ""))
    assert available < steps
    assert (available < low) == (epochs == 1)
    assert word in words
    assert "`width_mult` or `image_size`" in words
    for name, value in re.findall(r"`(batch_size|epochs) = (\d+)`", words):
        changed = plan(**{"epochs": epochs, name: int(value)})
        assert "should end in time" in changed, name


def test_a_learning_rate_next_to_nothing_is_named(planned):
    plan, (steps, _, _) = planned
    words = plan(lr=1e-6)
    assert f"last {steps * 10_000:,.0f} steps" in words
    assert "What would help: `lr = 0.01`, as in the recipe. A" in words
