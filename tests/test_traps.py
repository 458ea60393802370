"""The points on which paper and source differ, or on which reproductions commonly go wrong (nbs/evidence/traps.tsv). Each test fails
when its trap is stepped into.
"""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F
from torchvision import models

from alexnet_nb.augmentation import IMAGENET_MEAN, InputTransform, sample_augment_params
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import shard_batch
from alexnet_nb.engine.loop import train_loop
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.evaluation import probabilities
from alexnet_nb.learning import learning_rates, make_optimizer, set_learning_rates
from alexnet_nb.lrn import LRN, SpatialNorm
from alexnet_nb.model import AlexNet
from alexnet_nb.preprocessing import load_image, resize_center_crop
from alexnet_nb.recipes import LAYERS, RECIPES, no_lrn, paper, source2012, torchvision
from alexnet_nb.relu import activation

TRAPS = list(csv.DictReader((ROOT / "nbs/evidence/traps.tsv").open(), delimiter="\t"))
SMALL = dict(crop=72, kernels=(8, 16, 24, 24, 16), hidden=(32, 32))


def small(recipe, **changes):
    return replace(recipe, **SMALL | changes)


def test_every_trap_has_its_row():
    assert [int(t["number"]) for t in TRAPS] == list(range(1, 41))
    for t in TRAPS:
        assert t["trap"]
        assert t["words"].endswith(".")
        assert (ROOT / f"nbs/{t['page']}.ipynb").exists()
    assert [t["test"] for t in TRAPS if t["test"]] == sorted(
        n for n in globals() if n.startswith("test_trap_")
    )


@pytest.fixture(scope="module")
def photographs():
    """Eight crops of two photographs, 224 pixels, on the scale 0 to 255 minus their mean: what a full-size net sees."""
    pictures = [
        load_sample_image(f"{name}.jpg").transpose(2, 0, 1)
        for name in ("china", "flower")
    ]
    crops = torch.tensor(
        np.stack(
            [
                p[:, y : y + 224, x : x + 224]
                for p in pictures
                for y in (0, 180)
                for x in (100, 400)
            ]
        )
    ).float()
    return crops - crops.mean((0, 2, 3), keepdim=True)


@torch.no_grad()
def logit_spread(recipe, x):
    """How much the logits of a fresh full-size net differ from picture to picture."""
    torch.manual_seed(0)
    return AlexNet(recipe).eval()(x).std(0).mean().item()


def test_trap_01_deviations_of_conv3_to_conv5(photographs):
    torch.manual_seed(0)
    found = {
        name: [
            round(getattr(AlexNet(small(r)), f"conv{i}").weight.std().item(), 2)
            for i in (1, 3, 4, 5)
        ]
        for name, r in (("paper", paper), ("source", source2012))
    }
    assert found == {"paper": [0.01] * 4, "source": [0.01, 0.03, 0.03, 0.03]}
    assert (
        8
        < logit_spread(source2012, photographs) / logit_spread(paper, photographs)
        < 30
    )


def test_trap_02_divided_pixels(photographs):
    """The recipes that train see pixels from 0 to 255 minus the mean, and divided ones leave their logits twenty times closer together."""
    for recipe in (paper, source2012):
        see = InputTransform(recipe, np.zeros((3, 256, 256)), np.zeros((3, 3)))
        x = see.views(torch.full((1, 3, 256, 256), 255, dtype=torch.uint8), 1)
        assert x.unique().tolist() == [255]
        assert (
            logit_spread(recipe, photographs) / logit_spread(recipe, photographs / 58)
            > 20
        )


@torch.no_grad()
def share_on(recipe, x):
    """Share of the positive responses of conv2 and conv4, both behind biases of 1, in a fresh full-size net."""
    torch.manual_seed(0)
    net, found = AlexNet(recipe).eval(), {}
    for name in ("conv2", "conv4"):
        getattr(net, name).register_forward_hook(
            lambda module, inputs, out, name=name: found.update(
                {name: (out > 0).double().mean().item()}
            )
        )
    net(x)
    return found


