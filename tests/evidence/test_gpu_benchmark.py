"""The command that measures a GPU works before it ever meets one."""

import json
import os
import subprocess
import sys

import pytest
import torch

from alexnet_nb.model import AlexNet
from alexnet_nb.recipes import RECIPES
from helpers import PATIENCE, ROOT

GROUPS = ("tests", "lrn", "step", "trainer", "pipeline", "precision")
COMMAND = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny"]


def run(*options):
    """Run the command from the root of the repository, without PYTHONPATH."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [*COMMAND, *map(str, options)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path):
    """In a file of its own, with a number for each thing that the page shows."""
    done = run("--out", tmp_path)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    found = {
        group: json.loads((tmp_path / f"gpu-{group}.json").read_text())
        for group in GROUPS
    }
    assert len(list(tmp_path.iterdir())) == 6
    assert all(file["failures"] == {} for file in found.values())
    assert all(file["machine"]["tiny"] for file in found.values())
    assert found["tests"]["parts"]["tests"]["pytest"]["counts"]
    assert len(found["lrn"]["parts"]["norms"]) == 12
    step = found["step"]["parts"]
    assert len(step["step"]) == 24
    assert all(min(line["images_per_second"]) > 0 for line in step["step"].values())
    (profile,) = step["profile"].values()
    assert len(profile["kernels"]) == 15
    trainer = found["trainer"]["parts"]
    assert len(trainer["runs"]) == len(trainer["headline"]) == 3
    assert len(trainer["bare step"]) == 2
    assert len(found["pipeline"]["parts"]["pipeline"]) == 10
    precision = found["precision"]["parts"]
    assert precision["same bits"] == {"again": True, "resumed": True}
    losses = [precision["loss"][name] for name in ("float32", "bfloat16", "float16")]
    assert [len(values) for values in losses] == [6, 6, 6]


@pytest.mark.slow
def test_a_part_that_fails_is_recorded_and_the_next_goes_on(tmp_path):
    """A data set that is not there; the numbers measured without it are kept."""
    done = run(
        "--out", tmp_path, "--data", tmp_path / "none", "--parts", "pipeline,lrn"
    )
    assert done.returncode == 1
    assert "pipeline: exit status 1" in done.stdout
    failed = json.loads((tmp_path / "gpu-pipeline.json").read_text())["failures"]
    assert "none" in failed["pipeline"]
    kept = json.loads((tmp_path / "gpu-lrn.json").read_text())
    assert kept["failures"] == {}
    assert len(kept["parts"]["norms"]) == 12


def test_there_is_no_part_of_another_name(tmp_path):
    done = run("--parts", "speed")
    assert done.returncode == 2
    assert "--parts: got ['speed'], expected some of tests, lrn" in done.stderr


def test_the_smoke_test_overwrites_no_measurement():
    done = run()
    assert done.returncode == 2
    assert "--tiny measures nothing worth keeping" in done.stderr


@pytest.mark.parametrize("recipe", ["paper", "source2012"])
def test_the_prototype_is_the_same_network(monkeypatch, recipe):
    """The control that the package's step is held against computes what it computes."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from prototype import Prototype

    torch.manual_seed(0)
    model = AlexNet(RECIPES[recipe]).double().eval()
    control = Prototype(recipe).double().eval()
    state = {}
    for name, tensor in model.state_dict().items():
        layer, kind = name.split(".")
        if layer in ("conv2", "conv4", "conv5"):
            for i, half in enumerate(tensor.chunk(2)):
                state[f"{layer}.{i}.{kind}"] = half
        elif name in ("fc7.weight", "fc8.weight"):  # of what dropout would let through
            state[name] = tensor / 2
        else:
            state[name] = tensor
    control.load_state_dict(state)
    x = torch.randn(2, 3, 224, 224, dtype=torch.float64) * 60
    with torch.no_grad():
        expected, found = model(x), control(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
