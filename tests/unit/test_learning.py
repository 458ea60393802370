"""Error rates against a plain count, and learning rates that follow one another."""

from dataclasses import replace

import pytest
import torch

from alexnet_nb.engine.config import Config
from alexnet_nb.engine.run_dir import validate
from alexnet_nb.learning import (
    error_rates,
    learning_rates,
    make_optimizer,
    set_learning_rates,
)
from alexnet_nb.model import AlexNet
from alexnet_nb.recipes import (
    RECIPES,
    paper,
    source2010,
    source2012,
    torchvision,
)
from alexnet_nb.training import train_step

RATES = ("conv1", "conv1_bias", "weights", "biases")


def test_error_rates_equal_a_plain_count():
    scores, labels = torch.randn(500, 20), torch.randint(0, 20, (500,))
    best = scores.topk(5).indices
    one = (
        sum(label != row[0] for row, label in zip(best, labels, strict=True)).item()
        / 500
    )
    five = (
        sum(
            label not in row
            for row, label in zip(best.tolist(), labels.tolist(), strict=True)
        )
        / 500
    )
    assert error_rates(scores, labels) == pytest.approx((one, five))
    assert 0 < five < one < 1


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.schedule])
def test_another_rate_takes_the_biases_along(name):
    usual, twice = (
        learning_rates(RECIPES[name], 0.5, lr) for lr in (None, 2 * RECIPES[name].lr)
    )
    assert all(twice[k] == pytest.approx(2 * usual[k]) for k in RATES)
    assert twice["color"] == usual["color"]


def test_every_drop_of_a_plateau_divides_all_rates_by_ten():
    start, after = learning_rates(paper, 0.5), learning_rates(paper, 0.5, drops=2)
    assert all(after[k] == pytest.approx(start[k] / 100) for k in RATES)
    assert learning_rates(source2012, 0.0, drops=2) == learning_rates(source2012, 0.0)


@pytest.mark.parametrize(
    ("recipe", "length", "slowed", "frozen"),
    [(source2012, 90, 67, 72), (source2010, 93, 68, 72)],
)
def test_biases_of_conv1_are_slowed_and_frozen_with_its_weights(
    recipe, length, slowed, frozen
):
    """The other biases keep their rate.

    Layer-params-145.cfg has epsB=0.0 for conv1a and conv1b; 149, saved in the slowed
    stage, 0.002.
    """
    rates = {
        epoch: learning_rates(recipe, (epoch - 1) / length)
        for epoch in range(1, length + 1)
    }
    assert [r["conv1_bias"] for r in rates.values()] == pytest.approx(
        [0.02] * (slowed - 1)
        + [0.002] * (frozen - slowed)
        + [0] * (length - frozen + 1)
    )
    assert [not r["conv1"] for r in rates.values()] == [
        not r["conv1_bias"] for r in rates.values()
    ]
    assert {r["biases"] for r in rates.values()} == {0.02}


def test_a_frozen_conv1_neither_moves_nor_loses_its_velocity():
    """Over the recorded schedule, every group at its own rate.

    When conv1 is frozen its velocity is kept as it is.
    """
    net = AlexNet(
        replace(source2012, crop=72, kernels=(8, 16, 24, 24, 16), hidden=(32, 32)), 10
    ).double()
    optimizer = make_optimizer(net, source2012)
    parts = {
        "conv1": net.conv1.weight,
        "conv1_bias": net.conv1.bias,
        "weights": net.conv2.weight,
        "biases": net.conv2.bias,
    }
    owners = {
        id(p): group["name"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert {name: owners[id(p)] for name, p in parts.items()} == {
        name: name for name in parts
    }
    assert sorted(owners) == sorted(id(p) for p in net.parameters())
    for epoch in (65, 66, 71, 80):
        rates = learning_rates(source2012, epoch / 90)
        set_learning_rates(optimizer, rates)
        before = {name: p.detach().clone() for name, p in parts.items()}
        velocity = {
            name: optimizer.state[p]["momentum_buffer"].clone()
            for name, p in parts.items()
            if optimizer.state[p]
        }
        images = torch.randn(2, 3, 72, 72, dtype=torch.float64) * 60
        train_step(net, optimizer, images, torch.tensor([0, 1]))
        moved = {name: not torch.equal(before[name], p) for name, p in parts.items()}
        assert moved == {
            name: epoch < 71 or not name.startswith("conv1") for name in parts
        }
        if epoch >= 71:
            assert all(
                torch.equal(velocity[n], optimizer.state[parts[n]]["momentum_buffer"])
                for n in ("conv1", "conv1_bias")
            )
            assert not parts["conv1_bias"].requires_grad
            assert parts["biases"].requires_grad


def test_torchvision_is_trained_as_its_reference_scripts_say():
    """0.01, divided by ten every 30 of 90 epochs; momentum 0.9.

    A decay of 0.0001 for all; plain torch's velocity.
    """
    rates = [learning_rates(torchvision, epoch / 90) for epoch in range(90)]
    for name in RATES:
        assert [r[name] for r in rates] == pytest.approx(
            [0.01] * 30 + [0.001] * 30 + [0.0001] * 30
        )
    optimizer = make_optimizer(
        AlexNet(replace(torchvision, kernels=(8, 16, 24, 24, 16), hidden=(32, 32)), 10),
        torchvision,
    )
    assert {
        (g["momentum"], g["weight_decay"], g["lr_inside"])
        for g in optimizer.param_groups
    } == {(0.9, 1e-4, False)}


def test_torchvision_can_be_trained_on_one_process_or_together():
    assert validate(Config(recipe="torchvision"))
    assert validate(Config(recipe="torchvision", gpus=2, data_parallel=True))
    with pytest.raises(ValueError, match="cannot be split over two processes"):
        validate(Config(recipe="torchvision", gpus=2))
