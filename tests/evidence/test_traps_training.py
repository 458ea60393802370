"""Traps of the data and the training (nbs/evidence/traps.tsv).

Each test fails when its trap is stepped into.
"""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from alexnet_nb.augmentation import IMAGENET_MEAN, InputTransform, sample_augment_params
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import shard_batch
from alexnet_nb.engine.loop import train_loop
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.evaluation import probabilities
from alexnet_nb.learning import learning_rates, make_optimizer, set_learning_rates
from alexnet_nb.model import AlexNet
from alexnet_nb.preprocessing import load_image, resize_center_crop
from alexnet_nb.recipes import RECIPES, paper, source2012
from alexnet_nb.training import train_step
from helpers import ROOT
from helpers.nets import small

TRAPS = list(csv.DictReader((ROOT / "nbs/evidence/traps.tsv").open(), delimiter="\t"))


def test_every_trap_has_its_row():
    assert [int(t["number"]) for t in TRAPS] == list(range(1, 41))
    for t in TRAPS:
        assert t["trap"]
        assert t["words"].endswith(".")
        assert (ROOT / f"nbs/{t['page']}.ipynb").exists()
    tests = []
    for path in Path(__file__).parent.glob("test_traps_*.py"):
        tests += re.findall(r"^def (test_trap_\w+)", path.read_text(), re.M)
    assert [t["test"] for t in TRAPS if t["test"]] == sorted(tests)


def test_trap_10_rule_of_the_biases():
    for recipe in (paper, source2012):
        net = AlexNet(small(recipe), 10).double()
        optimizer = make_optimizer(net, recipe)
        set_learning_rates(optimizer, learning_rates(recipe, 0))
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        for n, p in net.named_parameters():
            step = 0.02 if n.endswith("bias") else 0.01 * (1 + 0.0005 * before[n])
            torch.testing.assert_close(p.detach(), before[n] - step)
    assert [learning_rates(source2012, e / 90)["biases"] for e in (0, 30, 60, 89)] == [
        0.02
    ] * 4  # but in conv1
    assert [
        learning_rates(source2012, e / 90)["conv1_bias"] for e in (0, 30, 60, 89)
    ] == [0.02] * 3 + [0]


def test_trap_11_conv1_is_frozen():
    net = AlexNet(small(source2012), 10)
    optimizer, moved = make_optimizer(net, source2012), {}
    for epoch in (0, 65, 66, 71):
        rates = learning_rates(source2012, epoch / 90)
        set_learning_rates(optimizer, rates)
        watched = net.conv1.weight, net.conv1.bias, net.conv3.weight, net.conv3.bias
        before = [p.detach().clone() for p in watched]
        images = torch.randn(2, 3, 72, 72) * 60
        train_step(net, optimizer, images, torch.tensor([0, 1]))
        moved[epoch] = (
            [not torch.equal(*pair) for pair in zip(before, watched, strict=True)],
            rates["conv1"],
            rates["conv1_bias"],
        )
    assert {e: m[0] for e, m in moved.items()} == {
        0: [True] * 4,
        65: [True] * 4,
        66: [True] * 4,
        71: [False, False, True, True],
    }
    assert moved[66][1:] == pytest.approx((moved[65][1] / 10, moved[65][2] / 10))
    assert learning_rates(paper, 0.99, drops=3)["conv1"] > 0
    assert learning_rates(paper, 0.99, drops=3)["conv1_bias"] > 0


COVARIANCE = np.diag([400.0, 1600.0, 14400.0])


def noisy(recipe, n=4000, cov=COVARIANCE):
    """Gray pictures of 128 as a recipe's net sees them in training, N × 3.

    A draw of the color noise each.
    """
    mean = np.full((3, 80, 80), 28.0)
    see = InputTransform(replace(recipe, crop=72), mean, cov, dtype=torch.float64)
    images = torch.full((1, 3, 80, 80), 128, dtype=torch.uint8).expand(n, -1, -1, -1)
    return lambda color: see.normalize(
        see.crop(images, sample_augment_params(n, see.max_offset, see.recipe, 0, 0)),
        sample_augment_params(n, see.max_offset, see.recipe, 0, 0),
        color,
    )[:, :, 0, 0]


