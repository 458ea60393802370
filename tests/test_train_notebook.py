"The papermill job: dry run, bad input, and processes that fail."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from alexnet_nb.preprocessing import prepare
from alexnet_nb.recipes import RECIPES
from alexnet_nb.training import Config, check, complete, train

OUT = "out.ipynb"


def texts(tmp_path):
    nb = json.loads((tmp_path / OUT).read_text())
    return "\n".join("".join(o.get("text", "")) + "\n".join(o.get("traceback", "")) for c in nb["cells"] for o in c.get("outputs", []))


def workers(folder):
    "Command lines of processes that train in a folder."
    found = []
    for p in Path("/proc").glob("[0-9]*/cmdline"):
        try: words = p.read_bytes().decode().split("\0")
        except OSError: continue
        if "alexnet_nb.training" in words and any(str(folder) in os.path.realpath(Path(p.parent, "cwd")) + w for w in words): found.append((int(p.parent.name), words))
    return found


def gone(folder, seconds=10):
    end = time.monotonic() + seconds
    while workers(folder) and time.monotonic() < end: time.sleep(0.2)
    return workers(folder) == []


def test_dry_run_goes_through_everything(papermill, tmp_path):
    begin = time.monotonic()
    done = papermill("gpus=2", "dry_run=True", "epochs=1")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 40
    said = texts(tmp_path)
    for words in ("over gloo", "and every gradient", "resumed at step 2", "-p resume True"): assert words in said, words
    run, = (tmp_path / "runs").iterdir()
    assert run.name == "digits-source2012-001" and {"result.json", "model.safetensors", "env.json"} <= {p.name for p in run.iterdir()}
    assert gone(tmp_path)

    line = next(l for l in said.splitlines() if l.startswith("papermill nbs/train.ipynb"))  # as it is printed
    (tmp_path / "nbs").symlink_to(ROOT / "nbs")
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(l)["step"] for l in (run / "metrics.jsonl").read_text().splitlines()]
    assert "resumed at step 3" in texts(tmp_path) and steps == [1, 2, 3, 3, *range(4, 13), 12]


@pytest.mark.parametrize("parameter, words", [
    ("gpu=2", "unknown parameter gpu: did you mean gpus?"),
    ("epochs=ten", "parameter epochs: found 'ten', expected int or None"),
    ("data=nowhere", "data: nowhere is not a folder"),
    ("batch_size=5000", "batch_size: found 5000, but the data have only 1437"),
])
def test_bad_input_is_refused_before_any_work(papermill, tmp_path, parameter, words):
    done = papermill(parameter)
    assert done.returncode != 0
    assert words in done.stderr and words in texts(tmp_path)
    assert not (tmp_path / "runs").exists()


FAULT = """
import os, time
if os.environ.get("RANK", "-") in {rank!r}:
    import torch
    step, count = torch.optim.SGD.step, [0]
    def faulty(*args, **kwargs):
        count[0] += 1
        if count[0] == 5: {fault}
        return step(*args, **kwargs)
    torch.optim.SGD.step = faulty
"""


def broken(tmp_path, rank, fault):
    "An environment in which the processes of these ranks meet a fault at their fifth update."
    (tmp_path / "sitecustomize.py").write_text(FAULT.format(rank=rank, fault=fault))
    return os.environ | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("fault, words", [("raise ArithmeticError('broken on purpose')", "ArithmeticError: broken on purpose"),
                                          ("os.kill(os.getpid(), 9)", "was killed by signal 9")], ids=["raise", "kill"])
def test_a_failing_process_ends_the_notebook_with_its_traceback(papermill, tmp_path, rank, fault, words):
    done = papermill("gpus=2", env=broken(tmp_path, rank, fault), timeout=60)
    assert done.returncode != 0
    assert f"process {rank} " in done.stderr and words in done.stderr and words in texts(tmp_path)
    failed = max(p.stat().st_mtime for p in tmp_path.glob("runs/*/log/torchrun.txt"))
    assert (tmp_path / OUT).stat().st_mtime - failed < 30
    assert gone(tmp_path)


def test_no_process_outlives_a_killed_notebook(tmp_path):
    "Not even processes that hang, and so never find out that nobody listens."
    command = [sys.executable, "-m", "papermill", ROOT / "nbs/train.ipynb", OUT, "-p", "gpus", "2"]
    job = subprocess.Popen(command, cwd=tmp_path, env=broken(tmp_path, "01", "time.sleep(600)"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while sum(len(p.read_text().splitlines()) for p in tmp_path.glob("runs/*/metrics.jsonl")) < 4:
        assert time.monotonic() < end and job.poll() is None
        time.sleep(0.2)
    assert len(workers(tmp_path)) >= 2
    kernel = next(p.parent.name for p in Path("/proc").glob("[0-9]*/cmdline") if str(job.pid) == parent(p) and b"ipykernel" in p.read_bytes())
    os.kill(int(kernel), signal.SIGKILL)
    job.wait(60)
    assert job.returncode != 0 and gone(tmp_path)


def parent(cmdline):
    return (cmdline.parent / "stat").read_text().rsplit(")", 1)[1].split()[1]


@pytest.mark.parametrize("settings", [dict(gpus=2, precision="bfloat16"), dict(gpus=2, recipe="paper"), dict(recipe="caffe")], ids=str)
def test_other_settings_go_through_a_dry_run(tmp_path, settings, capfd):
    folder = train(check(Config(dry_run=True, out_dir=str(tmp_path / "run"), **settings)))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 3]
    said = capfd.readouterr().out
    assert "resumed at step 2" in said and ("and every gradient" in said) == (settings.get("gpus") == 2)


def test_each_recipe_keeps_its_crop():
    "Without a size, full-size pictures give the recipe's own crop."
    for name in ("paper", "source2012", "caffe"):
        assert complete(Config(data="photos", recipe=name)).crop == RECIPES[name].crop


@pytest.mark.parametrize("files, words", [
    (["train/", "val/"], "no images for train"),
    (["train/a/1.png", "val/a/2.png"], "has one class"),
    (["train/a/1.png", "train/b/", "val/a/2.png"], "no images for the classes b"),
    (["train/a/1.png", "train/b/2.png", "val/c/3.png"], "has classes that train has not: c"),
    (["train/a/1.png", "train/b/2.png"], "none named val"),
    (["train/a/1.png", "train/b/2.png", "val/a/broken.png"], "no picture for val"),
])
def test_odd_folders_are_refused(tmp_path, monkeypatch, files, words):
    monkeypatch.setenv("ALEXNET_NB_CACHE", str(tmp_path / "cache"))
    for name in files:
        path = tmp_path / "data" / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if "broken" in name: path.write_text("not a picture")
        elif not name.endswith("/"): Image.new("RGB", (20, 20)).save(path)
    with pytest.raises((ValueError, FileNotFoundError), match=words): prepare(str(tmp_path / "data"), 16)


def test_a_dry_run_of_many_small_steps(tmp_path):
    folder = train(Config(dry_run=True, batch_size=4, out_dir=str(tmp_path / "run")))
    assert [json.loads(l)["step"] for l in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 3]
