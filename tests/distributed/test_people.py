"""Runs as people start, stop and repeat them: papermill, Jupyter, alexnet-train."""

import ast
import copy
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from alexnet_nb.engine.config import Config
from helpers import PATIENCE, ROOT, gone, texts

pytestmark = pytest.mark.distributed

NOTEBOOK = str(ROOT / "nbs/train.ipynb")
PAPERMILL = [sys.executable, "-m", "papermill", NOTEBOOK, "out.ipynb"]
CLI = "from alexnet_nb.engine.cli import main; main()"
SMALL = dict(width_mult=0.0625, image_size=40, crop_size=36, batch_size=512)
PARAMETERS = """
width_mult: 0.0625
image_size: 40
batch_size: 512
lr: 1e-2
compile: null
"""


def test_parameters_from_a_file_and_as_text(tmp_path):
    """Without a warning; and the console shows the run."""
    (tmp_path / "params.yaml").write_text(PARAMETERS)
    options = ["-f", "params.yaml", "-y", "{crop_size: 36, epochs: 1e0}"]
    options += ["-r", "seed", "3", "-r", "precision", "float32"]
    done = subprocess.run(
        [*PAPERMILL, *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "unknown parameter" not in done.stderr
    run = tmp_path / "runs/digits-source2012-001"
    config = json.loads((run / "config.json").read_text())
    asked = SMALL | dict(lr=0.01, epochs=1, seed=3, compile=None)
    assert {name: config[name] for name in asked} == asked
    for words in (r"^epoch  1/1   loss ", r"^the run is in runs/digits-source2012-001"):
        assert len(re.findall(words, done.stderr, re.MULTILINE)) == 1
        assert len(re.findall(words, texts(tmp_path), re.MULTILINE)) == 1


def listen():
    """As in a terminal; what a shell starts in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


CODE = f"""
from alexnet_nb.engine.config import Config
from alexnet_nb.engine.launch import train
folder = train(Config(epochs=EPOCHS, **{SMALL}))
"""


@pytest.mark.parametrize("place", ["papermill", "shell"])
def test_control_c_ends_with_one_sentence(tmp_path, place):
    """It says how to resume, and no process is left."""
    cell = nbformat.v4.new_code_cell(CODE.replace("EPOCHS", "400"))
    spec = dict(name="python3", display_name="python3", language="python")
    nb = nbformat.v4.new_notebook(cells=[cell], metadata=dict(kernelspec=spec))
    nbformat.write(nb, tmp_path / "my.ipynb")
    command = [sys.executable, "-m", "papermill", "my.ipynb", "out.ipynb"]
    hint = "papermill my.ipynb out-2.ipynb -p gpus 1 .* -p out_dir"
    if place == "shell":
        options = [f"--{name}={value}" for name, value in SMALL.items()]
        options = [option.replace("_", "-") for option in options]
        command = [sys.executable, "-c", CLI, "--epochs=400", *options]
        hint = "alexnet-train --resume --out-dir"
    env = os.environ.copy()
    env.pop("PYTEST_CURRENT_TEST")  # with it ipykernel does not take the output
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    job = subprocess.Popen(command, cwd=tmp_path, env=env, preexec_fn=listen, **streams)
    said = ""
    for line in job.stdout:
        said += line
        if line.startswith("epoch  2/400"):
            job.send_signal(signal.SIGINT)
    assert job.wait(60) != 0
    assert gone(tmp_path)
    sentence = f"^stopped; to resume: {hint} runs/digits-source2012-001$"
    assert re.search(sentence, said, re.MULTILINE), said
    assert "Traceback" not in said


def test_jupyters_interrupt_ends_with_one_sentence(tmp_path, fault):
    """And the same cell goes on with the run."""
    fault("time.sleep(600)", step=4)  # the first of the second epoch
    kernel, client = start_new_kernel(cwd=str(tmp_path))
    code = CODE.replace("EPOCHS", "2")
    outputs = []

    def listen(message):
        outputs.append(message)
        words = message["content"].get("text", "")
        if words.startswith("epoch  1/2"):
            kernel.interrupt_kernel()

    def run(hook):
        outputs.clear()
        reply = client.execute_interactive(code, timeout=PATIENCE, output_hook=hook)
        said = "".join(m["content"].get("text", "") for m in outputs)
        return reply["content"], said

    try:
        reply, said = run(listen)
        assert gone(tmp_path)
        assert reply["ename"] == "RunStopped"
        (line,) = reply["traceback"]
        assert line.startswith("stopped; to resume, run the training cell again; ")
        assert line not in said
        fault(None)
        reply, said = run(outputs.append)
        assert reply["status"] == "ok"
        assert "resuming runs/digits-source2012-001, which this kernel" in said
        assert "resumed at step" in said
        assert len(list(tmp_path.glob("runs/*"))) == 1
    finally:
        kernel.shutdown_kernel(now=True)


def test_every_cell_may_be_executed_twice(tmp_path):
    """Each twice in a row, and the one that reads the parameters at the end, too."""
    nb = nbformat.read(NOTEBOOK, 4)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    settings = dict(gpus=1, epochs=1, out_dir="run") | SMALL
    for cell in code:
        if "parameters" in cell.metadata.get("tags", []):
            lines = [f"{name} = {value!r}" for name, value in settings.items()]
            cell.source = "\n".join([cell.source, *lines])
    twice = [copy.deepcopy(cell) for cell in code for _ in range(2)]
    reads = next(cell for cell in code if "parse_parameters(" in cell.source)
    nb.cells = [*twice, reads]
    NotebookClient(
        nb, timeout=120, resources={"metadata": {"path": tmp_path}}
    ).execute()
    said = "".join(o.get("text", "") for c in nb.cells for o in c.outputs)
    assert len(re.findall("resuming run, which this kernel began", said)) == 2
    assert said.count("epoch  1/1") == 1  # it was trained once
    assert said.count("finished already, at step 3") == 1
    assert not (tmp_path / "runs").exists()


def test_no_cell_of_the_training_notebook_changes_a_parameter(cells):
    """Or the cell that reads the parameters would read another when executed again."""
    assigned = set()
    for cell in cells("train.ipynb"):
        is_parameters = "parameters" in cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and not is_parameters:
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    assigned.add(node.id)
    assert assigned >= {"config", "dataset"}
    assert assigned.isdisjoint(field.name for field in fields(Config))
