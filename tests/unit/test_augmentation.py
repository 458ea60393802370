"""What an image gets depends on seed, epoch and position alone.

And has the distribution that it should have.
"""

import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare, ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as theirs

from alexnet_nb import augmentation
from alexnet_nb.augmentation import (
    CROP_TRIES,
    InputTransform,
    crop_images,
    resized_crop,
    sample_augment_params,
    sample_rectangles,
)
from alexnet_nb.base.rng import RANDOM_STREAM, random_bits
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.loader import load_images
from alexnet_nb.recipes import RECIPES, paper, source2012


def bits_for(n, seed):
    """Return the random bits of n rectangles."""
    columns = range(2 * CROP_TRIES + 2)
    return random_bits((seed,), 0, torch.arange(n), columns)


def test_offsets_are_uniform_over_33_by_33():
    seed = int.from_bytes(os.urandom(3), "big")
    offsets = sample_augment_params(200_000, 32, paper, seed, 0).offsets
    counts = torch.bincount(offsets[:, 0] * 33 + offsets[:, 1], minlength=33 * 33)
    assert len(counts) == 1089, seed
    assert chisquare(counts).pvalue > 1e-6, seed


def test_half_of_the_pictures_are_mirrored_and_the_noise_has_its_covariance():
    seed, n = int.from_bytes(os.urandom(3), "big"), 100_000
    draws = sample_augment_params(n, 32, paper, seed, 0)
    assert abs(draws.flips.double().mean() - 0.5) < 5 * 0.5 / n**0.5, seed
    a = np.random.default_rng(seed).normal(size=(3, 3)) * 40
    cov = a @ a.T
    see = InputTransform(paper, np.full((3, 256, 256), 128.0), cov, dtype=torch.float64)
    noise = draws.color.double() @ see.axes.T
    np.testing.assert_allclose(
        np.cov(noise.T.numpy()),
        0.01 * cov,
        rtol=0.1,
        atol=0.01 * np.diag(cov).max() * 0.05,
    )


def test_noise_does_not_round_away():
    """On pixels from 0 to 255 the noise moves a picture by gray levels.

    Not by hundredths.
    """
    data = load_dataset("digits", 72)
    see = InputTransform(resolve(Config()).model_recipe, data.mean, data.cov)
    draws = sample_augment_params(512, see.max_offset, see.recipe, 0, 0)
    moved = see.train(
        load_images(data.train, slice(0, 512)), draws
    ) * see.recipe.color_divide - see.train(
        load_images(data.train, slice(0, 512)), draws, color=False
    )
    expected = 0.1 * np.sqrt(np.trace(data.cov))
    assert moved.square().sum(1).mean().sqrt() == pytest.approx(expected, rel=0.15)
    assert expected > 5


