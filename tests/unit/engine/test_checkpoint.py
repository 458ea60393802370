"""What a run leaves on the disk: whole, its own, finite, and enough to repeat what it would have done."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alexnet_nb.base.files import atomic_write
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine import checkpoint
from alexnet_nb.engine.checkpoint import (
    last_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.loop import run_training, train_loop
from alexnet_nb.engine.run_dir import RunDir, open_run
from alexnet_nb.engine.trainer import StepMetrics, Trainer, mean_metrics

TINY = dict(width_mult=1 / 16, epochs=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Checkpoints wherever they may be; and no more threads than a small net needs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET_NB_SAVE", "0")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", 72)


def begin(folder, data, **settings):
    """A run in this process, new or resumed."""
    config = Config(out_dir=str(folder), **TINY | settings)
    if not (folder / "config.json").exists():
        open_run(config, plan_placement(1, num_devices=0)).close()
    worker = Trainer(folder, resolve(config), data, None)
    if found := last_checkpoint(worker):
        load_checkpoint(worker, found)
    return worker


def rows(folder):
    """The lines of the metrics without clock times."""
    found = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return [
        {name: value for name, value in row.items() if "seconds" not in name}
        for row in found
    ]


def assert_same(run, whole):
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert rows(run) == rows(whole)


class Killed(Exception):
    """Stands for a process that goes away."""


def dies(*_, **__):
    raise Killed


def kill_in_validation(trainer, patch):
    """The process goes away while it validates, after the last step of an epoch."""
    trainer.validate = dies


def kill_before_checkpoint(trainer, patch):
    """It goes away when the validation is recorded, before the checkpoint of the epoch is there."""
    patch.setattr(checkpoint, "write_tensors", dies)


@pytest.fixture(scope="module")
def plateau():
    """The printed recipe, whose learning rate follows the validation errors; four steps an epoch."""
    return dict(recipe="paper", epochs=10, batch_size=360)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, digits, plateau):
    folder = tmp_path_factory.mktemp("whole")
    run_training(begin(folder, digits, **plateau))
    rates = {row["lr"] for row in rows(folder)}
    assert len(rates) >= 3, "the learning rate must drop, or the test shows nothing"
    return folder


@pytest.mark.parametrize("kill", [None, kill_in_validation, kill_before_checkpoint])
def test_stopped_after_every_epoch_the_plateau_rule_forgets_nothing(
    tmp_path, monkeypatch, digits, plateau, undisturbed, kill
):
    for epoch in range(1, 11):
        if kill:
            worker = begin(tmp_path, digits, **plateau)
            with monkeypatch.context() as patch:
                kill(worker, patch)
                with pytest.raises(Killed):
                    train_loop(worker, epoch * worker.steps_per_epoch)
        worker = begin(tmp_path, digits, **plateau)
        RunDir(tmp_path).truncate_metrics(worker.step)
        train_loop(worker, epoch * worker.steps_per_epoch)
    run_training(begin(tmp_path, digits, **plateau))
    assert_same(tmp_path, undisturbed)


def test_a_run_killed_in_its_last_validation_makes_up_for_it(tmp_path, digits):
    worker = begin(tmp_path, digits)
    worker.validate = dies
    with pytest.raises(Killed):
        run_training(worker)
    run_training(begin(tmp_path, digits))
    assert [row["split"] for row in rows(tmp_path)].count("val") == 1


def test_a_checkpoint_without_its_validation_is_refused(tmp_path, digits):
    """As an earlier version wrote them: another run would come of it, without a word."""
    run_training(begin(tmp_path, digits))
    state = RunDir(tmp_path).checkpoints()[-1] / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"val_errors": []}))
    with pytest.raises(
        ValueError, match="got 0 validation errors, expected 1, one an epoch; remove it"
    ):
        begin(tmp_path, digits)


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, digits):
    """The good checkpoint before stays, and a resumed run goes on from it."""
    worker = begin(tmp_path, digits)
    train_loop(worker, 4)
    step = torch.optim.SGD.step

    def overflow(self, *arguments):
        step(self, *arguments)
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.fill_(torch.inf)

    words = r"not finite after step 5, .* nothing was saved"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", overflow)
        with pytest.raises(FloatingPointError, match=words):
            train_loop(worker, 12)
    assert RunDir(tmp_path).checkpoints()[-1].name == "step-0000004"
    run_training(begin(tmp_path, digits))
    assert all(
        weight.isfinite().all()
        for weight in load_file(tmp_path / "model.safetensors").values()
    )


def test_a_run_that_ends_in_overflow_does_not_succeed(tmp_path):
    """One step of all images, after which nothing else would notice; and what it wrote is JSON to any reader."""
    with pytest.raises(
        RuntimeError, match="FloatingPointError: validation loss: got nan after step 1"
    ):
        train(Config(out_dir=str(tmp_path / "run"), batch_size=1437, lr=1e30, **TINY))
    assert not (tmp_path / "run/model.safetensors").exists()
    assert not RunDir(tmp_path / "run").checkpoints()
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=dies)


def test_means_are_over_images_not_over_batches(tmp_path, digits):
    """520 images in batches of 128 leave a batch of 8, which is no quarter of the epoch."""
    steps = [StepMetrics(128, 1.0, 0.75, 0.5, 0.1, 0.0)] * 4 + [
        StepMetrics(8, 2.0, 0.0, 0.0, 0.1, 0.0)
    ]
    assert mean_metrics(steps) == pytest.approx(
        (528 / 520, 0.75 * 512 / 520, 0.5 * 512 / 520)
    )
    worker = begin(tmp_path, digits, batch_size=500)
    said = []
    worker.log = lambda words, mark=":": said.append(words)
    run_training(worker)
    found = [row for row in rows(tmp_path) if row["split"] == "train"]
    assert [row["images"] for row in found] == [500, 500, 437]
    assert [row["images"] for row in rows(tmp_path) if row["split"] == "val"] == [360]
    loss = sum(row["loss"] * row["images"] for row in found) / 1437
    error = sum(row["top1"] * row["images"] for row in found) / 1437
    assert any(
        f"loss {loss:.3f} " in words and f"training {error:6.1%}" in words
        for words in said
    ), said


def victim(path):
    path.write_text("my thesis\n")
    return path


def test_a_file_that_is_a_link_is_replaced(tmp_path, digits):
    """A run from somebody else's archive may hold links to files of mine."""
    mine, run = victim(tmp_path / "thesis"), tmp_path / "run"
    run_training(begin(run, digits))
    shutil.rmtree(run / "checkpoints")
    (run / "log").mkdir()
    for name in (".lock", "metrics.jsonl", "log/torchrun.txt", "config.json.planted"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(mine)
    train(Config(out_dir=str(run), resume=True, **TINY))
    assert mine.read_text() == "my thesis\n"
    assert len(rows(run)) == 13
    assert not any(
        (run / name).is_symlink()
        for name in (".lock", "metrics.jsonl", "log/torchrun.txt")
    )


@pytest.mark.parametrize("name", ["checkpoints", "log"])
def test_a_folder_that_is_a_link_is_refused(tmp_path, digits, name):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    worker = begin(run, digits)
    (run / name).symlink_to(elsewhere)
    for start in (
        lambda: run_training(worker),
        lambda: train(Config(out_dir=str(run), resume=True, **TINY)),
    ):
        with pytest.raises(
            ValueError,
            match=f"out_dir: got .*{name}, a link to .*elsewhere, expected a folder of the run itself",
        ):
            start()
    if name == "checkpoints":
        with pytest.raises(ValueError, match="a link to"):
            save_checkpoint(worker)
    assert not list(elsewhere.iterdir())


def test_copies_beside_the_checkpoints_are_passed_over(tmp_path, digits):
    worker = begin(tmp_path, digits)
    train_loop(worker, 2)
    last = RunDir(tmp_path).checkpoints()[-1]
    shutil.copytree(last, f"{last}-best")
    (tmp_path / "checkpoints/step-0000001-notes").write_text("mine")
    (tmp_path / "checkpoints/step-0000000").symlink_to(tmp_path)
    run_training(begin(tmp_path, digits))
    assert Path(f"{last}-best").is_dir()
    assert (tmp_path / "checkpoints/step-0000001-notes").exists()
    assert len(RunDir(tmp_path).checkpoints()) == 2


def test_what_killed_processes_left_is_removed(tmp_path, digits):
    worker = begin(tmp_path, digits)
    train_loop(worker, 2)
    (tmp_path / "checkpoints/.step-0000012.torn").mkdir()
    run_training(begin(tmp_path, digits))
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_files_reach_the_disk_before_their_name(tmp_path, monkeypatch):
    """Every file in a folder, the folder, then the new name, then the folder with the name."""
    calls, fsync, replace = [], os.fsync, Path.replace

    def recorded_fsync(handle):
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def recorded_replace(path, target):
        calls.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    with atomic_write(tmp_path / "step-1") as temp:
        temp.mkdir()
        for name in ("a", "b"):
            (temp / name).write_text(name)
    assert sorted(calls[:2]) == ["a", "b"]
    assert calls[2].startswith(".step-1.")
    assert calls[3:] == ["replace", tmp_path.name]


def test_a_planted_temporary_name_is_not_used(tmp_path):
    """The name is drawn at random; that of the process could be guessed."""
    names = []
    for _ in range(2):
        with atomic_write(tmp_path / "config.json") as temp:
            names.append(temp.name)
            temp.write_text("{}")
    assert len(set(names)) == 2
    assert not any(str(os.getpid()) == name.rpartition(".")[2] for name in names)


def test_a_run_keeps_what_turns_images_into_its_input(tmp_path, digits):
    run_training(begin(tmp_path, digits))
    stats = np.load(tmp_path / "stats.npz")
    assert np.array_equal(stats["mean"], digits.mean)
    assert np.array_equal(stats["cov"], digits.cov)
    assert json.loads((tmp_path / "data.json").read_text())["names"] == list(
        digits.names
    )
