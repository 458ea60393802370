"""The command that measures a GPU works before it ever meets one."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch

from alexnet_nb.model import AlexNet
from alexnet_nb.recipes import RECIPES
from helpers import LONG, PATIENCE, ROOT

TABLES = [f"benchmarks/{name}.md" for name in ("step-cpu", "lrn", "data")]
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


@pytest.mark.skipif(not LONG, reason="two minutes: set ALEXNET_NB_LONG=1")
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

    show_on_page(tmp_path)


def show_on_page(results):
    """Run the cells of the page on these numbers: each is shown where it belongs."""
    (results / "benchmarks").mkdir()
    for path in results.glob("gpu-*.json"):
        path.rename(results / "benchmarks" / path.name)
    for path in ("gpu/levers.json", *TABLES):
        (results / path).parent.mkdir(exist_ok=True)
        (results / path).write_text((ROOT / "results" / path).read_text())
    page = json.loads((ROOT / "nbs/evidence/performance.ipynb").read_text())
    shown, names = {}, {}
    for cell in page["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"]).replace("../../results", str(results))
        *rest, last = ast.parse(source).body
        exec(compile(ast.Module(rest, []), cell["id"], "exec"), names)
        if not isinstance(last, ast.Expr):
            exec(compile(ast.Module([last], []), cell["id"], "exec"), names)
            continue
        value = eval(compile(ast.Expression(last.value), cell["id"], "eval"), names)
        shown[cell["id"]] = getattr(value, "data", value)
    assert "`python benchmarks/gpu.py`" in shown["state"]
    assert "this package, trainer's step, paper, batch 4 |" in shown["headline"]
    assert "a run of 2 epochs, batch 8" in shown["headline"]
    # the head of a table and the two lines of the fold
    assert shown["step-package"].count("\n|") == 2 + 24
    assert shown["profile"].count("\n|") == 2 + 15
    assert "lrn 1×3×1×1 channels-last float32" in shown["lrn-table"]
    assert "JPEG, 2 processes" in shown["pipeline-bars"] + shown["pipeline-table"]
    assert "| float16 |" in shown["precision"]
    assert "has the same bits" in shown["bits"]
    assert "2 epochs, batch 8 |" in shown["runs"]


@pytest.mark.skipif(not LONG, reason="half a minute: set ALEXNET_NB_LONG=1")
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
    assert "--parts: got ['speed'], expected some of lrn, step" in done.stderr


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
