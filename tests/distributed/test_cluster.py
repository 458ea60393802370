"""More than two processes: pairs of columns or whole nets that share the batch, the command line, restarts, several machines."""

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine import cli, config
from alexnet_nb.engine.cli import command_line, main
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import plan_placement, shard_batch
from alexnet_nb.engine.loop import run_training
from alexnet_nb.engine.run_dir import open_run, validate
from alexnet_nb.engine.trainer import Trainer
from helpers import LONG, ROOT, gone, workers

SMALL = dict(width_mult=1 / 16, epochs=1, precision="float64")


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
    """As two pairs of columns and as four whole nets: ten steps with dropout, augmentation, decay, every drop of the rate and the end of
    conv1's training; a batch that divides by the replicas, and 13 pictures in batches of 11 and 2. Mistakes are caught.
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
        re.match(r"process 1 has seed \d+, process 0 has \d+$", e) for e in errors
    ), errors


def test_every_picture_is_taken_once():
    for n in range(1, 40):
        for many in range(1, 9):
            shares = [shard_batch(n, r, many) for r in range(many)]
            assert [i for s in shares if s.weight for i in range(n)[s.rows]] == list(
                range(n)
            )
            assert sum(s.weight for s in shares) == pytest.approx(many)
            assert all(
                s.of == n and len(range(n)[s.rows]) >= 1 for s in shares
            )  # nobody is idle, which would hold up the others


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
        str(SMALL["width_mult"]),
        "--epochs",
        str(SMALL["epochs"]),
        "--precision",
        SMALL["precision"],
        "--out-dir",
    ]


def metrics(folder):
    rows = [
        json.loads(line)
        for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()
    ]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


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
    """A folder with somebody else's run is refused at every attempt, by one process of every machine, and stays as it is."""
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
    assert said.count("ValueError: out_dir: ") == 2, said
    assert "is not empty" in said, said
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
        < said.find("a dry run that has failed is not started again")
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


def fit_one(folder):
    """A whole run of one process, in this one."""
    config = Config(out_dir=str(folder), **SMALL)
    run_training(
        Trainer(
            open_run(config, plan_placement(1)).path,
            resolve(config),
            load_dataset("digits", 72),
            None,
        )
    )


