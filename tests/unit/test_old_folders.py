"""Runs and packed sets that an earlier version wrote.

They are read, verified and resumed, or refused by name.
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
from alexnet_nb.engine.loop import run_training
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


def test_a_run_is_resumed_to_its_end(tmp_path):
    """And its weights differ from those it had, and are finite.

    Its metrics follow on.
    """
    shutil.copytree(OLD / "run", tmp_path, dirs_exist_ok=True)
    data = verify(OLD / "packed-raw")
    before = load_file(last_checkpoint(resumed(tmp_path, data)) / "weights.safetensors")
    run_training(resumed(tmp_path, data))
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(
        after[name].isfinite().all() and after[name].shape == before[name].shape
        for name in after
    )
    assert any(not torch.equal(after[name], before[name]) for name in after)
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12, 12]
    assert RunDir(tmp_path).checkpoints()[-1].name == "step-0000012"


def test_a_run_on_other_data_is_refused_by_name(tmp_path):
    shutil.copytree(OLD / "run", tmp_path, dirs_exist_ok=True)
    with pytest.raises(
        ValueError, match=r"whose data has .*, expected .*, as in this run"
    ):
        run_training(resumed(tmp_path, verify(OLD / "packed-jpeg")))


def test_a_run_from_before_there_were_more_fields_is_resumed(tmp_path):
    """A field of `Recipe` that its checkpoint lacks has the value that was built in."""
    shutil.copytree(BEFORE / "paper", tmp_path, dirs_exist_ok=True)
    run_training(resumed(tmp_path, verify(OLD / "packed-raw")))
    assert RunDir(tmp_path).checkpoints()[-1].name == "step-0000012"
    weights = load_file(tmp_path / "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


def test_a_run_of_a_recipe_that_has_changed_is_refused_by_name(tmp_path):
    shutil.copytree(BEFORE / "source2012", tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"whose recipe has schedule .*, expected"):
        run_training(resumed(tmp_path, verify(OLD / "packed-raw")))
