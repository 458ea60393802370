"""A run that is stopped goes on exactly; one that cannot go on says why."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from jupyter_client.manager import start_new_kernel
from safetensors.torch import load_file

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.loop import train_loop
from alexnet_nb.engine.run_dir import RunDir
from alexnet_nb.engine.trainer import Trainer
from helpers import LONG, PATIENCE, ROOT, gone, texts, workers
from helpers.runs import SMALL, TINY64, fit_one, metrics

pytestmark = pytest.mark.distributed


def same(a, b):
    """Metrics and weights of two runs, bit for bit."""
    x, y = (load_file(folder / "model.safetensors") for folder in (a, b))
    return (
        metrics(a) == metrics(b)
        and x.keys() == y.keys()
        and all(torch.equal(x[n], y[n]) for n in x)
    )


@pytest.mark.parametrize("gpus", [1, 2] if LONG else [2])
def test_killed_at_any_step_it_goes_on_bit_for_bit(tmp_path, fault, gpus):
    fault(None)
    whole = train(Config(gpus=gpus, out_dir=str(tmp_path / "whole"), **SMALL))
    step = fault("os.kill(os.getpid(), 9)", ranks=[str(gpus - 1)])
    out = tmp_path / "run"
    with pytest.raises(
        RuntimeError, match=f"process {gpus - 1} was killed by signal 9"
    ):
        train(Config(gpus=gpus, out_dir=str(out), **SMALL))
    assert len(RunDir(out).checkpoints()) <= 2
    assert gone(tmp_path)
    fault(None)
    assert same(
        train(Config(gpus=gpus, out_dir=str(out), resume=True, **SMALL)), whole
    ), f"killed at update {step}"


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)] if LONG else [(2, 1)])
def test_one_process_takes_up_what_two_have_begun_and_the_other_way_round(
    tmp_path, fault, first, then
):
    settings = dict(TINY64, epochs=2)
    fit_one(tmp_path / "whole", epochs=2)
    step = fault("raise ArithmeticError")
    out = str(tmp_path / "run")
    with pytest.raises(RuntimeError, match="ArithmeticError"):
        train(Config(gpus=first, out_dir=out, **settings))
    fault(None)
    a, b = (
        load_file(folder / "model.safetensors")
        for folder in (
            train(Config(gpus=then, out_dir=out, resume=True, **settings)),
            tmp_path / "whole",
        )
    )
    for name in a:
        assert (a[name] - b[name]).abs().max() <= 1e-9 * b[name].abs().max(), (
            name,
            step,
        )


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path, fault, monkeypatch):
    """Where no checkpoint is due before the next step.

    There the weights would be seen.
    """
    fault(
        "[p.data.fill_(float('nan')) for g in args[0].param_groups"
        " for p in g['params'] if p.dim() == 4]",
        7,
    )
    monkeypatch.setenv("ALEXNET_NB_SAVE", "600")
    with pytest.raises(
        RuntimeError,
        match=r"FloatingPointError: loss: got nan at step 8 "
        r"with a learning rate of 0.01",
    ):
        train(Config(out_dir=str(tmp_path / "run"), **SMALL))
    known = json.loads((tmp_path / "run/log/not-finite.json").read_text())
    assert (
        known["step"],
        known["epoch"],
        known["positions"],
        known["rates"]["weights"],
    ) == (8, 1, [896, 1024], 0.01)
    assert "conv1.weight" in known["largest_gradients"]
    assert max(row["step"] for row in metrics(tmp_path / "run")) == 7


def test_a_process_that_hangs_is_found_out(tmp_path, fault, monkeypatch, capfd):
    monkeypatch.setenv("ALEXNET_NB_TIMEOUT", "6")
    fault("time.sleep(600)", ranks=["1"])
    begin = time.monotonic()
    with pytest.raises(RuntimeError, match="process 0 failed"):
        train(Config(gpus=2, out_dir=str(tmp_path / "run"), **SMALL))
    assert time.monotonic() - begin < 300
    assert gone(tmp_path)
    assert "keeps the other waiting for 6 s ends the run" in capfd.readouterr().out


RAISE = (
    "raise ArithmeticError('broken on purpose')",
    "ArithmeticError: broken on purpose",
)


KILL = "os.kill(os.getpid(), 9)", "was killed by signal 9"


@pytest.mark.parametrize(
    ("rank", "what", "words"),
    [("0", *KILL), ("1", *RAISE), *([("0", *RAISE), ("1", *KILL)] if LONG else [])],
    ids=["0 is killed", "1 raises", *(["0 raises", "1 is killed"] if LONG else [])],
)
def test_a_failing_process_ends_the_notebook_with_its_traceback(
    papermill, tmp_path, fault, rank, what, words
):
    step = fault(what, ranks=[rank])
    done = papermill(
        "gpus=2", "epochs=2", "width_mult=0.0625", timeout=300
    )  # not the 600 s after which a silent process is given up
    assert done.returncode != 0, step
    assert f"process {rank} " in done.stderr
    assert words in done.stderr
    assert words in texts(tmp_path)
    assert gone(tmp_path)


def reached(folder, step, job=None):
    """Wait until the run in a folder has recorded a step."""
    end = time.monotonic() + 60
    while (
        sum(
            len(p.read_text().splitlines()) for p in folder.glob("runs/*/metrics.jsonl")
        )
        < step
    ):
        assert time.monotonic() < end
        assert not (job and job.poll())
        time.sleep(0.1)
    assert len(workers(folder)) >= 2


@pytest.fixture
def hanging(fault):
    """Both processes hang after an update; the number of updates.

    So they never find out by themselves that nobody listens.
    """
    return fault("time.sleep(600)", ranks=["0", "1"]) - 1


def test_no_process_outlives_a_killed_notebook(tmp_path, hanging):
    command = [
        sys.executable,
        "-m",
        "papermill",
        ROOT / "nbs/train.ipynb",
        "out.ipynb",
        "-p",
        "gpus",
        "2",
    ]
    job = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    reached(tmp_path, hanging, job)
    kernel = next(
        p.parent.name
        for p in Path("/proc").glob("[0-9]*/cmdline")
        if str(job.pid) == parent(p) and b"ipykernel" in p.read_bytes()
    )
    os.kill(int(kernel), signal.SIGKILL)
    job.wait(60)
    assert job.returncode != 0
    assert gone(tmp_path)


def parent(cmdline):
    return (cmdline.parent / "stat").read_text().rsplit(")", 1)[1].split()[1]


@pytest.mark.parametrize("how", ["interrupted", "restarted"] if LONG else ["restarted"])
def test_a_kernel_is(tmp_path, hanging, how):
    kernel, client = start_new_kernel(cwd=str(tmp_path))
    client.execute(
        "from alexnet_nb.engine.config import Config\n"
        "from alexnet_nb.engine.launch import train\n"
        "train(Config(gpus=2))"
    )
    reached(tmp_path, hanging)
    {"interrupted": kernel.interrupt_kernel, "restarted": kernel.restart_kernel}[how]()
    try:
        assert gone(tmp_path)
        if how == "interrupted":
            assert client.get_shell_msg(timeout=30)["content"]["ename"] == "RunStopped"
    finally:
        kernel.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    "how",
    [signal.SIGINT, signal.SIGTERM, signal.SIGKILL] if LONG else [signal.SIGTERM],
    ids=lambda s: s.name,
)
def test_papermill_is_stopped(tmp_path, how):
    """It ends, nothing stays behind, and a run beside it is undisturbed."""
    command = [
        sys.executable,
        "-m",
        "papermill",
        ROOT / "nbs/train.ipynb",
        "out.ipynb",
        *["-p", "gpus", "2", "-p", "epochs", "2", "-p", "width_mult", "0.125"],
    ]
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()

    def listen():
        return signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # a shell's background jobs ignore it

    jobs = [
        subprocess.Popen(
            command,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=listen,
        )
        for folder in folders
    ]
    end = time.monotonic() + PATIENCE
    while not list(folders[0].glob("runs/*/metrics.jsonl")) and time.monotonic() < end:
        time.sleep(0.1)
    assert workers(folders[0])
    jobs[0].send_signal(how)
    jobs[0].wait(30)
    assert jobs[0].returncode != 0
    assert gone(folders[0])
    assert jobs[1].wait(PATIENCE) == 0, jobs[1].stderr.read()
    for path in folders[0].glob("runs/*/metrics.jsonl"):
        [
            json.loads(line)
            for line in path.read_text().splitlines(True)
            if line.endswith("\n")
        ]


FULL = """
import subprocess, sys, threading, time
from pathlib import Path
from alexnet_nb.engine.config import Config
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.run_dir import RunDir
disk, words = sys.argv[1], sys.argv[4]
free, batch_size = int(sys.argv[2]), int(sys.argv[3])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", disk], check=True)
out, filler = Path(disk, "run"), Path(disk, "filler")
settings = dict(out_dir=str(out), width_mult=1 / 8, epochs=3, batch_size=batch_size)
def fill():
    while not RunDir(out).checkpoints(): time.sleep(0.02)
    with open(filler, "wb", buffering=0) as f:
        try:
            while True: f.write(bytes(1 << 14))
        except OSError: f.truncate(f.tell() - free)