def test_resume_takes_what_the_run_was_begun_with(
    tmp_path, command, monkeypatch, capsys
):
    """Every option but the folder; another one is refused by name."""
    fit_one(tmp_path / "run")
    asked = []
    monkeypatch.setattr(
        cli, "train", lambda config, shell: asked.append(validate(config))
    )
    command = ["alexnet-train", "--resume", "--out-dir", str(tmp_path / "run")]
    for words in ([], ["--gpus", "2"]):
        monkeypatch.setattr(sys, "argv", [*command, *words])
        main()
    monkeypatch.setattr(sys, "argv", [*command, "--seed", "5"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "seed: got 5, expected 0, as in the run in" in capsys.readouterr().err
    stored = resolve(Config(**SMALL)).parameters()
    changed = dict(resume=True, out_dir=str(tmp_path / "run"))
    expected = Config(**stored | changed)
    assert asked == [expected, replace(expected, gpus=2)]


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
    """Two agents with --nnodes 1:2, of which the second comes later and is killed: the run goes on from the last checkpoint both times."""
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


def test_the_command_line_is_config(monkeypatch):
    """Names, types, defaults and comments; a stranger finds everything in --help."""
    monkeypatch.setenv("COLUMNS", "250")  # no line is broken at a hyphen
    words, kinds = (
        " ".join(command_line().format_help().split()),
        typing.get_type_hints(Config),
    )
    actions = {
        a.dest: a
        for a in command_line()._actions
        if a.dest != "help" and a.help != argparse.SUPPRESS  # old names
    }
    assert list(actions) == list(kinds)
    assert Config(**vars(command_line().parse_args([]))) == Config()
    source = (
        Path(config.__file__)
        .read_text()
        .partition("class Config:")[2]
        .partition("# %%")[0]
    )
    for f in fields(Config):
        option, action, comment = (
            "--" + f.name.replace("_", "-"),
            actions[f.name],
            re.search(rf"    {f.name}: .*?  # (.*)", source)[1],
        )
        assert action.option_strings == [option]
        assert f"{option} " in words
        assert comment in words
        if kinds[f.name] is bool:
            assert f.default is False
            assert action.nargs == 0
        else:
            assert action.type in (kinds[f.name], *typing.get_args(kinds[f.name]))
            assert (
                f.default in (None, "") or f"{comment} (default: {f.default})" in words
            )
    given = command_line().parse_args(
        [
            "--gpus",
            "4",
            "--data-parallel",
            "--data",
            "photos",
            "--width-mult",
            "0.5",
            "--out-dir",
            "runs/x",
            "--resume",
        ]
    )
    assert Config(**vars(given)) == Config(
        gpus=4,
        data_parallel=True,
        data="photos",
        width_mult=0.5,
        out_dir="runs/x",
        resume=True,
    )


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (
            "--gpus 3",
            {},
            "gpus: got 3, expected 1, an even number, or --data-parallel",
        ),
        (
            "--recipe caffe --gpus 2",
            {},
            "gpus: got 2, expected 1, or --data-parallel: recipe caffe",
        ),
        (
            "--gpus 6 --batch-size 2",
            {},
            "batch_size: got 2, expected at least 3, one image for each replica",
        ),
        (
            "--gpus 3 --data-parallel --batch-size 2",
            {},
            "batch_size: got 2",
        ),
        ("--lr nan", {}, "lr: got nan, expected float or None"),
        ("--data nowhere", {}, "data: got nowhere, which is not a folder"),
        (
            "--out-dir file/run",
            {},
            "out_dir: got 'file/run', expected a folder",
        ),
        (
            "--out-dir full",
            {},
            "out_dir: got full, which is not empty, expected an empty folder; --resume resumes",
        ),
        ("--gpu-count 2", {}, "unrecognized arguments: --gpu-count"),
        (
            "--out-dir x --gpus 2",
            dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="4"),
            "gpus: got 2, expected 4, the number of processes that torchrun has started",
        ),
        (
            "--data-parallel",
            dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="4"),
            "out_dir: got none, expected a folder that every process sees",
        ),
        (
            "--out-dir x",
            dict(
                RANK="0",
                LOCAL_RANK="0",
                WORLD_SIZE="2",
                TORCHELASTIC_MAX_RESTARTS="2",
                TORCHELASTIC_USE_AGENT_STORE="True",
            ),
            "expected TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
        ),
        (
            "--out-dir x",
            dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="3"),
            "gpus: got 3, expected 1, an even number",
        ),
        (
            "--out-dir x",
            dict(RANK="0"),
            "environment: got RANK without LOCAL_RANK, WORLD_SIZE",
        ),
        (
            "--data .",
            {},
            "out_dir: got '', expected a folder outside of the data, .",
        ),
        (
            "--data full --out-dir full/run/1",
            {},
            "out_dir: got 'full/run/1', expected a folder outside of the data, full",
        ),
        (
            "--resume --out-dir full",
            {},
            "out_dir: got 'full', which has no config.json, expected the folder of a run; --resume",
        ),
        (
            "--resume",
            {},
            "out_dir: got '', which has no config.json",
        ),
        ("--resume --out-dir full", dict(RANK="1", LOCAL_RANK="1", WORLD_SIZE="2"), ""),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_meant_is_refused(
    words, environment, said, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch(), Path("full/run").mkdir(parents=True)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["alexnet-train", *words.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in err if said else not err
    assert sorted(p.name for p in Path().iterdir()) == [
        "file",
        "full",
    ]  # and nothing has been made


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


def test_layouts_in_words():
    for (gpus, found, together, machines), words in {
        (2, 1, False, 1): "1 CUDA device: both columns in one process",
        (4, 4, False, 1): "2 pairs of devices",
        (4, 0, False, 1): "2 pairs of CPU processes",
        (3, 8, True, 1): "the whole network on each of 3 devices",
        (
            16,
            8,
            False,
            2,
        ): "8 pairs of devices with a column each, which share the batch, over NCCL, on 2 machines",
    }.items():
        assert words in str(plan_placement(gpus, found, together, machines))
    for gpus, found, together, machines in [
        (4, 2, False, 1),
        (2, 1, True, 1),
        (16, 4, True, 2),
    ]:
        with pytest.raises(
            ValueError,
            match=f"gpus: got {gpus}, expected at most .* this machine has {found} CUDA",
        ):
            plan_placement(gpus, found, together, machines)
    (
        validate(Config(gpus=5, data_parallel=True)),
        validate(Config(gpus=64, recipe="paper", batch_size=8192)),
    )


STUBS = """
scontrol() { printf 'first\\nsecond\\n'; }
srun() { "$@"; }
torchrun() { printf '%s\\n' "$@"; }
which() { echo alexnet-train; }
export SLURM_CPUS_PER_TASK=32 SLURM_JOB_NODELIST=x SLURM_NNODES=2 SLURM_JOB_ID=7 HOME=.
"""


@pytest.mark.parametrize("begun", [False, True])
def test_the_slurm_script_says_what_it_means(cells, tmp_path, begun):
    """The script of the how-to page, with Slurm's programs replaced: torchrun and alexnet-train understand every option."""
    from torch.distributed.run import get_args_parser

    (script,) = re.findall(
        r"```sh\n(#!/bin/bash.*?)```",
        "\n".join("".join(c["source"]) for c in cells("howto.ipynb")),
        re.S,
    )
    if begun:
        (
            (tmp_path / "runs/imagenet").mkdir(parents=True),
            (tmp_path / "runs/imagenet/config.json").touch(),
        )
    done = subprocess.run(
        ["bash", "-c", STUBS + script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    asked = get_args_parser().parse_args(done.stdout.splitlines())
    assert (
        asked.nnodes,
        asked.nproc_per_node,
        asked.max_restarts,
        asked.rdzv_endpoint,
        asked.training_script,
    ) == ("2", "4", 3, "first:29500", "alexnet-train")
    given = Config(**vars(command_line().parse_args(asked.training_script_args)))
    assert given == Config(
        data="./ILSVRC",
        data_parallel=True,
        batch_size=256,
        lr=0.02,
        out_dir="./runs/imagenet",
        resume=begun,
    )


def test_tables_are_made_from_the_measurements(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cluster

    for name, table in (("cores", cluster.table), ("wire", cluster.wire_table)):
        assert (ROOT / f"results/cluster/{name}.md").read_text() == table(
            json.loads((ROOT / f"results/cluster/{name}.json").read_text())
        ) + "\n"