def test_trap_03_biases_of_one(photographs):
    """With divided pixels, or the paper's deviations, hardly a unit behind a bias of 1 is ever off: its ReLU does nothing."""
    raw, divided, weak = (
        share_on(source2012, photographs),
        share_on(source2012, photographs / 58),
        share_on(paper, photographs),
    )
    zero = share_on(replace(source2012, init_bias=(0.0,) * 8), photographs / 58)
    assert raw["conv2"] < 0.8
    assert raw["conv4"] < 0.8
    assert zero["conv2"] < 0.6
    assert zero["conv4"] < 0.6
    assert divided["conv2"] > 0.999
    assert weak["conv4"] > 0.999
    assert source2012.scale == paper.scale == (1.0, 1.0, 1.0)
    net = AlexNet(small(source2012), 10)
    assert [getattr(net, n).bias.unique().tolist() for n in LAYERS] == [
        [0],
        [1],
        [0],
        [1],
        [1],
        [1],
        [1],
        [0],
    ]


def test_trap_04_last_window_over_the_edge():
    """A pixel reaches exactly the windows that cover it: the first begins at the first pixel, the last holds the last eight."""
    for recipe in (paper, source2012):
        net = AlexNet(
            replace(recipe, kernels=SMALL["kernels"], hidden=SMALL["hidden"])
        ).eval()
        nn.init.ones_(net.conv1.weight), nn.init.zeros_(net.conv1.bias)
        out = []
        net.conv1.register_forward_hook(lambda module, inputs, y: out.append(y[0, 0]))
        for pixel in (0, 215, 216, 223):
            x = torch.zeros(1, 3, 224, 224)
            x[0, 0, pixel, pixel] = 1
            with torch.no_grad():
                net(x)
        assert out[0].shape == (55, 55)
        assert net.fc6.in_features == SMALL["kernels"][-1] * 6 * 6
        assert [o.diagonal().nonzero().flatten().tolist() for o in out] == [
            [0],
            [52, 53],
            [52, 53, 54],
            [54],
        ]


def first_lrn(norm):
    """The normalization across kernel maps of a layer, which may have a second one."""
    return next(module for module in norm.modules() if isinstance(module, LRN))


def after_conv(net, number, x):
    """What a forward pass makes of `x` as the output of a convolution, up to pooling."""
    pooled = []

    def stop(module, inputs, output):
        pooled.append(output)
        raise InterruptedError

    getattr(net, f"conv{number}").register_forward_hook(lambda *_: x)
    getattr(net, f"pool{number}").register_forward_hook(stop)
    side = net.recipe.crop
    with pytest.raises(InterruptedError):
        net(torch.zeros(len(x), 3, side, side))
    return pooled[0]


def test_trap_05_alpha_over_sum_or_mean():
    x = torch.rand(2, 10, 3, 3, dtype=torch.float64) * 100

    def theirs(alpha):
        return F.local_response_norm(x, 5, alpha=alpha, beta=0.75, k=2.0)

    ours = {r.name: first_lrn(AlexNet(small(r)).norm2) for r in (paper, source2012)}
    for norm in ours.values():
        norm.columns = 1
    torch.testing.assert_close(ours["paper"](x), theirs(5e-4))
    torch.testing.assert_close(ours["source2012"](x), theirs(1e-4))
    assert (theirs(5e-4) / theirs(1e-4)).min() < 0.8
    torch.testing.assert_close(LRN()(x), ours["paper"](x))


def test_trap_06_k_is_two():
    x = torch.full((1, 16, 1, 1), 1e-3)
    for recipe in (paper, source2012):
        torch.testing.assert_close(
            first_lrn(AlexNet(small(recipe)).norm2)(x), x * 2**-0.75
        )
    torch.testing.assert_close(
        nn.LocalResponseNorm(5)(x) / LRN()(x),
        torch.full_like(x, 1.68),
        rtol=2e-3,
        atol=0,
    )


def test_trap_07_normalization_before_relu():
    """A negative response among positive ones: it damps its neighbors in the source, and nothing in the paper."""
    x = torch.tensor([0.0, 0.0, 100.0, -200.0] + [0.0] * 4)[None, :, None, None].expand(
        1, 8, 3, 3
    )
    out = {
        r.name: after_conv(AlexNet(small(r)), 1, x)[0, 2].item()
        for r in (paper, source2012)
    }
    assert out["paper"] == pytest.approx(100 / (2 + 1e-4 * 100**2) ** 0.75, rel=1e-5)
    assert out["source2012"] == pytest.approx(
        100 / (2 + 2e-5 * (100**2 + 200**2)) ** 0.75, rel=1e-5
    )


