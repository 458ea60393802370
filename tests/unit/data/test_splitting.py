"""Which images validate: by folder, or a share of each class."""

import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.data.packed import open_packed
from alexnet_nb.data.sources import list_images
from alexnet_nb.data.splitting import split_by_class, validation_counts
from alexnet_nb.engine.config import Config, parse_parameters
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.run_dir import RunDir


def photographs(folder, counts):
    """Write a small image of its own color for each number of a class."""
    shade = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shade += 1
            color = (shade % 251, 40 * len(name) % 251, 7 * i % 251)
            Image.new("RGB", (20, 20), color).save(folder / name / f"{i}.png")
    return folder


def counted(samples):
    return Counter(label for _, label in samples)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_each_class_gives_its_share_and_the_total_is_right(share):
    """For any sizes: never all of a class, and where it can be, one of each."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(1, 60, rng.integers(2, 12)).tolist()
        given = validation_counts(sizes, share)
        total = max(1, int(Fraction(str(share)) * sum(sizes)))
        most = [n - 1 for n in sizes]
        assert sum(given) == min(total, sum(most))
        assert all(0 <= k <= m for k, m in zip(given, most, strict=True))
        splittable = [k for k, m in zip(given, most, strict=True) if m]
        if len(splittable) <= total:
            assert min(splittable) >= 1


def test_a_class_that_is_large_enough_gives_exactly_its_share():
    assert validation_counts([640, 320, 80], 0.1) == [64, 32, 8]
    assert validation_counts([1000] * 30, 0.1) == [100] * 30


def test_the_smallest_classes_give_nothing_where_the_share_is_too_small():
    """Twenty classes of four: a tenth is eight images, not one of each class."""
    given = validation_counts([4] * 20, 0.1)
    assert sum(given) == 8
    assert max(given) == 1


def test_of_nine_images_two_classes_have_one_each(tmp_path):
    """A random tenth of all images left two of three classes out."""
    folder = photographs(tmp_path, dict(a=9, b=9, c=9))
    source = list_images(folder, val_share=0.12)
    assert counted(source.splits["val"]) == {0: 1, 1: 1, 2: 1}
    assert counted(source.splits["train"]) == {0: 8, 1: 8, 2: 8}


def test_one_image_is_for_training(tmp_path):
    folder = photographs(tmp_path, dict(a=9, b=1, c=2))
    source = list_images(folder, val_share=0.5)
    assert counted(source.splits["train"]) == {0: 4, 1: 1, 2: 1}
    with pytest.raises(ValueError, match="got one image in every class, expected two"):
        split_by_class([("x", 0), ("y", 1)], 2, 0.5)


def test_the_split_depends_on_the_seed_alone(tmp_path):
    folder = photographs(tmp_path, dict(a=20, b=20))
    first, again = list_images(folder), list_images(folder)
    assert first == again
    assert first.splits["val"] != list_images(folder, seed=1).splits["val"]
    every = sorted(map(str, [*first.splits["val"], *first.splits["train"]]))
    assert len(every) == len(set(every)) == 40
    assert len(first.splits["val"]) == 4


def test_another_share_is_another_packed_set(tmp_path, monkeypatch):
    """The share is in its meta, and in the key of its folder."""
    monkeypatch.setenv("ALEXNET_NB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    folder = str(photographs(tmp_path / "in", dict(a=10, b=10)))
    tenth = load_dataset(folder, 16)
    half = load_dataset(folder, 16, val_share=0.5)
    assert (len(tenth.val), len(half.val)) == (2, 10)
    assert tenth.path != half.path
    shares = [json.loads((x.path / "meta.json").read_text()) for x in (tenth, half)]
    assert [meta["val_share"] for meta in shares] == [0.1, 0.5]
    assert load_dataset(folder, 16, val_share=0.1).path == tenth.path
    assert load_dataset(str(half.path), 16, val_share=0.5).path == half.path
    with pytest.raises(
        ValueError, match=r"^val_share: got 0.2, expected None or 0.5, because"
    ):
        load_dataset(str(half.path), 16, val_share=0.2)


@pytest.mark.parametrize("second", ["val", "valid", "validation", "test"])
def test_the_second_folder_has_one_of_four_names(tmp_path, second):
    photographs(tmp_path / "train", dict(a=3, b=3))
    photographs(tmp_path / second, dict(a=1, b=2))
    source = list_images(tmp_path)
    assert counted(source.splits["val"]) == {0: 1, 1: 2}
    assert counted(source.splits["train"]) == {0: 3, 1: 3}
    assert source.left_out == ()
    with pytest.raises(
        ValueError, match=r"^val_share: got 0.2, expected None, because"
    ):
        list_images(tmp_path, val_share=0.2)


def test_test_images_beside_validation_images_are_left_out_by_name(tmp_path):
    photographs(tmp_path / "train", dict(a=3, b=3))
    photographs(tmp_path / "valid", dict(a=1, b=1))
    photographs(tmp_path / "test", dict(a=2, b=2))
    source = list_images(tmp_path)
    assert len(source.splits["val"]) == 2
    reason = "valid has the validation images"
    assert source.left_out == ((str(tmp_path / "test"), reason),)
    photographs(tmp_path / "validation", dict(a=1, b=1))
    with pytest.raises(ValueError, match="with the folders valid and validation, exp"):
        list_images(tmp_path)


@pytest.mark.parametrize("share", [0, 1, 1.5, -0.1])
def test_a_share_is_between_none_and_all(share):
    with pytest.raises(
        ValueError, match=f"^val_share: got {share:.1f}, expected a num"
    ):
        parse_parameters(dict(val_share=share))


def test_data_that_are_split_already_have_no_share():
    with pytest.raises(
        ValueError, match=r"^val_share: got 0.2, expected None, because"
    ):
        load_dataset("digits", 72, val_share=0.2)


@pytest.mark.distributed
def test_a_run_is_validated_on_the_share_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_NB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    folder = photographs(tmp_path / "in", dict(a=10, b=10))
    sizes = dict(width_mult=1 / 16, image_size=48, crop_size=40, batch_size=8)
    sizes |= dict(epochs=1, val_share=0.3, out_dir=str(tmp_path / "run"))
    run = RunDir(train(Config(data=str(folder), **sizes)))
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert rows[-1]["split"] == "val"
    assert rows[-1]["images"] == 6
    assert run.config().val_share == 0.3
    (packed,) = (tmp_path / "cache").glob("in-48-*")
    assert counted(enumerate(open_packed(packed).val.labels)) == {0: 3, 1: 3}
