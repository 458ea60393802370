"Error rates against a plain count, and rates that follow one another."
import pytest
import torch

from alexnet_nb.learning import error_rates, rates_at
from alexnet_nb.recipes import RECIPES, paper, source2012


def test_error_rates_equal_a_plain_count():
    scores, labels = torch.randn(500, 20), torch.randint(0, 20, (500,))
    best = scores.topk(5).indices
    one = sum(label != row[0] for row, label in zip(best, labels)).item() / 500
    five = sum(label not in row for row, label in zip(best.tolist(), labels.tolist())) / 500
    assert error_rates(scores, labels) == pytest.approx((one, five)) and 0 < five < one < 1


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.schedule])
def test_another_rate_takes_the_biases_along(name):
    usual, twice = (rates_at(RECIPES[name], 0.5, lr) for lr in (None, 2 * RECIPES[name].lr))
    assert all(twice[k] == pytest.approx(2 * usual[k]) for k in ("conv1", "weights", "biases")) and twice["colour"] == usual["colour"]


def test_every_drop_of_a_plateau_divides_all_rates_by_ten():
    start, after = rates_at(paper, 0.5), rates_at(paper, 0.5, drops=2)
    assert all(after[k] == pytest.approx(start[k] / 100) for k in ("conv1", "weights", "biases"))
    assert rates_at(source2012, 0.0, drops=2) == rates_at(source2012, 0.0)
