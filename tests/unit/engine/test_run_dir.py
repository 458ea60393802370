"""The folder of a run belongs to one process and to no link."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from alexnet_nb.engine.checkpoint import (
    save_checkpoint,
)
from alexnet_nb.engine.config import Config
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.loop import run_training, train_loop
from alexnet_nb.engine.run_dir import RunDir, open_run, validate
from helpers.runs import SMALL, TINY, begin, metrics, victim

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_is_trained_by_one_at_a_time(tmp_path):
    """A second one is refused before anything is written, by the name of the first.

    The run is free when that has ended.
    """
    config = Config(out_dir=str(tmp_path / "run"), **SMALL)
    run_dir = open_run(config, plan_placement(1))
    folder = run_dir.path
    before = (folder / "env.json").stat().st_mtime_ns
    with pytest.raises(
        RuntimeError,
        match=f"out_dir: got {folder}, which process {os.getpid()} on .* is training, "
        f"expected a run that nobody trains; if nobody does, remove {folder}/.lock",
    ):
        train(replace(config, resume=True, gpus=2))
    assert (folder / "env.json").stat().st_mtime_ns == before
    assert not (folder / "log").exists()
    run_dir.close()
    with pytest.raises(ValueError, match="is not empty"):
        open_run(
            config, plan_placement(1)
        )  # begun by another one while this one was packing
    run_dir.lock()
    run_dir.close()


def test_a_start_that_failed_is_begun_again(tmp_path):
    """Not by hand: what it has left is no run."""
    for name in (".lock", "env.json", ".config.json.123"):
        (tmp_path / name).write_text("")
    config = validate(Config(out_dir=str(tmp_path), **SMALL))
    open_run(config, plan_placement(1)).close()
    with pytest.raises(ValueError, match="is not empty"):
        validate(Config(out_dir=str(tmp_path), **SMALL))


def test_a_name_is_no_folder_to_stay_out_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    validate(Config(out_dir="digits/001"))
    with pytest.raises(
        ValueError,
        match="out_dir: got 'photos/001', "
        "expected a folder outside of the data, photos",
    ):
        validate(Config(data="photos", out_dir="photos/001"))


def test_checkpoints_are_in_order_for_ever(tmp_path):
    for step in (9_999_998, 10_000_000):
        (tmp_path / f"checkpoints/step-{step:07}").mkdir(parents=True)
    assert [p.name for p in RunDir(tmp_path).checkpoints()] == [
        "step-9999998",
        "step-10000000",
    ]


@pytest.mark.distributed
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
    assert len(metrics(run)) == 13
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
            match=f"out_dir: got .*{name}, a link to .*elsewhere, "
            "expected a folder of the run itself",
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