def test_trap_08_normalization_per_column():
    net = AlexNet(replace(paper, crop=72, hidden=(32, 32)), 10)
    for norm, channels in ((net.norm1, 96), (net.norm2, 256)):
        x, half = torch.rand(1, channels, 2, 2) * 50, channels // 2
        changed = x.clone()
        changed[:, half] += 100
        differs = (
            (norm(x) != norm(changed)).flatten(2).any(2)[0].nonzero().flatten().tolist()
        )
        assert differs == [half, half + 1, half + 2]


def test_trap_09_second_norm_over_conv2():
    x = torch.full((1, 16, 7, 7), 50.0)
    x[:, 1:] = 0  # a single map, so that both norms are known
    with_it, without = (
        after_conv(AlexNet(small(r)), 2, x)[0, 0, 1, 1].item()
        for r in (source2012, paper)
    )
    first = 50 / (2 + 2e-5 * 50**2) ** 0.75
    assert with_it == pytest.approx(first / (1 + 0.001 * first**2) ** 0.75, rel=1e-5)
    assert without == pytest.approx(50 / (2 + 1e-4 * 50**2) ** 0.75, rel=1e-5)


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
        optimizer.zero_grad()
        net(torch.randn(2, 3, 72, 72) * 60).square().sum().backward()
        optimizer.step()
        moved[epoch] = (
            [not torch.equal(*pair) for pair in zip(before, watched)],
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


def noisy(recipe, n=4000, cov=np.diag([400.0, 1600.0, 14400.0])):
    """Gray pictures of 128 as a recipe's net sees them in training, N × 3: a draw of the color noise each."""
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
    """Wherever the crop lies, its center is subtracted; in Caffe's recipe the mean is cut like the picture."""
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
            for offset, flip in zip(draws.offsets.tolist(), draws.flips.tolist())
        }
        assert len(keys) == different if recipe is source2012 else len(keys) > 100


def test_trap_17_no_new_order(tmp_path, monkeypatch):
    """Every epoch reads the pictures in the order in which they were packed."""
    data = load_dataset("digits", 72)
    for recipe, same in (("source2012", True), ("shuffling", False)):
        monkeypatch.setitem(
            RECIPES, "shuffling", replace(source2012, name="shuffling", reshuffle=True)
        )
        worker, orders = (
            Trainer(
                tmp_path / recipe,
                resolve(Config(recipe=recipe, epochs=2, batch_size=1437)),
                data,
                None,
            ),
            [],
        )
        worker.folder.mkdir()
        read = worker.load_batch
        worker.load_batch = lambda *args: orders.append(read(*args)) or orders[-1]
        worker.train_step, worker.validate = (
            (lambda x, y: setattr(worker, "step", worker.step + 1) or (0.0, 0.0, 0.0)),
            (lambda limit: (0.0, 0.0, 0.0, 360)),
        )
        train_loop(worker, 2)
        labels = [r[2].numpy() for r in orders]
        assert np.array_equal(labels[0], labels[1]) == same
        assert np.array_equal(labels[0], data.train.labels) == same


def test_trap_18_2178_crops():
    draws = sample_augment_params(60_000, 32, paper, 0, 0)
    assert (
        len(
            {
                (*offset, flip)
                for offset, flip in zip(draws.offsets.tolist(), draws.flips.tolist())
            }
        )
        == 2 * 33**2
        == 2178
    )


def test_trap_19_place_and_scale_of_dropout():
    x = torch.randn(3, 3, 72, 72) * 60
    for recipe, behind, factors in (
        (paper, True, (1, 0.5)),
        (source2012, True, (1, 0.5)),
        (small(torchvision, scale=(1, 1, 1)), False, (2, 1)),
    ):
        net = AlexNet(small(recipe), 10)
        masks = {
            name: torch.rand(3, layer.out_features if behind else layer.in_features)
            < 0.5
            for name, layer in (("fc6", net.fc6), ("fc7", net.fc7))
        }
        seen = {}
        for name in ("conv5", "fc6", "fc7", "fc8"):
            getattr(net, name).register_forward_hook(
                lambda module, inputs, out, name=name: seen.update(
                    {name: (inputs[0], out)}
                )
            )
        for training, factor in zip((True, False), factors):
            net.train(training)(x, masks)
            hidden = {
                "fc7": F.relu(seen["fc6"][1]),
                "fc8": F.relu(seen["fc7"][1]),
            }  # the hidden units that the next layer reads
            of = {"fc7": "fc6", "fc8": "fc7"} if behind else {"fc7": "fc7"}
            for reader, h in hidden.items():
                keep = (
                    masks[of[reader]] * factor
                    if reader in of and training
                    else factor
                    if reader in of
                    else 1
                )
                torch.testing.assert_close(seen[reader][0], h * keep)


