"""A run stops when its error no longer falls, and the best weights are kept."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.config import Config, parse_parameters
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.loop import run_training, train_loop
from alexnet_nb.engine.run_dir import RunDir, open_run, validate
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.weights import read_weights
from helpers.runs import metrics

pytestmark = pytest.mark.usefixtures("one_thread")

PATIENCE = 3
# the number of epochs does not matter to the learning rate
CONSTANT = "source2012, schedule=((0.0, 'all', 1.0),)"
EPOCHS = 14


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Parameters of a run on images of two kinds that can be told apart with effort."""
    folder = tmp_path_factory.mktemp("asked")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 50)):
        (folder / "in" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 200, (48, 48, 3)) + low + rng.integers(-40, 40)
            pixels = pixels.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "in" / name / f"{i}.png")
    settings = dict(width_mult=1 / 16, image_size=48, crop_size=40, batch_size=8)
    settings |= dict(data=str(folder / "in"), precision="float64", recipe=CONSTANT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET_NB_CACHE", str(folder / "cache"))
        (folder / "cache").mkdir()
        yield settings | dict(val_share=0.5, epochs=EPOCHS)


def make(folder, settings):
    """A process of a run that is begun or resumed."""
    resume = (folder / "config.json").exists()
    config = validate(Config(out_dir=str(folder), resume=resume, **settings))
    data = load_dataset(config.data, 48, val_share=config.val_share)
    run_dir = open_run(config, plan_placement(1, num_devices=0))
    run_dir.close()
    return Trainer(folder, run_dir.config(), data, None)


def go_on(folder, **settings):
    trainer = make(folder, settings)
    run_training(trainer)
    return trainer


def same(path, other):
    one, two = load_file(path), load_file(other)
    return all(torch.equal(one[name], two[name]) for name in one)


def validations(folder):
    return [row["top1"] for row in metrics(folder) if row["split"] == "val"]


def stop_and_best(errors):
    """By hand: the epoch after which patience ends, and the best one before it."""
    best, lowest = 0, 2.0
    for epoch, error in enumerate(errors, 1):
        if error < lowest:
            best, lowest = epoch, error
        elif epoch == best + PATIENCE:
            return epoch, best
    raise AssertionError("this run never stops, so it shows nothing")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, asked):
    """A run of all epochs, without patience; its stop and its best by hand."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    torch.set_num_threads(1)
    go_on(folder, **asked)
    assert not (folder / "best.safetensors").exists()
    stop, best = stop_and_best(validations(folder))
    assert 1 < best < stop < EPOCHS
    return folder, stop, best


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, asked, whole):
    """The same run with patience."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    go_on(folder, **asked, patience=PATIENCE)
    return folder


def test_it_stops_where_the_whole_run_has_not_improved(whole, stopped, asked):
    """It is the whole run up to there, bit for bit."""
    folder, stop, best = whole
    assert len(validations(stopped)) == stop
    assert metrics(stopped) == metrics(folder)[: len(metrics(stopped))]
    summary = json.loads((stopped / "summary.json").read_text())
    assert summary == dict(
        step=4 * stop,
        epochs=stop,
        planned_epochs=EPOCHS,
        stopped_early=True,
        best_epoch=best,
        best_top1=min(validations(stopped)),
        best_weights_kept=True,
    )
    every = json.loads((folder / "summary.json").read_text())
    assert (every["stopped_early"], every["epochs"]) == (False, EPOCHS)
    assert every["best_weights_kept"] is False


def test_the_best_weights_are_those_of_a_run_that_ends_there(
    tmp_path, whole, stopped, asked
):
    """Its learning rate is constant, so a shorter run is the beginning of a longer."""
    _, stop, best = whole
    go_on(tmp_path / "best", **asked | dict(epochs=best))
    go_on(tmp_path / "last", **asked | dict(epochs=stop))
    kept, last = stopped / "best.safetensors", stopped / "model.safetensors"
    assert same(kept, tmp_path / "best/model.safetensors")
    assert same(last, tmp_path / "last/model.safetensors")
    assert not same(kept, last)
    assert read_weights(kept).names == ("bright", "dark")


def test_a_run_that_has_stopped_is_finished(tmp_path, stopped, whole, asked, capsys):
    """Until it is given more patience."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    go_on(folder, **asked)
    said = capsys.readouterr().out
    assert f"finished already, at step {4 * whole[1]}" in said
    assert f"stopped after epoch {whole[1]} of {EPOCHS}: the lowest" in said
    assert metrics(folder) == metrics(stopped)
    go_on(folder, **asked, patience=EPOCHS)
    assert f"with patience {EPOCHS} (was {PATIENCE})" in capsys.readouterr().out
    assert metrics(folder) == metrics(whole[0])
    assert same(folder / "model.safetensors", whole[0] / "model.safetensors")


@pytest.mark.parametrize("after", [-1, 0, 1])
def test_interrupted_it_stops_at_the_same_epoch(
    tmp_path, monkeypatch, whole, stopped, asked, after
):
    """Before, at and after the best epoch, and from the checkpoint before the last."""
    monkeypatch.setenv("ALEXNET_NB_SAVE", "0")
    settings = asked | dict(patience=PATIENCE)
    train_loop(make(tmp_path / "run", settings), 4 * (whole[2] + after) + 2)
    shutil.rmtree(RunDir(tmp_path / "run").checkpoints()[-1])
    go_on(tmp_path / "run", **settings)
    assert metrics(tmp_path / "run") == metrics(stopped)
    for name in ("best.safetensors", "model.safetensors"):
        assert same(tmp_path / "run" / name, stopped / name)


def test_patience_that_is_given_late_counts_what_was_trained(
    tmp_path, whole, asked, capsys
):
    folder = shutil.copytree(whole[0], tmp_path / "run")
    go_on(folder, **asked | dict(epochs=EPOCHS + 4), patience=1)
    said = capsys.readouterr().out
    assert "its weights were not kept, because patience was given later" in said
    assert metrics(folder) == metrics(whole[0])


@pytest.mark.parametrize("patience", [0, -1])
def test_patience_is_at_least_an_epoch(patience):
    with pytest.raises(ValueError, match=f"^patience: got {patience}, expected a numb"):
        parse_parameters(dict(patience=patience))


@pytest.mark.distributed
def test_two_columns_stop_with_one_best_of_both(tmp_path, whole, stopped, asked):
    """Two processes with a column each, and the weights of both in one file."""
    settings = asked | dict(patience=PATIENCE, gpus=2)
    folder = train(Config(out_dir=str(tmp_path / "run"), **settings))
    assert validations(folder) == validations(stopped)
    kept, expected = (load_file(f / "best.safetensors") for f in (folder, stopped))
    for name in expected:
        assert torch.allclose(kept[name], expected[name], rtol=1e-8, atol=1e-12), name
