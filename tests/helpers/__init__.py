"""What tests of several files share: places, and processes of a run."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# everything, for many minutes, or the short form
LONG = "ALEXNET_NB_LONG" in os.environ
PATIENCE = 300  # seconds after which a process that should have ended is called hung


def skip_or_fail(reason):
    """Skip what a contributor's machine lacks; in CI, where it must run, fail."""
    if os.environ.get("CI"):
        pytest.fail(
            f"{reason}; install it, CI must not skip these tests", pytrace=False
        )
    pytest.skip(reason, allow_module_level=True)


def require_playwright():
    """Skip or fail where the packages that drive a browser are missing."""
    if not find_spec("playwright") or not find_spec("axe_playwright_python"):
        skip_or_fail(
            "playwright and axe: got no such packages, expected them: "
            "pip install -e '.[dev]'"
        )


def texts(folder, name="out.ipynb"):
    """What the cells of a notebook that ran in a folder said."""
    nb = json.loads((folder / name).read_text())
    return "\n".join(
        "".join(o.get("text", "")) + "\n".join(o.get("traceback", ""))
        for c in nb["cells"]
        for o in c.get("outputs", [])
    )


def workers(folder):
    """Command lines of processes that train in a folder."""
    found = []
    for p in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = p.read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(
            w == "alexnet_nb.engine.launch" or w.endswith("/alexnet-train")
            for w in words
        ) and any(
            str(folder) in os.path.realpath(Path(p.parent, "cwd")) + w for w in words
        ):
            found.append((int(p.parent.name), words))
    return found


def gone(folder, seconds=10):
    end = time.monotonic() + seconds
    while workers(folder) and time.monotonic() < end:
        time.sleep(0.2)
    return workers(folder) == []


def run_python(code, *arguments, prefix=()):
    """Run code in a new interpreter."""
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