def test_chunks_of_32_share_a_crop():
    for recipe, share in ((paper, 1), (source2012, 32)):
        draws = sample_augment_params(320, 32, recipe, 0, 0)
        keys = [
            (*tuple(o), f)
            for o, f in zip(draws.offsets.tolist(), draws.flips.tolist(), strict=True)
        ]
        assert sum(a != b for a, b in itertools.pairwise(keys)) >= 320 // share - 1 - 5
        assert all(keys[i] == keys[i // share * share] for i in range(320))


def seen_square(image, recipe, draws, i):
    """What a recipe cuts out of a picture.

    A square of the crop's side, or torchvision's resized crop.
    """
    top, left = draws.offsets[i].tolist()
    if recipe.crop_rule == "shift":
        return image[:, top : top + recipe.crop, left : left + recipe.crop]
    size = [recipe.crop, recipe.crop]
    return (
        theirs.resized_crop(
            torch.from_numpy(image).float(),
            top,
            left,
            *draws.shapes[i].tolist(),
            size,
            antialias=True,
        )
        .round()
        .numpy()
    )


def test_every_recipe_sees_its_kind_of_picture():
    rng = np.random.default_rng()
    images = rng.integers(0, 256, (4, 3, 256, 256), np.uint8)
    mean, cov = images.mean(0), np.cov(images.transpose(1, 0, 2, 3).reshape(3, -1))
    for recipe in RECIPES.values():
        see = InputTransform(recipe, mean, cov, dtype=torch.float64)
        draws = sample_augment_params(4, see.max_offset, recipe, 1, 2)
        x = see.train(torch.from_numpy(images), draws)
        noise = (
            draws.color.double() @ see.axes.T if recipe.color_std else torch.zeros(4, 3)
        )
        for i, ((top, left), flip) in enumerate(
            zip(draws.offsets.tolist(), draws.flips.tolist(), strict=True)
        ):
            turn = (lambda a: a[..., ::-1]) if flip else (lambda a: a)
            square = turn(seen_square(images[i], recipe, draws, i)).astype(float)
            at = {"image": (see.max_offset // 2,) * 2, "aligned": (top, left)}.get(
                recipe.mean
            )
            away = (
                mean.mean((1, 2))[:, None, None]
                if at is None
                else mean[:, at[0] : at[0] + recipe.crop, at[1] : at[1] + recipe.crop]
            )
            if recipe.mean == "aligned":
                away = turn(away)
            expected = (
                (square - away + noise[i].numpy()[:, None, None])
                / np.array(recipe.scale)[:, None, None]
                / recipe.color_divide
            )
            np.testing.assert_allclose(x[i].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_crop_takes_any_layout():
    images, offsets = (
        torch.randint(0, 256, (5, 3, 20, 20), dtype=torch.uint8),
        torch.randint(0, 4, (5, 2)),
    )
    for kind in (
        images,
        images.contiguous(memory_format=torch.channels_last),
        images[:, :, :, :18],
        images.double(),
        images[:1].expand(5, -1, -1, -1),
    ):
        expected = torch.stack(
            [
                im[:, top : top + 14, left : left + 14]
                for im, (top, left) in zip(kind, offsets.tolist(), strict=True)
            ]
        )
        assert torch.equal(crop_images(kind, offsets, 14), expected)


def test_rectangles_have_torchvisions_distribution():
    """Top, left, height, width and area, of the same number of torchvision's draws.

    Also where hardly a rectangle fits.
    """
    seed, n = int.from_bytes(os.urandom(3), "big"), 8_000
    rule = RandomResizedCrop(224)
    for size in (256, 17):
        image = torch.empty(3, size, size)
        expected = np.array(
            [rule.get_params(image, rule.scale, rule.ratio) for _ in range(n)]
        )
        offsets, shapes = sample_rectangles(size, bits_for(n, seed))
        found = torch.cat((offsets, shapes), 1).numpy()
        assert (found[:, :2] >= 0).all()
        assert (found[:, 2:] >= 1).all()
        assert (found[:, :2] + found[:, 2:] <= size).all()
        pairs = [(found[:, i], expected[:, i]) for i in range(4)] + [
            (f[:, 2] * f[:, 3] for f in (found, expected))
        ]
        pairs += [
            (f[:, 3] / f[:, 2] for f in (found, expected)),
            (f[:, 0] / np.maximum(size - f[:, 2], 1) for f in (found, expected)),
        ]
        assert min(ks_2samp(*pair).pvalue for pair in pairs) > 1e-6, seed


def test_rectangles_have_torchvisions_limits(monkeypatch):
    """8 to 100 % of the area, 3:4 to 4:3.

    And the whole picture where none of the tries fits.
    """
    size = 4096  # so that rounding to whole pixels hardly counts
    seed = int.from_bytes(os.urandom(3), "big")
    _, shapes = sample_rectangles(size, bits_for(50_000, seed))
    share, ratio = shapes.double().prod(1) / size**2, shapes[:, 1] / shapes[:, 0]
    assert share.min().item() == pytest.approx(0.08, abs=1e-3)
    assert 0.98 < share.max().item() <= 1
    assert (ratio.min().item(), ratio.max().item()) == pytest.approx(
        (3 / 4, 4 / 3), abs=2e-3
    )
    monkeypatch.setattr(augmentation, "CROP_TRIES", 0)
    offsets, shapes = sample_rectangles(256, bits_for(5, 0))
    assert (offsets == 0).all()
    assert (shapes == 256).all()


def test_resized_crop_equals_torchvisions():
    """Exactly that of a float tensor, and within a gray level that of a PIL image.

    Which pytorch/examples resizes.
    """
    seed = int.from_bytes(os.urandom(3), "big")
    image = np.random.default_rng(seed).integers(0, 256, (3, 256, 256), np.uint8)
    offsets, shapes = sample_rectangles(256, bits_for(12, seed))
    found = resized_crop(
        torch.from_numpy(image).expand(12, -1, -1, -1), offsets, shapes, 224
    )
    pil = Image.fromarray(image.transpose(1, 2, 0))
    for ours, offset, shape in zip(
        found, offsets.tolist(), shapes.tolist(), strict=True
    ):
        expected = (
            theirs.resized_crop(
                torch.from_numpy(image).float(),
                *offset,
                *shape,
                [224, 224],
                antialias=True,
            )
            .round()
            .clamp(0, 255)
        )
        assert torch.equal(ours.float(), expected), seed
        of_pil = np.asarray(
            theirs.resized_crop(pil, *offset, *shape, [224, 224])
        ).transpose(2, 0, 1)
        assert np.abs(ours.numpy().astype(int) - of_pil).max() <= 1, seed


@pytest.mark.parametrize("name", ["paper", "source2012", "torchvision", "caffe"])
def test_some_positions_of_an_epoch_are_those_of_all(name):
    """Whatever else is asked for; an image has its choices for itself."""
    whole = sample_augment_params(300, 32, RECIPES[name], 3, 5)
    for positions in (slice(0, 300), slice(17, 170), slice(299, None), slice(5, 5)):
        some = sample_augment_params(300, 32, RECIPES[name], 3, 5, positions=positions)
        for field in ("offsets", "flips", "color", "shapes"):
            expected, found = getattr(whole[positions], field), getattr(some, field)
            assert expected is found or torch.equal(expected, found)
    for seed, epoch in ((4, 5), (3, 6)):
        other = sample_augment_params(300, 32, RECIPES[name], seed, epoch)
        assert not torch.equal(other.offsets, whole.offsets)
        has_noise = RECIPES[name].color_std > 0
        assert torch.equal(other.color, whole.color) != has_noise


def test_the_numbers_are_those_of_this_version_of_the_stream():
    """A run that is resumed must find them; if they change, so must RANDOM_STREAM."""
    assert RANDOM_STREAM == 2
    params = sample_augment_params(40_000, 32, paper, 3, 5)[slice(39_998, 40_000)]
    assert params.offsets.tolist() == [[32, 12], [0, 10]]
    assert params.flips.tolist() == [True, False]
    color = [
        -0.075448774,
        0.064109556,
        0.012500606,
        -0.079312220,
        -0.041750561,
        0.005267038,
    ]
    assert params.color.flatten().tolist() == pytest.approx(color, rel=1e-6)


def test_an_aligned_mean_and_resized_crops_are_refused():
    see = InputTransform(
        replace(RECIPES["caffe"], crop_rule="resized"),
        np.zeros((3, 256, 256)),
        np.eye(3),
    )
    with pytest.raises(ValueError, match="mean: got 'aligned'"):
        see.crop(
            torch.zeros(2, 3, 256, 256, dtype=torch.uint8),
            sample_augment_params(2, see.max_offset, see.recipe, 0, 0),
        )
