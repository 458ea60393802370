"""papermill as people use it: its help, its warnings, its ways to pass a value."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from alexnet_nb.engine.config import Config
from helpers import ROOT

PAPERMILL = [sys.executable, "-m", "papermill"]
NOTEBOOK = str(ROOT / "nbs/train.ipynb")


def run(command, folder):
    """A command with what it says, in a folder."""
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_papermill_knows_every_parameter(tmp_path):
    options = [x for f in fields(Config) for x in ("-p", f.name, "1")]
    command = [*PAPERMILL, "--prepare-only", NOTEBOOK, "out.ipynb"]
    done = run([*command, *options, "-p", "epoch", "1"], tmp_path)
    assert done.returncode == 0, done.stderr
    unknown = re.findall(r"Passed unknown parameter: (\w+)", done.stderr)
    assert unknown == ["epoch"]


def test_papermills_help_has_types_defaults_and_comments(tmp_path):
    done = run([*PAPERMILL, "--help-notebook", NOTEBOOK], tmp_path)
    shown = {
        m[1]: (m[2], m[3], m[4])
        for m in re.finditer(
            r"^  (\w+): (\S+) \(default (.*)\)\s+(.*)$", done.stdout, re.MULTILINE
        )
    }
    assert list(shown) == [f.name for f in fields(Config)]
    code = Path(sys.modules["alexnet_nb.engine.config"].__file__).read_text()
    for field in fields(Config):
        kind, default, comment = shown[field.name]
        if field.default is None:
            kind = re.sub(r"Optional\[(\w+)\]", r"\1 | None", kind)
            assert kind == str(field.type)
        else:
            assert kind == field.type.__name__
        assert default.strip('"') == str(field.default)
        assert f"# {comment}\n" in code