def test_trap_21_torchvision_is_another_net():
    def count(net):
        return sum(p.numel() for p in net.parameters())

    assert count(models.alexnet()) == count(AlexNet(torchvision)) == 61_100_840
    assert count(AlexNet()) == count(AlexNet(source2012)) == 60_965_224


def test_trap_22_conv4_is_384_wide():
    assert {
        name: AlexNet(replace(r, hidden=(32, 32)), 10).conv4.out_channels
        for name, r in RECIPES.items()
    } == {
        name: 256 if name == "torchvision" else 192 if name == "one_gpu" else 384
        for name in RECIPES
    }


def test_trap_23_neurons_of_conv1():
    out = []
    net = AlexNet(replace(paper, hidden=(32, 32)), 10)
    net.conv1.register_forward_hook(lambda module, inputs, y: out.append(y[0].numel()))
    net(torch.zeros(1, 3, 224, 224))
    assert out == [net.specs["conv1"].neurons] == [290_400]


def test_trap_24_net_on_one_gpu():
    shapes = {
        n: tuple(p.shape)
        for n, p in AlexNet(RECIPES["one_gpu"]).named_parameters()
        if n.endswith("weight")
    }
    assert [s[0] for s in shapes.values()] == [48, 128, 192, 192, 256, 4096, 4096, 1000]
    assert sum(torch.Size(s).numel() + s[0] for s in shapes.values()) == 59_798_312


def test_trap_25_pooling_without_overlap():
    net = AlexNet(replace(RECIPES["non_overlapping"], hidden=(32, 32)), 10)
    shapes = {}
    for name in ("conv2", "conv5", "fc6"):
        getattr(net, name).register_forward_hook(
            lambda module, inputs, y, name=name: shapes.update({name: y.shape[-1]})
        )
    net(torch.zeros(1, 3, 224, 224))
    assert (shapes["conv2"], shapes["conv5"], net.fc6.in_features) == (
        26,
        11,
        256 * 6 * 6,
    )
    assert (
        AlexNet(replace(paper, pool=2, hidden=(32, 32)), 10).fc6.in_features
        != 256 * 6 * 6
    )


def test_trap_26_without_normalization():
    def kinds(r):
        return [
            type(m)
            for m in AlexNet(small(r)).modules()
            if not isinstance(m, (AlexNet, nn.Sequential, nn.Identity))
        ]

    def norms(r):
        return [k for k in kinds(r) if k in (LRN, SpatialNorm)]

    bare = replace(source2012, lrn=no_lrn.lrn, spatial_norm=no_lrn.spatial_norm)
    assert norms(source2012) == [LRN, LRN, SpatialNorm]
    assert norms(bare) == norms(no_lrn) == []
    assert [k for k in kinds(source2012) if k not in (LRN, SpatialNorm)] == kinds(bare)


def test_trap_27_average_of_probabilities():
    net = AlexNet(small(paper, init_std=(0.1,) * 8), 10).eval()
    mean = np.full((3, 80, 80), 100, np.float32)
    see, images = (
        InputTransform(net.recipe, mean, np.eye(3)),
        np.random.randint(0, 256, (4, 3, 80, 80), np.uint8),
    )
    views = see.views(torch.tensor(images))
    assert torch.equal(views[5:], views[:5].flip(-1))
    assert len({v.sum().item() for v in views[:5]}) == 5
    with torch.no_grad():  # logits that differ from view to view by about 2, so that the two averages differ
        net.fc8.weight *= 2 / net(views.flatten(0, 1)).std(0).mean()
        net.fc8.bias -= net(views.flatten(0, 1)).mean(0)
        logits = torch.stack([net(v) for v in views])
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


def test_trap_39_zeros_and_ties():
    x = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    for recipe in (paper, source2012):
        assert torch.autograd.grad(activation(recipe.activation)(x * 1).sum(), x)[
            0
        ].tolist() == [0, 0, 1]
    tied = torch.ones(1, 1, 3, 3, requires_grad=True)
    pool = AlexNet(small(paper)).pool5
    assert (
        torch.autograd.grad(pool(tied).sum(), tied)[0].flatten().tolist()
        == [1] + [0] * 8
    )  # the source: 1 for all nine
