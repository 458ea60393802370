"""Traps of the network (nbs/evidence/traps.tsv).

Each test fails when its trap is stepped into.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional as F
from torchvision import models

from alexnet_nb.augmentation import InputTransform
from alexnet_nb.lrn import LRN, SpatialNorm
from alexnet_nb.model import AlexNet
from alexnet_nb.recipes import LAYERS, RECIPES, no_lrn, paper, source2012, torchvision
from alexnet_nb.relu import activation
from helpers.nets import SMALL, small


@pytest.fixture(scope="module")
def photographs():
    """Eight crops of two photographs, 224 pixels: what a full-size net sees.

    On the scale 0 to 255 minus their mean.
    """
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
    """Divided pixels leave the logits twenty times closer together.

    The recipes that train see pixels from 0 to 255 minus the mean.
    """
    for recipe in (paper, source2012):
        see = InputTransform(recipe, np.zeros((3, 256, 256)), np.zeros((3, 3)))
        x = see.test_crops(torch.full((1, 3, 256, 256), 255, dtype=torch.uint8), 1)
        assert x.unique().tolist() == [255]
        assert (
            logit_spread(recipe, photographs) / logit_spread(recipe, photographs / 58)
            > 20
        )


@torch.no_grad()
def share_on(recipe, x):
    """Share of the positive responses of conv2 and conv4 in a fresh full-size net.

    Both lie behind biases of 1.
    """
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
    """With divided pixels hardly a unit behind a bias of 1 is ever off.

    Or with the paper's deviations: its ReLU does nothing.
    """
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
    """A pixel reaches exactly the windows that cover it.

    The first begins at the first pixel, the last holds the last eight.
    """
    for recipe in (paper, source2012):
        net = AlexNet(
            replace(recipe, kernels=SMALL["kernels"], hidden=SMALL["hidden"])
        ).eval()
        nn.init.ones_(net.conv1.weight), nn.init.zeros_(net.conv1.bias)
        out = []
        net.conv1.register_forward_hook(
            lambda module, inputs, y, out=out: out.append(y[0, 0])
        )
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
    """What a forward pass makes of `x` as the output of a convolution.

    Up to pooling.
    """
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
    """A negative response among positive ones damps its neighbors in the source.

    And does nothing in the paper.
    """
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
                lambda module, inputs, out, name=name, seen=seen: seen.update(
                    {name: (inputs[0], out)}
                )
            )
        for training, factor in zip((True, False), factors, strict=True):
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
