"""Where a run is started: what is shown there, and what is said."""

import os
import pty
import subprocess
import sys

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from alexnet_nb.engine.config import Config
from alexnet_nb.engine.frontend import (
    continue_run,
    in_kernel,
    is_live,
    remember_run,
    resume_command,
    resume_hint,
    write_to_console,
)

NBCLIENT = """
import sys, nbclient, nbformat
nb = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(nb).execute()
nbformat.write(nb, sys.argv[2])
"""
CODE = """
from alexnet_nb.engine.config import Config
from alexnet_nb.engine.frontend import is_live, resume_hint, show_progress
show_progress("the first line"); show_progress("the second line")
print(resume_hint(Config(data="a b", seed=3), "runs/x"), is_live())
"""


@pytest.fixture
def notebook(tmp_path):
    """A notebook that shows progress and says how to resume, in a folder."""
    cells = [nbformat.v4.new_code_cell(CODE)]
    spec = dict(name="python3", display_name="python3", language="python")
    nb = nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=spec))
    nbformat.write(nb, tmp_path / "my.ipynb")
    return tmp_path


def run(folder, command):
    """What a command that executes the notebook shows, and what the cell has said.

    The command runs in a terminal, and as from Jupyter, not as from pytest, where
    ipykernel would leave the standard error alone.
    """
    env = os.environ | dict(JPY_SESSION_NAME="lab.ipynb")
    env.pop("PYTEST_CURRENT_TEST")
    main, terminal = pty.openpty()
    streams = dict(stdin=terminal, stdout=terminal, stderr=terminal)
    done = subprocess.Popen(command, cwd=folder, env=env, **streams)
    os.close(terminal)
    shown = b""
    while block := read(main):
        shown += block
    os.close(main)
    assert done.wait(60) == 0, shown.decode()
    nb = nbformat.read(folder / "out.ipynb", 4)
    return shown.decode(), "".join(o.text for c in nb.cells for o in c.outputs)


def read(terminal):
    """What a terminal shows next; nothing once nobody writes to it."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


PAPERMILL = [sys.executable, "-m", "papermill", "my.ipynb", "out.ipynb"]


def test_papermill_within_jupyter(notebook):
    """Its console shows the progress, and its own command resumes the run."""
    (notebook / "out-2.ipynb").touch()
    shown, said = run(notebook, [*PAPERMILL, "-k", "python3", "--cwd", str(notebook)])
    assert shown.count("\r\nthe first line\r\nthe second line\r\n") == 1
    assert said.startswith("the first line\nthe second line\nto resume: papermill ")
    assert (
        f"papermill my.ipynb out-3.ipynb --cwd {notebook} -p gpus 1"
        " -p data 'a b' -p seed 3 -p resume True -p out_dir runs/x False\n" in said
    )


@pytest.mark.parametrize(
    ("option", "times"), [("--log-output", 1), ("--no-progress-bar", 0)]
)
def test_papermills_options_hold_for_the_progress(notebook, option, times):
    shown, said = run(notebook, [*PAPERMILL, option])
    assert shown.count("the first line\r\n") == times
    assert said.startswith("the first line\nthe second line\n")


def test_jupyter_shows_the_progress_in_the_notebook_alone(notebook):
    command = [sys.executable, "-c", NBCLIENT, "my.ipynb", "out.ipynb"]
    shown, said = run(notebook, command)
    assert "line" not in shown
    assert said.startswith("the first line\nthe second line\n")
    assert "run the training cell again" in said
    assert "set resume = True and out_dir = 'runs/x' in the parameters cell" in said
    assert said.endswith(" True\n")


def test_python_is_told_a_command_of_the_shell(capfd):
    assert not in_kernel()
    assert not is_live()
    write_to_console("nothing")
    assert capfd.readouterr() == ("", "")
    hint = resume_hint(Config(gpus=2, width_mult=0.5), "my runs/x")
    assert hint == "to resume: alexnet-train --resume --out-dir 'my runs/x'"
    hint = resume_hint(Config(dry_run=True), "runs/x")
    assert hint == "a dry run cannot be resumed"


def test_text_that_looks_like_a_number_stays_text():
    command = resume_command(Config(data="2012", recipe="None"), "1e3")
    for option in ("-r data 2012", "-r recipe None", "-r out_dir 1e3", "-p gpus 1"):
        assert option in command


def test_python_trains_the_same_parameters_again(tmp_path):
    (tmp_path / "config.json").touch()
    remember_run(Config(seed=5), tmp_path)
    assert continue_run(Config(seed=5)) == Config(seed=5)


AGAIN = """
from pathlib import Path
from alexnet_nb.engine.config import Config
from alexnet_nb.engine.frontend import continue_run, remember_run
asked, dry = Config(seed=5), Config(seed=5, dry_run=True, out_dir="dry")
for config, name in [(asked, "run"), (dry, "dry"), (Config(seed=6), "gone")]:
    Path(name).mkdir()
    Path(name, "config.json").touch()
    remember_run(config, Path(name))
Path("gone", "config.json").unlink()
assert continue_run(asked) == Config(seed=5, resume=True, out_dir="run")
assert continue_run(dry) == Config(seed=5, dry_run=True)
for config in (Config(seed=6), Config(seed=7), Config(resume=True, out_dir="run")):
    assert continue_run(config) == config
"""


def test_a_kernel_goes_on_with_the_run_it_has_begun(tmp_path):
    kernel, client = start_new_kernel(cwd=str(tmp_path))
    said = []

    def listen(message):
        content = message["content"]
        said.append(content.get("text") or "\n".join(content.get("traceback", [])))

    try:
        reply = client.execute_interactive(AGAIN, timeout=60, output_hook=listen)
    finally:
        kernel.shutdown_kernel(now=True)
    said = "".join(said)
    assert reply["content"]["status"] == "ok", said
    assert "resuming run, which this kernel began" in said
    assert "dry has an earlier dry run" in said
