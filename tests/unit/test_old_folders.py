"""Runs and packed sets that an earlier version wrote.

They are read and verified. A run is not resumed with other random numbers.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alexnet_nb.data.packed import verify
from alexnet_nb.engine.checkpoint import last_checkpoint
from alexnet_nb.engine.config import Config, coerce, resolve
from alexnet_nb.engine.loop import run_training, train_loop
from alexnet_nb.engine.run_dir import RunDir, load_run_config
from alexnet_nb.engine.trainer import Trainer
from helpers import ROOT

OLD = ROOT / "tests/fixtures/0.1.0"
BEFORE = ROOT / "tests/fixtures/b6f1944"


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_packed_set_opens_and_is_whole(store):
    data = verify(OLD / f"packed-{store}")
    assert data.names == ("bright", "dark")
    assert (len(data.train), len(data.val)) == (
        18,
        2,
    )
    brightness = np.array([image.mean() for image in data.train.images[:]])
    assert np.array_equal(brightness < 115, data.train.labels == 1)


def resumed(folder, data, **changes):
    """The run in a folder, as the configuration that is stored there asks for it."""
    stored = load_run_config(str(folder))
    known = {
        name: coerce(name, stored[name], kind)
        for name, kind in Config.__annotations__.items()
        if name in stored
    }
    config = Config(
        **known | dict(out_dir=str(folder), data=str(data.path), resume=True) | changes
    )
    return Trainer(folder, resolve(config), data, None)


@pytest.mark.parametrize("run", [OLD / "run", BEFORE / "paper", BEFORE / "source2012"])
def test_a_run_of_other_random_numbers_is_refused_by_name(tmp_path, run):
    """Nothing of it is changed; it can be evaluated, and finished by its own version.

    With this one, the crops and masks of what is left would be others.
    """
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(
        ValueError, match=r"^random_stream: got version 1 in .*, expected 2, because"
    ):
        run_training(resumed(tmp_path, verify(OLD / "packed-raw")))
    assert files == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def begun(folder, **changes):
    """Begin a run of this version in a folder, and change its checkpoint's state."""
    shutil.copytree(OLD / "run", folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "checkpoints")
    data = verify(OLD / "packed-raw")
    train_loop(resumed(folder, data), 6)
    path = RunDir(folder).checkpoints()[-1] / "state.json"
    state = json.loads(path.read_text())
    for name, change in changes.items():
        change(state[name])
    path.write_text(json.dumps(state))
    return data


def test_a_run_is_resumed_to_its_end(tmp_path):
    """Its weights differ from those it had, and its metrics follow on."""
    data = begun(tmp_path)
    before = load_file(last_checkpoint(resumed(tmp_path, data)) / "weights.safetensors")
    run_training(resumed(tmp_path, data))
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert RunDir(tmp_path).checkpoints()[-1].name == "step-0000012"


def test_a_run_on_other_data_is_refused_by_name(tmp_path):
    begun(tmp_path)
    with pytest.raises(
        ValueError, match=r"whose data has .*, expected .*, as in this run"
    ):
        run_training(resumed(tmp_path, verify(OLD / "packed-jpeg")))


def test_a_run_from_before_there_were_more_fields_is_resumed(tmp_path):
    """A field of `Recipe` that its checkpoint lacks has the value that was built in."""
    data = begun(tmp_path, recipe=lambda fields: fields.pop("crop_rule"))
    run_training(resumed(tmp_path, data))
    assert RunDir(tmp_path).checkpoints()[-1].name == "step-0000012"


def test_a_run_of_a_recipe_that_has_changed_is_refused_by_name(tmp_path):
    data = begun(tmp_path, recipe=lambda fields: fields.update(lrn_n=7))
    with pytest.raises(ValueError, match=r"whose recipe has lrn_n 7, expected 5"):
        run_training(resumed(tmp_path, data))
