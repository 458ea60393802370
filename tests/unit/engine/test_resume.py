"""A resumed run may train longer or with another learning rate, and records it."""

import json
import math
import os
import shutil
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine import cli
from alexnet_nb.engine.config import Config
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.loop import run_training
from alexnet_nb.engine.run_dir import RunDir, confirm_data, open_run, validate
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.learning import learning_rates
from helpers.images import noise_images
from helpers.runs import metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The parameters of a run on 24 images, three steps an epoch."""
    folder = tmp_path_factory.mktemp("asked")
    torch.set_num_threads(1)
    settings = dict(width_mult=1 / 16, image_size=48, crop_size=40, batch_size=8)
    settings |= dict(data=str(noise_images(folder / "noise")), precision="float64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET_NB_CACHE", str(folder / "cache"))
        (folder / "cache").mkdir()
        yield settings


def go_on(folder, settings):
    """Resume the run in a folder, or begin it, in this process, to its end."""
    resume = (folder / "config.json").exists()
    config = validate(Config(out_dir=str(folder), resume=resume, **settings))
    data = load_dataset(config.data, 48)
    run_dir = open_run(config, plan_placement(1, num_devices=0))
    run_dir.close()
    trainer = Trainer(folder, run_dir.config(), data, None)
    run_training(trainer)
    return trainer


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def ended(tmp_path_factory, asked):
    """A run of two epochs, with the errors that a person has measured."""
    folder = tmp_path_factory.mktemp("runs") / "ended"
    go_on(folder, asked | dict(epochs=2))
    (folder / "result.json").write_text('{"top1": 0.5}')
    return folder


@pytest.fixture
def run(ended, tmp_path):
    """A copy of it, to go on with."""
    return shutil.copytree(ended, tmp_path / "run")


def test_a_run_that_has_ended_goes_on_with_more_epochs(run, asked, capsys):
    """At the learning rate of its new progress; what was trained stays."""
    before = metrics(run)
    trainer = go_on(run, asked | dict(epochs=4, lr=0.004))
    said = capsys.readouterr().out
    assert "resumed at step 6 with epochs 4 (was 2), lr 0.004 (was 0.01)" in said
    assert trainer.step == 12
    rows = metrics(run)
    assert rows[: len(before)] == before
    rates = {row["epoch"]: row["lr"] for row in rows}
    recipe = trainer.recipe
    for epoch, lr in ((1, 0.01), (2, 0.01), (3, 0.004), (4, 0.004)):
        share = (epoch - 1) / (4 if epoch > 2 else 2)
        assert math.isclose(rates[epoch], learning_rates(recipe, share, lr)["weights"])
    assert rates[4] < rates[3]  # the schedule of four epochs, not of two
    entry = dict(step=6, changes=dict(epochs=[2, 4], lr=[0.01, 0.004]))
    assert json.loads((run / "config.json").read_text())["history"] == [entry]
    assert RunDir(run).config().epochs == 4
    assert not (run / "result.json").exists()
    assert json.loads((run / "result-step-0000006.json").read_text()) == {"top1": 0.5}


def test_longer_is_bit_for_bit_what_the_longer_run_would_have_been(tmp_path, asked):
    """Where the schedule does not look at the number of epochs: the paper's."""
    settings = asked | dict(recipe="paper")
    go_on(tmp_path / "whole", settings | dict(epochs=3))
    go_on(tmp_path / "run", settings | dict(epochs=2))
    go_on(tmp_path / "run", settings | dict(epochs=3))
    whole, longer = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(longer[name], whole[name]) for name in whole)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


def test_what_is_not_given_is_what_the_run_has(run, asked, capsys):
    """A default is not asked for; nothing is recorded, and nothing trained."""
    settings = (run / "config.json").read_bytes()
    before = weights(run)
    go_on(run, asked | dict(epochs=None))
    assert "finished already, at step 6\n" in capsys.readouterr().out
    stored = json.loads((run / "config.json").read_text())
    assert stored == json.loads(settings) | dict(resume=True, out_dir=str(run))
    assert all(torch.equal(w, before[n]) for n, w in weights(run).items())


