"""Fixtures of several test files: the site, a browser, papermill, and faults."""

import json
import os
import random
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

from helpers import ROOT, skip_or_fail


def pytest_configure():
    """Options of this session are not those of the sessions that its tests start."""
    os.environ.pop("PYTEST_ADDOPTS", None)


def shared_folder(tmp_path_factory):
    """A folder of this session, the same in all of its processes (pytest -n)."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels(tmp_path_factory):
    """A cache of torch.compile for these tests alone, and for sessions that they start.

    torch's own does not know ATEN_CPU_CAPABILITY: a kernel of another setting would be
    taken from it, which gives NaN or does not compile.
    """
    name = "inductor-" + os.environ.get("ATEN_CPU_CAPABILITY", "own")
    variable = "TORCHINDUCTOR_CACHE_DIR"
    cache = Path(os.environ.get(variable, ""))
    if cache.name != name:
        cache = shared_folder(tmp_path_factory) / name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variable, str(cache))
        yield


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder of the site.

    It is built once for all tests, or is the one that ALEXNET_NB_SITE names: the build
    that CI publishes, or one made by the other renderer.
    """
    if built := os.environ.get("ALEXNET_NB_SITE"):
        return (ROOT / built).resolve(strict=True)
    report = shared_folder(tmp_path_factory) / "site.json"
    with FileLock(report.with_suffix(".lock")):
        if not report.exists():
            command = [sys.executable, ROOT / ".ci/site.py"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            report.write_text(json.dumps([done.returncode, done.stdout + done.stderr]))
    code, words = json.loads(report.read_text())
    assert code == 0, words
    assert " 0 broken links" in words, words
    return ROOT / "_docs"


@pytest.fixture(
    scope="module"
)  # not longer: its event loop runs, and papermill wants one of its own
def browser():
    """Chromium, driven by Playwright: its own, or the system's."""
    if not find_spec("playwright"):
        skip_or_fail(
            "playwright: got no such package, expected it: pip install -e '.[dev]'"
        )
    from playwright import sync_api as api

    with api.sync_playwright() as p:
        for path in (
            None,
            *filter(
                None,
                map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
            ),
        ):
            try:
                browser = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
            except api.Error:
                continue
            yield browser
            return browser.close()
        skip_or_fail(
            "browser: got none, expected Chromium: apt-get install -y chromium"
        )


@pytest.fixture(scope="session")
def digits():
    """The 8×8 digits of scikit-learn, enlarged and packed."""
    from alexnet_nb.data.datasets import load_dataset

    return load_dataset("digits", 72)


@pytest.fixture
def papermill(tmp_path):
    """Runs nbs/train.ipynb in a folder of its own; returns the finished process."""

    def run(*parameters, env=None, timeout=120):
        flags = [x for p in parameters for x in ("-p", *p.split("=", 1))]
        command = [
            sys.executable,
            "-m",
            "papermill",
            ROOT / "nbs/train.ipynb",
            "out.ipynb",
            "--no-progress-bar",
            *flags,
        ]
        return subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | (env or {}),
        )

    return run


@pytest.fixture
def cells():
    """The cells of a notebook under nbs/."""
    return lambda name: json.loads((ROOT / "nbs" / name).read_text())["cells"]


FAULT = """
import os, time
if os.environ.get("RANK") in {ranks!r}:
    import torch
    step, count = torch.optim.SGD.step, [0]
    def faulty(*args, **kwargs):
        count[0] += 1
        if count[0] == {step}: {what}
        return step(*args, **kwargs)
    torch.optim.SGD.step = faulty
"""


@pytest.fixture
def fault(tmp_path, monkeypatch):
    """Lets processes meet a fault at an update, at random where no `step` is given.

    `None` takes it away. Returns the step.
    """

    def put(what, step=None, ranks=("0",)):
        step = step or random.SystemRandom().randint(3, 22)
        (tmp_path / "sitecustomize.py").write_text(
            FAULT.format(what=what, step=step, ranks=ranks) if what else ""
        )
        return step

    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.setenv("ALEXNET_NB_SAVE", "0")  # a checkpoint wherever there may be one
    return put
