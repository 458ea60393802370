import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def papermill(tmp_path):
    "Runs nbs/train.ipynb in a folder of its own; returns the finished process."
    def run(*parameters, env=None, timeout=120):
        flags = [x for p in parameters for x in ("-p", *p.split("=", 1))]
        command = [sys.executable, "-m", "papermill", ROOT / "nbs/train.ipynb", "out.ipynb", "--no-progress-bar", *flags]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, env=os.environ | (env or {}))
    return run


@pytest.fixture
def cells():
    "The cells of a notebook under nbs/."
    return lambda name: json.loads((ROOT / "nbs" / name).read_text())["cells"]