def test_each_change_is_recorded_once_at_its_step(run, asked):
    go_on(run, asked | dict(epochs=3))
    go_on(run, asked | dict(epochs=3))
    go_on(run, asked | dict(epochs=4, lr=0.001))
    assert RunDir(run).history() == [
        dict(step=6, changes=dict(epochs=[2, 3])),
        dict(step=9, changes=dict(epochs=[3, 4], lr=[0.01, 0.001])),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(epochs=1), r"^epochs: got 1, expected at least 2, which the run in .*"),
        (dict(epochs=4, seed=1), "^seed: got 1, expected 0, as in the run in"),
        (dict(batch_size=4), "^batch_size: got 4, expected 8, as in the run"),
        (dict(recipe="paper"), "^recipe: got 'paper', expected 'source2012', as in"),
        (dict(width_mult=0.25), "^width_mult: got 0.25, expected 0.0625, as in"),
        (dict(precision="float32"), "^precision: got 'float32', expected 'float64'"),
    ],
)
def test_another_run_is_refused_and_nothing_is_written(run, asked, changes, words):
    before = (run / "config.json").read_bytes()
    with pytest.raises(ValueError, match=words):
        go_on(run, asked | dict(epochs=2) | changes)
    assert (run / "config.json").read_bytes() == before


def test_a_run_that_has_not_begun_changes_too(tmp_path, asked, capsys):
    """Stopped before its first checkpoint, it has no step to resume from."""
    config = Config(out_dir=str(tmp_path / "run"), epochs=1, **asked)
    open_run(config, plan_placement(1)).close()
    go_on(tmp_path / "run", asked | dict(lr=0.02))
    assert "resumed at step 0 with lr 0.02 (was 0.01)" in capsys.readouterr().out


def moved(asked, tmp_path):
    """The images of a run under another name, younger than they were."""
    place = shutil.copytree(asked["data"], tmp_path / "elsewhere")
    for path in place.rglob("*.png"):
        os.utime(path)
    return place


@pytest.mark.distributed
def test_the_command_line_needs_the_folder_and_the_changes(
    run, asked, tmp_path, monkeypatch, capsys
):
    """In processes of its own, on images that were moved, in two columns.

    Every other option is what the run was begun with.
    """
    place, old = moved(asked, tmp_path), asked["data"]
    command = ["alexnet-train", "--resume", "--out-dir", str(run), "--epochs", "3"]
    monkeypatch.setattr(sys, "argv", [*command, "--gpus", "2", "--data", str(place)])
    cli.main()
    said = capsys.readouterr().out
    assert f"the images of '{place}' are those of the run, which had '{old}'" in said
    changes = f"gpus 2 (was 1), data {place} (was {old}), epochs 3 (was 2)"
    assert f"resumed at step 6 with {changes}" in said
    assert metrics(run)[-1]["epoch"] == 3
    assert RunDir(run).config().precision == "float64"


def test_images_that_have_moved_are_the_same_images(
    run, asked, tmp_path, monkeypatch, capsys
):
    """Moved and touched; named by a relative path, and as the packed copy."""
    place = moved(asked, tmp_path)
    monkeypatch.chdir(tmp_path)
    packed = load_dataset(str(place), 48)
    capsys.readouterr()
    for data in ("elsewhere", str(packed.path)):
        config = Config(out_dir=str(run), resume=True, **asked | dict(data=data))
        confirm_data(validate(config), packed)
        assert f"the images of '{data}' are those" in capsys.readouterr().out
    confirm_data(validate(Config(out_dir=str(run), resume=True, **asked)), packed)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("pixels", "stats.npz and train/images.npy and val/images.npy differ"),
        ("class", "names differ"),
        ("fewer", "train and train/images.npy .* differ"),
        ("share", "^val_share: got 0.25, expected None, as in the run in .*labels.npy"),
    ],
)
def test_other_images_are_refused_before_anything_is_written(
    run, asked, tmp_path, what, words
):
    place, settings = moved(asked, tmp_path), dict(asked, epochs=2)
    if what == "pixels":
        for path in place.rglob("*.png"):
            image = Image.open(path)
            image.putpixel((10, 10), (1, 2, 3))
            image.save(path)
    elif what == "class":
        (place / "b").rename(place / "c")
    elif what == "fewer":
        for path in list(place.rglob("1*.png")):
            path.unlink()
    else:
        place, settings = asked["data"], settings | dict(val_share=0.25)
    before = (run / "config.json").read_bytes()
    with pytest.raises(ValueError, match=words):
        train(Config(out_dir=str(run), resume=True, **settings | dict(data=str(place))))
    assert (run / "config.json").read_bytes() == before


def test_a_run_that_knows_no_checksums_keeps_its_data(tmp_path, asked):
    config = Config(out_dir=str(tmp_path / "run"), epochs=1, **asked)
    open_run(config, plan_placement(1)).close()
    other = dict(asked, data=str(moved(asked, tmp_path)))
    with pytest.raises(ValueError, match="checksums, which the run has not recorded"):
        train(Config(out_dir=config.out_dir, resume=True, epochs=1, **other))
