"""What is called a difference when processes are compared with one process."""

import math

import pytest
import torch

from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.engine.verify import (
    TOLERANCE,
    assert_equal,
    assert_equal_gradients,
    relative_difference,
)


@pytest.fixture
def trainer(tmp_path, digits):
    def make(**settings):
        config = resolve(Config(recipe="paper", width_mult=1 / 16, **settings))
        return Trainer(tmp_path, config, digits, None)

    return make


def test_the_difference_is_a_share_of_the_mean_size():
    reference = torch.tensor([1.0, -2.0, 3.0])
    assert relative_difference(2 * reference, reference) == pytest.approx(1)
    assert relative_difference(reference + 0.5, reference) == pytest.approx(0.25)
    nothing = torch.zeros(3)
    assert relative_difference(nothing, nothing) == 0
    assert relative_difference(reference, nothing) == math.inf


@pytest.mark.parametrize("precision", TOLERANCE)
def test_more_than_rounding_explains_is_refused_by_name(trainer, precision):
    one = trainer(precision=precision)
    reference, limit = torch.ones(10, dtype=torch.float64), TOLERANCE[precision]
    within = reference * (1 + limit / 2)
    assert_equal(one, "two", "loss", within, reference, TOLERANCE)
    words = rf"loss: got .* two and one, expected .* in {precision}; .* recipe paper"
    for factor in (1 + 2 * limit, math.nan):
        beyond = reference * factor
        with pytest.raises(RuntimeError, match=words):
            assert_equal(one, "two", "loss", beyond, reference, TOLERANCE)


def test_the_gradient_that_differs_is_named(trainer):
    expected = {name: torch.ones(4) for name in ("conv1.weight", "fc8.bias")}
    assert_equal_gradients(trainer(), "two", dict(expected), expected)
    found = expected | {"fc8.bias": torch.full((4,), 1.5)}
    with pytest.raises(RuntimeError, match=r"gradient of fc8\.bias: got"):
        assert_equal_gradients(trainer(), "two", found, expected)
