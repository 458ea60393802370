"""The training notebook: dry run and bad input."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from IPython.display import DisplayHandle
from safetensors.torch import load_file

from alexnet_nb.engine.config import Config
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.run_dir import validate
from helpers import ROOT, gone, texts

pytestmark = pytest.mark.distributed


def outputs_of(folder, id):
    """Return the outputs of a cell of the executed notebook."""
    cells = json.loads((folder / "out.ipynb").read_text())["cells"]
    return next(cell["outputs"] for cell in cells if cell["id"] == id)


def test_dry_run_goes_through_everything(papermill, tmp_path):
    done = papermill("gpus=2", "dry_run=True", "epochs=1")
    assert done.returncode == 0, done.stderr
    said = texts(tmp_path)
    for words in (
        "over gloo",
        "and every gradient",
        "resumed at step 2",
        "the dry run is in runs/digits-source2012-001",
    ):
        assert words in said, words
    assert "-p resume True" not in said  # nothing goes on with a dry run
    (first,) = outputs_of(tmp_path, "result-code")  # of the page, once the run is over
    text = "".join(first["data"]["text/markdown"])
    assert text.startswith("**A dry run of three steps")
    (run,) = (tmp_path / "runs").iterdir()
    assert {"result.json", "model.safetensors", "env.json"} <= {
        p.name for p in run.iterdir()
    }
    assert gone(tmp_path)


def test_the_printed_line_goes_on_with_the_run(papermill, tmp_path, monkeypatch):
    """As it is printed.

    At an earlier checkpoint, as after a stop, the end is the same.
    """
    monkeypatch.setenv("ALEXNET_NB_SAVE", "0")  # a checkpoint after every step
    done = papermill("gpus=2", "epochs=2", "width_mult=0.0625")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    line = next(
        line.removeprefix("to resume: ")
        for line in texts(tmp_path).splitlines()
        if line.startswith("to resume: papermill ")
    )
    assert line.startswith(f"papermill {ROOT}/nbs/train.ipynb out-2.ipynb -p gpus 2 ")
    weights = load_file(run / "model.safetensors")
    shutil.rmtree(run / "checkpoints/step-0000024")
    report = (tmp_path / "out.ipynb").read_bytes()
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.ipynb").read_bytes() == report
    assert "resumed at step 23" in texts(tmp_path, "out-2.ipynb")
    resumed = load_file(run / "model.safetensors")
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in weights.items())
    assert [
        json.loads(line)["step"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ] == [*range(1, 13), 12, *range(13, 25), 24]


REFUSED = {
    "gpu=2": "gpu: got an unknown parameter, expected a parameter of a run; "
    "did you mean gpus?",
    "epochs='ten'": "epochs: got 'ten', expected a whole number or None",
    "data='nowhere'": "data: got nowhere, which is not a folder",
    "batch_size=5000": "batch_size: got 5000, expected at most 1437",
}


def run_until_training(cells, parameter):
    """Run the cells of the notebook, with a parameter, up to the one that trains."""
    names = {"display": lambda *_, **__: DisplayHandle()}  # as in a kernel
    for cell in cells("train.ipynb"):
        code = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if "train(config)" in code:
            break
        exec(code, names)
        if "parameters" in cell["metadata"].get("tags", []):
            exec(parameter, names)


@pytest.mark.parametrize("parameter", REFUSED)
def test_bad_input_is_refused_before_any_work(cells, tmp_path, monkeypatch, parameter):
    """By a cell before the one that trains, in this process."""
    monkeypatch.chdir(tmp_path)
    words = re.escape(REFUSED[parameter])
    with plt.rc_context(), pytest.raises((ValueError, OSError), match=words):
        run_until_training(cells, parameter)
    assert not (tmp_path / "runs").exists()


def test_papermill_ends_with_what_was_refused(papermill, tmp_path):
    done = papermill("gpu=2")
    assert done.returncode != 0
    assert REFUSED["gpu=2"] in done.stderr
    assert REFUSED["gpu=2"] in texts(tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "settings",
    [
        dict(gpus=2, recipe="paper", precision="bfloat16"),
        dict(recipe="caffe", batch_size=4),  # many small steps
    ],
    ids=str,
)
def test_other_settings_go_through_a_dry_run(tmp_path, settings, capfd):
    folder = train(
        validate(Config(dry_run=True, out_dir=str(tmp_path / "run"), **settings))
    )
    rows = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert [r["step"] for r in rows] == [1, 2, 3, 3]
    said = capfd.readouterr().out
    flags = Path("/proc/cpuinfo").read_text().split()
    assert ("no instructions for bfloat16" in said) == (
        settings.get("precision") == "bfloat16"
        and not {"avx512_bf16", "amx_bf16"} & {*flags}
    )
    assert "resumed at step 2" in said
    assert ("and every gradient" in said) == (settings.get("gpus") == 2)


def test_a_dry_run_of_fewer_than_three_steps(tmp_path):
    settings = dict(batch_size=1437, epochs=2, width_mult=1 / 8)
    folder = train(Config(dry_run=True, out_dir=str(tmp_path / "run"), **settings))
    assert [
        json.loads(line)["step"]
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ] == [1, 1, 2, 2]