def test_trap_12_color_noise_is_switched_off():
    """In the last epochs, and with it the division by 1.1."""
    on = [learning_rates(source2012, epoch / 90)["color"] for epoch in range(90)]
    assert on == [True] * 66 + [False] * 24
    assert all(learning_rates(paper, e / 90)["color"] for e in range(90))
    see = noisy(source2012, 64)
    assert see(False).unique().tolist() == [100]
    assert see(True).std(0).min() > 0.5


def test_trap_13_eigenvalues_or_their_roots():
    for recipe in (paper, source2012):
        deviations = noisy(recipe)(True).std(0) * recipe.color_divide
        torch.testing.assert_close(
            deviations,
            torch.tensor([2.0, 4.0, 12.0], dtype=torch.float64),
            rtol=0.05,
            atol=0,
        )  # a tenth of the roots


def test_trap_14_divided_by_one_point_one():
    without = replace(source2012, color_divide=1.0)
    torch.testing.assert_close(
        noisy(without)(True) / noisy(source2012)(True),
        torch.full((4000, 3), 1.1, dtype=torch.float64),
    )
    assert noisy(paper)(True).mean() > 99


def test_trap_15_the_mean_image():
    """Wherever the crop lies, its center is subtracted.

    In Caffe's recipe the mean is cut like the picture.
    """
    mean = np.random.default_rng().uniform(0, 255, (3, 80, 80))
    for recipe in (paper, source2012, RECIPES["caffe"]):
        see = InputTransform(
            replace(recipe, crop=72, color_std=0.0),
            mean,
            np.eye(3),
            dtype=torch.float64,
        )
        draws = replace(
            sample_augment_params(1, see.max_offset, see.recipe, 0, 0),
            offsets=torch.tensor([[1, 7]]),
            flips=torch.tensor([False]),
        )
        away = -see.train(torch.zeros(1, 3, 80, 80, dtype=torch.uint8), draws)[
            0
        ].numpy()
        top, left = (1, 7) if recipe.name == "caffe" else (4, 4)
        np.testing.assert_array_equal(away, mean[:, top : top + 72, left : left + 72])


def test_trap_16_one_crop_for_32_pictures():
    for recipe, different in ((source2012, 4), (paper, 128)):
        draws = sample_augment_params(128, 32, recipe, 0, 0)
        keys = {
            (*offset, flip)
            for offset, flip in zip(
                draws.offsets.tolist(), draws.flips.tolist(), strict=True
            )
        }
        assert len(keys) == different if recipe is source2012 else len(keys) > 100


class Reader(Trainer):
    """Reads batches, keeps them, and trains nothing."""

    def __init__(self, *args):
        super().__init__(*args)
        self.batches = []

    def load_batch(self, *args):
        self.batches.append(super().load_batch(*args))
        return self.batches[-1]

    def train_step(self, x, y):
        self.unread.append(torch.zeros(3, dtype=torch.float64))
        self.step += 1


def test_trap_17_no_new_order(tmp_path, monkeypatch):
    """Every epoch reads the pictures in the order in which they were packed."""
    data = load_dataset("digits", 72)
    for recipe, same in (("source2012", True), ("shuffling", False)):
        monkeypatch.setitem(
            RECIPES, "shuffling", replace(source2012, name="shuffling", reshuffle=True)
        )
        config = resolve(Config(recipe=recipe, epochs=2, batch_size=1437))
        worker = Reader(tmp_path / recipe, config, data, None)
        worker.run_dir.path.mkdir()
        train_loop(worker, 2)
        labels = [batch.labels.numpy() for batch in worker.batches]
        assert np.array_equal(labels[0], labels[1]) == same
        assert np.array_equal(labels[0], data.train.labels) == same


def test_trap_18_2178_crops():
    draws = sample_augment_params(60_000, 32, paper, 0, 0)
    assert (
        len(
            {
                (*offset, flip)
                for offset, flip in zip(
                    draws.offsets.tolist(), draws.flips.tolist(), strict=True
                )
            }
        )
        == 2 * 33**2
        == 2178
    )


def test_trap_27_average_of_probabilities():
    net = AlexNet(small(paper, init_std=(0.1,) * 8), 10).eval()
    mean = np.full((3, 80, 80), 100, np.float32)
    see, images = (
        InputTransform(net.recipe, mean, np.eye(3)),
        np.random.randint(0, 256, (4, 3, 80, 80), np.uint8),
    )
    crops = see.test_crops(torch.tensor(images))
    assert torch.equal(crops[5:], crops[:5].flip(-1))
    assert len({v.sum().item() for v in crops[:5]}) == 5
    # logits that differ from view to view by about 2, so that the two averages differ
    with torch.no_grad():
        net.fc8.weight *= 2 / net(crops.flatten(0, 1)).std(0).mean()
        net.fc8.bias -= net(crops.flatten(0, 1)).mean(0)
        logits = torch.stack([net(v) for v in crops])
    torch.testing.assert_close(
        probabilities(net, see, images), logits.softmax(2).mean(0)
    )
    assert (logits.softmax(2).mean(0) - logits.mean(0).softmax(1)).abs().max() > 0.01


