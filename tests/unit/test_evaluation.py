"""A run is evaluated as it was trained, on its own images or on others.

And counts its crops as what they are.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet_nb.augmentation import InputTransform
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.loop import run_training
from alexnet_nb.engine.run_dir import open_run
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.evaluation import (
    chance_error,
    evaluate,
    guessing_loss,
    load_input,
    load_model,
    probabilities,
)
from alexnet_nb.learning import error_rates
from alexnet_nb.recipes import paper
from helpers.packing import pack_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """A small net after one epoch of digits, and its evaluation.

    On its own validation images.
    """
    folder = tmp_path_factory.mktemp("run")
    config = Config(out_dir=str(folder), width_mult=1 / 16, epochs=1)
    open_run(config, plan_placement(1, num_devices=0)).close()
    run_training(Trainer(folder, resolve(config), digits, None))
    evaluate(folder, digits)
    return folder


def packed(folder, names, size=72, n=12):
    """Random images of some classes, packed.

    Brighter than digits, so that their mean is another.
    """
    rng = np.random.default_rng(0)
    for name in names:
        (folder / "images" / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(100, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    dest = folder / "packed"
    return pack_folder(folder / "images", dest, size, progress=lambda line: None)


def result_of(run, name):
    """The newest result on other data of a run."""
    paths = run.glob(f"result-{name}.json")
    return json.loads(max(paths, key=lambda path: path.stat().st_mtime_ns).read_text())


def test_other_data_are_measured_with_the_mean_of_the_run(tmp_path, run, digits):
    others = packed(tmp_path, digits.names)
    before = (run / "result.json").read_bytes()
    table = evaluate(run, others, split="all")
    assert "of 120 images" in table
    assert (run / "result.json").read_bytes() == before
    found = result_of(run, "packed-*-all")
    assert found["n"] == 120
    assert found["data"] == str(others.path)
    assert found["sha256"] == others.meta["sha256"]
    model = load_model(run)
    by_hand = InputTransform(model.recipe, digits.mean, digits.cov)
    parts = (others.train, others.val)
    scores = torch.cat(
        [probabilities(model, by_hand, part.images, 5) for part in parts]
    )
    labels = torch.tensor(np.concatenate([part.labels for part in parts]))
    assert error_rates(scores, labels) == (found["top1"], found["top5"])
    assert torch.equal(load_input(run, model).mean, by_hand.mean)


@pytest.mark.parametrize(("split", "n"), [("train", 108), ("val", 12), ("all", 120)])
def test_each_part_of_other_data_has_a_file_of_its_own(tmp_path, run, digits, split, n):
    evaluate(run, packed(tmp_path, digits.names), split=split)
    assert result_of(run, f"packed-*-{split}")["n"] == n


def test_the_training_images_of_a_run_are_not_its_result(run, digits):
    before = (run / "result.json").read_bytes()
    evaluate(run, digits, split="train")
    assert (run / "result.json").read_bytes() == before
    assert result_of(run, "digits-72-*-train")["n"] == 1437


def test_other_classes_are_refused(tmp_path, run):
    with pytest.raises(
        ValueError,
        match=r"data: got the classes cat, dog, "
        r"expected those of .*, 0, 1, 2, 3, 4, … \(10 in all\)",
    ):
        evaluate(run, packed(tmp_path, ["cat", "dog"]))


def test_the_same_classes_in_another_order_are_refused(run, digits):
    with pytest.raises(ValueError, match="data: got the classes 9, 8"):
        evaluate(run, replace(digits, names=digits.names[::-1]))


def test_another_size_is_refused(tmp_path, run, digits):
    with pytest.raises(
        ValueError, match="data: got images of 80×80 pixels, expected 72"
    ):
        evaluate(run, packed(tmp_path, digits.names, 80))


def test_an_unknown_part_is_refused(run, digits):
    with pytest.raises(
        ValueError, match="split: got 'test', expected one of val, train, all"
    ):
        evaluate(run, digits, split="test")


@pytest.fixture
def earlier(run, tmp_path):
    """The run as an earlier version would have left it."""
    folder = tmp_path / "earlier"
    shutil.copytree(run, folder)
    for name in ("stats.npz", "data.json"):
        (folder / name).unlink()
    return folder


def test_a_run_of_an_earlier_version_is_measured_with_its_own_data(
    earlier, run, digits
):
    assert evaluate(earlier, digits) == evaluate(run, digits)


def test_without_its_mean_a_run_is_measured_on_nothing_else(earlier, digits, tmp_path):
    others = packed(tmp_path, digits.names)
    with pytest.raises(ValueError, match=r"got no stats.npz, .* give the data"):
        evaluate(earlier, others)


def test_a_run_without_any_word_of_its_data_is_refused(earlier, digits):
    shutil.rmtree(earlier / "checkpoints")
    with pytest.raises(ValueError, match=r"got no data.json and no checkpoint"):
        evaluate(earlier, digits)


def test_data_without_checksums_are_not_taken_for_the_runs_own(run, digits):
    before = (run / "result.json").read_bytes()
    unknown = replace(digits, meta={})
    evaluate(run, unknown)
    assert (run / "result.json").read_bytes() == before


def transform(size, crop, **changes):
    recipe = replace(paper, crop=crop, **changes)
    return InputTransform(recipe, np.full((3, size, size), 100.0), np.eye(3))


@pytest.mark.parametrize("size", [71, 73])
def test_images_of_another_size_than_the_mean_are_refused(size):
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    see = transform(72, 64)
    for use in (see.test_crops, lambda x: see.crop(x, None)):
        with pytest.raises(
            ValueError, match=f"images: got {size}×{size} pixels, expected 72×72"
        ):
            use(images)


@pytest.mark.parametrize(("size", "distinct"), [(64, 2), (65, 8), (66, 10), (72, 10)])
def test_views_are_counted_as_what_they_are(size, distinct):
    """Without a border all crops are one.

    With a border of one pixel the center is a corner.
    """
    see = transform(size, 64)
    images = torch.randint(256, (1, 3, size, size), dtype=torch.uint8)
    crops = see.test_crops(images, 10)
    assert len(crops) == len(see.test_crop_offsets(10)) == distinct
    assert len({view.numpy().tobytes() for view in crops}) == distinct
    assert len(see.test_crops(images, 5)) == distinct // 2
    assert len(see.test_crops(images, 1)) == 1


def test_the_report_counts_distinct_views(tmp_path, digits):
    """Images of the size of the crop have one view where they are not mirrored."""
    folder = tmp_path / "run"
    config = Config(out_dir=str(folder), width_mult=1 / 16, epochs=1, crop_size=72)
    open_run(config, plan_placement(1, num_devices=0)).close()
    run_training(Trainer(folder, resolve(config), digits, None))
    table = evaluate(folder, digits)
    assert json.loads((folder / "result.json").read_text())["crops"] == 1
    assert "1 crop " in table
    assert "5 crops" not in table


def test_chance_is_to_name_the_most_frequent_class(digits):
    """Of training; and the loss of guessing is that of its frequencies."""
    labels = np.array([0] * 6 + [1] * 3 + [2])
    train = replace(digits.train, labels=labels)
    val = replace(digits.val, labels=np.array([0, 1, 1, 2]))
    data = replace(digits, train=train, val=val, names=("cat", "dog", "owl"))
    assert chance_error(data) == ("cat", 0.75)
    p = np.array([0.6, 0.3, 0.1])
    assert guessing_loss(labels) == pytest.approx(-np.log(p[labels]).mean())
    assert guessing_loss(np.arange(1000)) == pytest.approx(np.log(1000))