threading.Thread(target=fill, daemon=True).start()
try: train(Config(**settings))
except RuntimeError as e: print("No space left on device" in str(e) and words in str(e))
filler.unlink()
train(Config(resume=True, **settings))
print("whole")
"""


IN_METRICS, IN_CHECKPOINT = (
    pytest.param(0, 16, "in append_metrics", id="in the metrics"),
    pytest.param(1 << 18, 128, "in write_checkpoint", id="in a checkpoint"),
)


@pytest.mark.parametrize(
    ("free", "batch_size", "words"),
    [IN_METRICS, IN_CHECKPOINT] if LONG else [IN_METRICS],
)
def test_a_full_disk_ends_the_run_and_the_last_checkpoint_is_whole(
    tmp_path, monkeypatch, free, batch_size, words
):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no permission for a mount of its own")
    (tmp_path / "disk").mkdir()
    # seconds between checkpoints, so that the disk is filled between two of them
    monkeypatch.setenv("ALEXNET_NB_SAVE", "3")
    command = [
        "unshare",
        "-rm",
        sys.executable,
        "-c",
        FULL,
        tmp_path / "disk",
        *map(str, (free, batch_size, words)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    lines = done.stdout.splitlines()
    assert "True" in lines, done.stdout + done.stderr
    assert lines[-1] == "whole", done.stdout + done.stderr
    assert any("resumed at step" in line for line in lines), done.stdout + done.stderr


def anonymous():
    return (
        int(re.search(r"RssAnon:\s+(\d+)", open("/proc/self/status").read())[1]) / 1000
    )  # MB


@pytest.mark.skipif(not LONG, reason="minutes: set ALEXNET_NB_LONG=1")
def test_ten_thousand_steps_do_not_grow(tmp_path):
    worker = Trainer(
        tmp_path,
        resolve(Config(width_mult=1 / 16, batch_size=2, epochs=15)),
        load_dataset("digits", 72),
        None,
    )
    train_loop(worker, 500)
    before = anonymous()
    train_loop(worker, 10_500)
    assert anonymous() - before < 50
