"""What GitHub does with the site and with a release."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from helpers import ROOT

WORKFLOWS = {
    p.stem: yaml.load(p.read_text(), yaml.BaseLoader)
    for p in (ROOT / ".github/workflows").glob("*.yml")
}


JOBS = {
    f"{name}: {key}": job
    for name, w in WORKFLOWS.items()
    for key, job in w["jobs"].items()
}


def steps(job):
    return [step.get("run") or step["uses"].partition("@")[0] for step in job["steps"]]


def test_what_is_published_is_the_build_that_the_tests_saw():
    test, deploy = (JOBS[f"test: {key}"] for key in ("test", "deploy"))
    done = steps(test)
    build, look, keep = (
        done.index("python .ci/site.py"),
        done.index("pytest"),
        done.index("actions/upload-pages-artifact"),
    )
    assert build < look < keep
    assert (
        test["steps"][look]["env"]["ALEXNET_NB_SITE"]
        == "_docs"
        == test["steps"][keep]["with"]["path"]
    )
    assert not [run for run in done[build + 1 :] if "site.py" in run]
    assert deploy["needs"] == "test"
    assert steps(deploy) == ["actions/deploy-pages"]
    for condition in (deploy["if"], test["steps"][keep]["if"]):
        assert "github.ref == 'refs/heads/main'" in condition
        assert "pull_request" in condition
    uses = [
        step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step
    ]
    assert sum("deploy-pages" in action for action in uses) == 1


# what a job may do beyond reading the repository
PERMISSIONS = {
    "test: deploy": {"pages": "write", "id-token": "write"},
    "release: publish": {"id-token": "write"},
}


def test_only_the_jobs_that_publish_may_write():
    for name, job in JOBS.items():
        assert job.get("permissions") == PERMISSIONS.get(name), name
        assert 0 < int(job["timeout-minutes"]) <= 120, name
        for step in job["steps"]:
            if "uses" not in step:
                continue
            assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40}", step["uses"]), step
            if "checkout" in step["uses"]:
                assert step["with"]["persist-credentials"] == "false"
            if "setup-python" in step["uses"]:
                assert step["with"]["cache"] == "pip"
                assert step["with"]["cache-dependency-path"] == "settings.ini"
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == dict(contents="read")
        assert "group" in workflow["concurrency"]
        assert "workflow_dispatch" in workflow["on"]
    assert WORKFLOWS["test"]["on"]["push"] == dict(branches=["main"])
    assert "pull_request" in WORKFLOWS["test"]["on"]


def test_a_release_publishes_what_was_checked_and_installed():
    """Only a tag publishes, and only the files that the job before has tried."""
    workflow = WORKFLOWS["release"]
    assert set(workflow["on"]) == {"push", "workflow_dispatch"}
    assert workflow["on"]["push"] == {"tags": ["v*"]}
    build, publish = JOBS["release: build"], JOBS["release: publish"]
    done = steps(build)
    tried = next(i for i, run in enumerate(done) if "alexnet_nb.lrn" in run)
    assert (
        done.index("python -m build")
        < done.index("twine check --strict dist/*")
        < tried
        < done.index("actions/upload-artifact")
    )
    assert publish["needs"] == "build"
    assert publish["if"].endswith("startsWith(github.ref, 'refs/tags/v')")
    assert publish["environment"]["name"] == "pypi"
    assert steps(publish) == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]


def test_quarto_is_looked_at_every_week():
    workflow = WORKFLOWS["quarto"]
    assert set(workflow["on"]) == {"schedule", "workflow_dispatch"}
    done, job = steps(JOBS["quarto: quarto"]), JOBS["quarto: quarto"]
    look = next(i for i, run in enumerate(done) if run.startswith("pytest"))
    assert (
        done.index("quarto-dev/quarto-actions/setup")
        < done.index("python .ci/site.py --quarto")
        < look
    )
    (names,) = re.findall(r"tests/site/test_\{([\w,]+)\}\.py", done[look])
    assert set(names.split(",")) == {
        *("site", "staged", "browser", "browser_search", "play", "play_reader")
    }
    for name in names.split(","):
        assert (ROOT / f"tests/site/test_{name}.py").exists(), name
    assert job["steps"][look]["env"]["ALEXNET_NB_SITE"] == "_docs"


@pytest.mark.parametrize("ci", [True, False], ids=["in CI", "elsewhere"])
def test_without_a_browser_ci_fails_and_others_skip(tmp_path, ci):
    (tmp_path / "test_one.py").write_text("def test_one(browser): pass\n")
    bare = {key: value for key, value in os.environ.items() if key != "CI"}
    bare |= dict(
        PATH=str(tmp_path),
        PLAYWRIGHT_BROWSERS_PATH=str(tmp_path),
        PYTHONPATH=str(ROOT / "tests"),
    )
    if ci:
        bare["CI"] = "true"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        tmp_path,
        tmp_path,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=bare, cwd=tmp_path
    )
    assert "browser: got none, expected Chromium" in done.stdout, (
        done.stdout + done.stderr
    )
    assert ("1 error" if ci else "1 skipped") in done.stdout
    assert done.returncode == (1 if ci else 0)