def test_trap_28_rate_inside_the_velocity():
    gaps = {}
    for inside in (True, False):
        net = AlexNet(small(paper, lr_inside=inside), 10).double()
        optimizer, w = make_optimizer(net, net.recipe), net.fc7.weight
        v, by_hand = torch.zeros_like(w), w.detach().clone()
        for step, rate in enumerate([0.01] * 10 + [0.001] * 10 + [0.0001] * 10):
            set_learning_rates(
                optimizer,
                dict(conv1=rate, conv1_bias=2 * rate, weights=rate, biases=2 * rate),
            )
            for p in net.parameters():
                p.grad = torch.randn_like(p)
            v = 0.9 * v - 0.0005 * rate * by_hand - rate * w.grad
            by_hand = by_hand + v
            optimizer.step()
            if step == 9:
                assert torch.allclose(
                    w, by_hand, rtol=1e-12, atol=1e-14
                )  # at a constant rate there is no difference
        gaps[inside] = ((w - by_hand).norm() / by_hand.norm()).item()
    assert gaps[True] < 1e-14
    assert gaps[False] > 0.01


def test_trap_29_short_last_batch(tmp_path):
    config = Config(out_dir=str(tmp_path), batch_size=128)
    data = load_dataset("digits", 72)
    worker = Trainer(tmp_path, resolve(config), data, None)
    short = len(data.train) % 128
    seen = []
    worker.model.fc8.register_full_backward_hook(
        lambda module, before, after: seen.append(after[0])
    )
    worker.rates = learning_rates(worker.recipe, 0)
    x, y = torch.randn(short, 3, 64, 64) * 60, torch.randint(0, 10, (short,))
    loss, logits = worker.compute_loss(worker.model, x, y, shard_batch(len(x)))
    loss.backward()
    torch.testing.assert_close(
        loss, F.cross_entropy(logits, y, reduction="sum") / short
    )
    torch.testing.assert_close(seen[0], (logits.softmax(1) - F.one_hot(y, 10)) / short)
    assert 0 < short < 128
    assert worker.steps_per_epoch == len(data.train) // 128 + 1


def test_trap_35_end_of_the_run():
    start, end = (learning_rates(source2012, p) for p in (0, 1))
    assert (start["weights"], start["conv1"], start["biases"]) == (0.01, 0.01, 0.02)
    assert (end["weights"], end["conv1"], end["conv1_bias"]) == (
        pytest.approx(1e-5),
        0,
        0,
    )


def test_trap_37_warping():
    """A circle stays a circle, and the sides of a wide picture are cut off."""
    from PIL import Image, ImageDraw

    wide = Image.new("RGB", (800, 400))
    ImageDraw.Draw(wide).ellipse((300, 100, 500, 300), fill="white")
    inside = np.asarray(resize_center_crop(wide))[:, :, 0] > 128
    assert abs(inside.any(0).sum() - inside.any(1).sum()) <= 1
    assert abs(inside.any(0).sum() - 128) <= 2
    edge = Image.new("RGB", (800, 400))
    ImageDraw.Draw(edge).rectangle((0, 0, 190, 400), fill="white")
    assert np.asarray(resize_center_crop(edge)).max() == 0


def test_trap_38_rgb_or_bgr(tmp_path):
    from PIL import Image

    for suffix in ("png", "jpg"):
        Image.new("RGB", (300, 300), (250, 120, 10)).save(
            tmp_path / f"x.{suffix}",
            **dict(quality=100, subsampling=0) if suffix == "jpg" else {},
        )
        assert (
            np.abs(
                load_image(tmp_path / f"x.{suffix}")[:, 100, 100].astype(int)
                - [250, 120, 10]
            ).max()
            <= 2
        )
    assert (
        IMAGENET_MEAN[0] > IMAGENET_MEAN[1] > IMAGENET_MEAN[2]
    )  # red is the brightest, blue the darkest
