"""More than two processes: pairs of columns, or whole nets that share the batch.

Restarts, and several machines.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from helpers import LONG, ROOT, gone, workers
from helpers.runs import TINY64, fit_one, metrics

pytestmark = pytest.mark.distributed


def torchrun(processes, *options):
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *(options or ["--standalone"]),
        "--local-addr",
        "127.0.0.1",
        "--nproc-per-node",
        str(processes),
    ]


def test_four_processes_equal_one_in_float64():
    """As two pairs of columns and as four whole nets; mistakes are caught.

    Ten steps with dropout, augmentation, decay, every drop of the rate and the end of
    conv1's training; a batch that divides by the replicas, and 13 pictures in batches
    of 11 and 2.
    """
    cases = [
        "0::16:16:10",
        "0::13:11:5",
        "1::16:16:10",
        "1::13:11:5",
        "0:unweighted:13:11:5",
        "0:masks:16:16:10",
        "0:apart:16:16:10",
        "0:seed:16:16:10",
    ]
    done = subprocess.run(
        [*torchrun(4), ROOT / "tests/helpers/replicas.py", *cases],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    rows = [json.loads(line) for line in done.stdout.splitlines() if line[0] == "{"]
    found, errors = (
        {r.pop("case"): r for r in rows if "case" in r},
        [r["error"] for r in rows if "error" in r],
    )
    assert list(found) == cases[:-1], done.stdout
    for case, gaps in found.items():
        print("seed", gaps.pop("seed"), case, "worst", worst := max(gaps.values()))
        assert len(gaps) == 16 + 16 + 6
        assert worst <= 1e-10 if "::" in case else worst > 1e-6
    assert all(r["kept"] for r in rows if "error" in r), (
        "metrics are cut before the processes agree"
    )
    assert [r["last"] for r in rows if "last" in r] == ["step-0000010"] * 4, (
        "not the checkpoint that the first process finds"
    )
    assert len(errors) == 4, errors
    assert all(
        re.match(r"seed: got \d+ in process 1, expected \d+, as in process 0", e)
        for e in errors
    ), errors


@pytest.fixture
def command(tmp_path, monkeypatch):
    """alexnet-train as pip writes it."""
    path = tmp_path / "alexnet-train"
    path.write_text(
        "import sys\nfrom alexnet_nb.engine.cli import main\nsys.exit(main())\n"
    )
    for name, value in dict(
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
        GLOO_SOCKET_IFNAME="lo",
        OMP_NUM_THREADS="1",
    ).items():
        monkeypatch.setenv(name, value)
    return [
        path,
        "--width-mult",
        str(TINY64["width_mult"]),
        "--epochs",
        str(TINY64["epochs"]),
        "--precision",
        TINY64["precision"],
        "--out-dir",
    ]


def test_a_killed_process_is_started_again_and_the_end_is_the_same(
    tmp_path, command, fault
):
    """Three whole nets, so that the order of sums would tell; bit for bit."""

    def run(name):
        done = subprocess.run(
            [
                *torchrun(3, "--standalone", "--max-restarts", "2"),
                *command,
                tmp_path / name,
                "--data-parallel",
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout, load_file(tmp_path / name / "model.safetensors")

    fault(None)  # with a checkpoint wherever there may be one
    said, whole = run("whole")
    assert "resumed" not in said
    step = fault(
        "os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.kill(os.getpid(), 9)",
        random.SystemRandom().randint(3, 12),
        ranks=["2"],
    )
    said, again = run("killed")
    assert f"resumed at step {step - 1}" in said, said
    assert all(torch.equal(whole[n], again[n]) for n in whole), step
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed"), step
    assert gone(tmp_path)


def test_only_the_run_that_the_same_launch_began_goes_on_after_a_restart(
    tmp_path, command
):
    """A folder with somebody else's run is refused at every attempt.

    By one process of every machine; the folder stays as it is.
    """
    fit_one(tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    done = subprocess.run(
        [
            *torchrun(2, "--standalone", "--max-restarts", "1"),
            *command,
            tmp_path / "run",
            "--data-parallel",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    # once an attempt; torchrun's report repeats the last one
    assert done.stdout.count("ValueError: out_dir: ") == 2, said
    assert "Root Cause" in done.stderr, said
    assert "which is not empty" in done.stderr, said
    assert {
        p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()
    } == before


def test_a_failed_dry_run_is_not_started_again(tmp_path, command, fault):
    fault("raise ArithmeticError('broken on purpose')", 1)
    done = subprocess.run(
        [
            *torchrun(2, "--standalone", "--max-restarts", "1"),
            *command,
            tmp_path / "run",
            "--data-parallel",
            "--dry-run",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert (
        0
        < said.find("broken on purpose")
        < said.find("dry_run: got a dry run that has failed")
    ), said


def test_no_process_outlives_a_killed_torchrun(tmp_path, command):
    agent = subprocess.Popen(
        [
            *torchrun(2),
            *command,
            tmp_path / "run",
            "--data-parallel",
            "--epochs",
            "300",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in agent.stdout:
        if "epoch " in line:
            break
    assert len(workers(tmp_path)) == 3
    agent.kill()
    assert gone(tmp_path)
    agent.wait()


def test_two_machines(tmp_path, command):
    """Two agents of torchrun, a column on each; the same losses as in one process."""

    def agent():
        return subprocess.Popen(
            [
                *torchrun(
                    1,
                    "--nnodes",
                    "2",
                    "--rdzv-backend",
                    "c10d",
                    "--rdzv-endpoint",
                    f"127.0.0.1:{port}",
                ),
                *command,
                tmp_path / "run",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    port = socket.create_server(("127.0.0.1", 0)).getsockname()[1]
    agents = [agent(), agent()]
    said = [a.communicate(timeout=120)[0] for a in agents]
    assert [a.returncode for a in agents] == [0, 0], said
    assert any("two processes agree with one" in words for words in said), said
    assert json.loads((tmp_path / "run/env.json").read_text())["layout"].endswith(
        "on 2 machines"
    )
    fit_one(tmp_path / "one")
    two, one = (
        [r["loss"] for r in metrics(tmp_path / name)] for name in ("run", "one")
    )
    assert len(two) == 13
    assert two == pytest.approx(one, rel=1e-9)


@pytest.mark.skipif(not LONG, reason="minutes of waiting: set ALEXNET_NB_LONG=1")
def test_a_machine_joins_and_is_lost(tmp_path, command, monkeypatch):
    """The run goes on from the last checkpoint when a machine comes, and when it goes.

    Two agents with --nnodes 1:2, of which the second comes later and is killed.
    """
    monkeypatch.setenv("ALEXNET_NB_SAVE", "0")
    port, out = (
        socket.create_server(("127.0.0.1", 0)).getsockname()[1],
        tmp_path / "run",
    )
    options = [
        "--nnodes",
        "1:2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"127.0.0.1:{port}",
        "--max-restarts",
        "3",
    ]

    def agent(name):
        with open(tmp_path / name, "w") as log:
            return subprocess.Popen(
                [
                    *torchrun(1, *options),
                    *command,
                    out,
                    "--data-parallel",
                    "--epochs",
                    "100",
                ],
                stdout=log,
                stderr=log,
            )

    def reached(layout, resumed):
        """Wait until the run has gone on so many times, and for five steps since."""
        read, end, begin = (
            lambda p: p.read_text() if p.exists() else "",
            time.monotonic() + 120,
            None,
        )

        def steps():
            return len(read(out / "metrics.jsonl").splitlines())

        while begin is None or steps() < begin + 5:
            said = read(tmp_path / "first") + read(tmp_path / "second")
            if (
                begin is None
                and layout in read(out / "env.json")
                and said.count("resumed at step") == resumed
            ):
                begin = steps()
            assert time.monotonic() < end, said
            assert first.poll() is None, said
            time.sleep(0.1)

    agents = [first := agent("first")]
    try:
        reached("one CPU process", 0)
        agents.append(agent("second"))
        reached("each of 2 CPU processes", 1)
        agents[1].kill()
        reached("one CPU process", 2)
    finally:
        for a in agents:
            a.kill(), a.wait()
    assert gone(tmp_path)
    steps = [r["step"] for r in metrics(out) if r["split"] == "train"]
    assert steps == list(range(1, len(steps) + 1))


def test_an_interrupted_run_says_how_to_go_on(tmp_path, command):
    """Ctrl-C, as the shell sends it: to all processes."""
    run = subprocess.Popen(
        [sys.executable, *command, tmp_path / "run", "--epochs", "300", "--gpus", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # a shell has its background jobs ignore it
    for line in run.stdout:
        if line.startswith("epoch"):
            break
    os.killpg(run.pid, signal.SIGINT)
    said, errors = run.communicate(timeout=60)
    assert run.returncode == 130, said + errors
    assert "--resume" in said, said + errors
    assert "Traceback" not in errors, said + errors
    assert gone(tmp_path)
