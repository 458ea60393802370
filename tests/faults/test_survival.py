"""A run that is stopped goes on exactly; one that cannot go on says why."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jupyter_client.manager import start_new_kernel
from safetensors.torch import load_file

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.checkpoint import load_checkpoint
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.launch import describe_failure, train
from alexnet_nb.engine.loop import run_training, train_loop
from alexnet_nb.engine.run_dir import RunDir, open_run, validate
from alexnet_nb.engine.trainer import Trainer
from helpers import LONG, ROOT, gone, texts, workers

SMALL = dict(width_mult=1 / 8, epochs=2, recipe="source2012")


def metrics(folder):
    rows = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


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
    settings = dict(SMALL, precision="float64")
    fault(None)
    whole = train(Config(gpus=1, out_dir=str(tmp_path / "whole"), **settings))
    step = fault("raise ArithmeticError")
    out = str(tmp_path / "run")
    with pytest.raises(RuntimeError, match="ArithmeticError"):
        train(Config(gpus=first, out_dir=out, **settings))
    fault(None)
    a, b = (
        load_file(folder / "model.safetensors")
        for folder in (
            train(Config(gpus=then, out_dir=out, resume=True, **settings)),
            whole,
        )
    )
    for name in a:
        assert (a[name] - b[name]).abs().max() <= 1e-9 * b[name].abs().max(), (
            name,
            step,
        )


def begun(tmp_path, **settings):
    """A worker after an epoch of a tiny run, and its checkpoint."""
    tmp_path.mkdir(exist_ok=True)
    config = Config(out_dir=str(tmp_path), **SMALL | settings)
    worker = Trainer(tmp_path, resolve(config), load_dataset("digits", 72), None)
    train_loop(worker, worker.steps_per_epoch)
    return worker, RunDir(tmp_path).checkpoints()[-1]


def fresh(tmp_path, **settings):
    return Trainer(
        tmp_path,
        resolve(Config(out_dir=str(tmp_path), **SMALL | settings)),
        load_dataset("digits", 72),
        None,
    )


def test_velocities_lie_in_memory_as_the_weights_do(tmp_path):
    """Fused SGD goes through both as they lie."""
    worker, path = begun(tmp_path)
    other = fresh(tmp_path)
    load_checkpoint(other, path)
    for p, q in zip(worker.model.parameters(), other.model.parameters()):
        a, b = (
            worker.optimizer.state[p]["momentum_buffer"],
            other.optimizer.state[q]["momentum_buffer"],
        )
        assert torch.equal(a, b)
        assert a.stride() == b.stride() == p.stride() == p.grad.stride()


def test_another_recipe_or_data_set_is_refused_by_name(tmp_path):
    worker, path = begun(tmp_path)
    state = json.loads((path / "state.json").read_text())
    assert state["val_errors"] == worker.val_errors != []  # the plateau rule's memory
    with pytest.raises(ValueError, match=r"recipe: .* was .*, and is"):
        load_checkpoint(fresh(tmp_path, recipe="paper"), path)
    changed = state | dict(data=state["data"] | {"train/labels.npy": "another"})
    (path / "state.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"data: train/labels.npy was 'another'"):
        load_checkpoint(fresh(tmp_path), path)


class Harmful:
    """A pickle that makes a file where it is loaded."""

    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_a_damaged_file_of_a_run_is_named(tmp_path):
    _, path = begun(tmp_path)
    (path / "state.json").write_text('{"step": 1')
    with pytest.raises(
        ValueError,
        match=f"{path}/state.json is damaged or missing; remove {path} to go on from the checkpoint before it",
    ):
        load_checkpoint(fresh(tmp_path), path)
    (tmp_path / "config.json").write_text("")
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json: got a damaged file"):
        train(Config(out_dir=str(tmp_path), resume=True, **SMALL))


def test_others_may_read_what_a_user_lets_them_read(tmp_path):
    before = os.umask(0o027)
    try:
        run_training(begun(tmp_path)[0])
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {
        "weights.safetensors",
        "velocity.safetensors",
        "state.json",
        "model.safetensors",
    } <= {p.name for p in files}
    assert {oct(p.stat().st_mode & 0o777) for p in files} == {"0o640"}


def test_a_run_is_trained_by_one_at_a_time(tmp_path):
    """A second one is refused before anything is written, by the name of the first; the run is free when that has ended."""
    config = Config(out_dir=str(tmp_path / "run"), **SMALL)
    run_dir = open_run(config, plan_placement(1))
    folder = run_dir.path
    before = (folder / "env.json").stat().st_mtime_ns
    with pytest.raises(
        RuntimeError,
        match=f"out_dir: got {folder}, which process {os.getpid()} on .* is training, "
        f"expected a run that nobody trains; if nobody does, remove {folder}/.lock",
    ):
        train(replace(config, resume=True, gpus=2))
    assert (folder / "env.json").stat().st_mtime_ns == before
    assert not (folder / "log").exists()
    run_dir.close()
    with pytest.raises(ValueError, match="is not empty"):
        open_run(
            config, plan_placement(1)
        )  # begun by another one while this one was packing
    run_dir.lock()
    run_dir.close()


def test_a_start_that_failed_is_begun_again(tmp_path):
    """Not by hand: what it has left is no run."""
    for name in (".lock", "env.json", ".config.json.123"):
        (tmp_path / name).write_text("")
    config = validate(Config(out_dir=str(tmp_path), **SMALL))
    open_run(config, plan_placement(1)).close()
    with pytest.raises(ValueError, match="is not empty"):
        validate(Config(out_dir=str(tmp_path), **SMALL))


def test_a_name_is_no_folder_to_stay_out_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    validate(Config(out_dir="digits/001"))
    with pytest.raises(
        ValueError,
        match="out_dir: got 'photos/001', expected a folder outside of the data, photos",
    ):
        validate(Config(data="photos", out_dir="photos/001"))


def test_a_signal_is_reported_before_the_errors_that_follow_from_it(tmp_path):
    error = dict(rank=0, time=1.0, trace="OSError: No space left on device")
    killed = "  rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 7)\n"
    message = describe_failure(tmp_path, 1, [error], killed)
    assert "process 1 was killed by signal 9" in message
    assert "No space left" in describe_failure(tmp_path, 1, [error], "")


def test_checkpoints_are_in_order_for_ever(tmp_path):
    for step in (9_999_998, 10_000_000):
        (tmp_path / f"checkpoints/step-{step:07}").mkdir(parents=True)
    assert [p.name for p in RunDir(tmp_path).checkpoints()] == [
        "step-9999998",
        "step-10000000",
    ]


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "missing", "pickle", "pickle with its checksum"]
)
def test_a_damaged_checkpoint_is_refused_and_runs_no_code(
    tmp_path, monkeypatch, damage
):
    monkeypatch.chdir(tmp_path)
    _, path = begun(tmp_path / "run")
    file = path / "weights.safetensors"
    raw = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"cut": raw[:-100], "flipped": raw[:-1] + bytes([raw[-1] ^ 1])}.get(damage)
            or pickle.dumps(Harmful())
        )
    if "checksum" in damage:
        from alexnet_nb.base.files import sha256

        state = json.loads((path / "state.json").read_text())
        state["sha256"][file.name] = sha256(file)
        (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(
        Exception,
        match="weights.safetensors: got a damaged or missing file"
        if "checksum" not in damage
        else "header|Header",
    ):
        load_checkpoint(fresh(tmp_path / "run"), path)
    assert not (tmp_path / "harmed").exists()


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path, fault, monkeypatch):
    """Where no checkpoint is due before the next step, at which the weights would be seen."""
    fault(
        "[p.data.fill_(float('nan')) for g in args[0].param_groups for p in g['params'] if p.dim() == 4]",
        7,
    )
    monkeypatch.setenv("ALEXNET_NB_SAVE", "600")
    with pytest.raises(
        RuntimeError,
        match=r"FloatingPointError: loss: got nan at step 8 with a learning rate of 0.01",
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
        "gpus=2", "epochs=2", "width_mult=0.125", timeout=300
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
    """Both processes hang after an update, so that they never find out by themselves that nobody listens; the number of updates."""
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
        "from alexnet_nb.engine.config import Config; from alexnet_nb.engine.launch import train; train(Config(gpus=2))"
    )
    reached(tmp_path, hanging)
    {"interrupted": kernel.interrupt_kernel, "restarted": kernel.restart_kernel}[how]()
    try:
        assert gone(tmp_path)
        if how == "interrupted":
            assert (
                client.get_shell_msg(timeout=30)["content"]["ename"]
                == "KeyboardInterrupt"
            )
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
    end = time.monotonic() + 90
    while not list(folders[0].glob("runs/*/metrics.jsonl")) and time.monotonic() < end:
        time.sleep(0.1)
    assert workers(folders[0])
    jobs[0].send_signal(how)
    jobs[0].wait(30)
    assert jobs[0].returncode != 0
    assert gone(folders[0])
    assert jobs[1].wait(120) == 0, jobs[1].stderr.read()
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
disk, free, batch_size, words = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
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
    pytest.param(0, 16, "metrics.jsonl", id="in the metrics"),
    pytest.param(1 << 18, 128, "in save_checkpoint", id="in a checkpoint"),
)


@pytest.mark.parametrize(
    ("free", "batch_size", "words"),
    [IN_METRICS, IN_CHECKPOINT] if LONG else [IN_METRICS],
)
def test_a_full_disk_ends_the_run_and_the_last_checkpoint_is_whole(
    tmp_path, free, batch_size, words
):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no permission for a mount of its own")
    (tmp_path / "disk").mkdir()
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
