"""A damaged run, or one of another recipe, is refused by name and runs no code."""

import json
import os
import pickle

import pytest
import torch

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.checkpoint import load_checkpoint
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.loop import run_training, train_loop
from alexnet_nb.engine.run_dir import RunDir
from alexnet_nb.engine.trainer import Trainer
from helpers.runs import SMALL


def begun(tmp_path, **settings):
    """A worker after an epoch of a tiny run, and its checkpoint."""
    tmp_path.mkdir(exist_ok=True)
    config = Config(out_dir=str(tmp_path), **SMALL | settings)
    worker = Trainer(tmp_path, resolve(config), load_dataset("digits", 72), None)
    train_loop(worker, worker.steps_per_epoch)
    return worker, RunDir(tmp_path).checkpoints()[-1]


def fresh(tmp_path, **settings):
    return Trainer(
        tmp_path,
        resolve(Config(out_dir=str(tmp_path), **SMALL | settings)),
        load_dataset("digits", 72),
        None,
    )


def test_velocities_lie_in_memory_as_the_weights_do(tmp_path):
    """Fused SGD goes through both as they lie."""
    worker, path = begun(tmp_path)
    other = fresh(tmp_path)
    load_checkpoint(other, path)
    for p, q in zip(worker.model.parameters(), other.model.parameters(), strict=True):
        a, b = (
            worker.optimizer.state[p]["momentum_buffer"],
            other.optimizer.state[q]["momentum_buffer"],
        )
        assert torch.equal(a, b)
        assert a.stride() == b.stride() == p.stride() == p.grad.stride()


def test_another_recipe_or_data_set_is_refused_by_name(tmp_path):
    worker, path = begun(tmp_path)
    state = json.loads((path / "state.json").read_text())
    assert state["val_errors"] == worker.val_errors != []  # the plateau rule's memory
    with pytest.raises(
        ValueError,
        match=r"got a checkpoint whose recipe has .*, expected .*, as in this run",
    ):
        load_checkpoint(fresh(tmp_path, recipe="paper"), path)
    changed = state | dict(data=state["data"] | {"train/labels.npy": "another"})
    (path / "state.json").write_text(json.dumps(changed))
    with pytest.raises(
        ValueError, match=r"whose data has train/labels\.npy 'another', exp"
    ):
        load_checkpoint(fresh(tmp_path), path)


class Harmful:
    """A pickle that makes a file where it is loaded."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_damaged_file_of_a_run_is_named(tmp_path):
    _, path = begun(tmp_path)
    (path / "state.json").write_text('{"step": 1')
    with pytest.raises(
        ValueError,
        match=f"{path}/state.json: got a damaged or missing file, expected the one "
        f"that was saved; remove {path} to resume from the checkpoint before it",
    ):
        load_checkpoint(fresh(tmp_path), path)
    (tmp_path / "config.json").write_text("")
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json: got a damaged file"):
        train(Config(out_dir=str(tmp_path), resume=True, **SMALL))


def test_others_may_read_what_a_user_lets_them_read(tmp_path):
    before = os.umask(0o027)
    try:
        run_training(begun(tmp_path)[0])
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {
        "weights.safetensors",
        "velocity.safetensors",
        "state.json",
        "model.safetensors",
    } <= {p.name for p in files}
    assert {oct(p.stat().st_mode & 0o777) for p in files} == {"0o640"}


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "missing", "pickle", "pickle with its checksum"]
)
def test_a_damaged_checkpoint_is_refused_and_runs_no_code(
    tmp_path, monkeypatch, damage
):
    monkeypatch.chdir(tmp_path)
    _, path = begun(tmp_path / "run")
    file = path / "weights.safetensors"
    raw = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"cut": raw[:-100], "flipped": raw[:-1] + bytes([raw[-1] ^ 1])}.get(damage)
            or pickle.dumps(Harmful())
        )
    if "checksum" in damage:
        from alexnet_nb.base.files import sha256

        state = json.loads((path / "state.json").read_text())
        state["sha256"][file.name] = sha256(file)
        (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(
        Exception,
        match="weights.safetensors: got a damaged or missing file"
        if "checksum" not in damage
        else "header|Header",
    ):
        load_checkpoint(fresh(tmp_path / "run"), path)
    assert not (tmp_path / "harmed").exists()
