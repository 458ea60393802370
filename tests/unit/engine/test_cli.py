"""The command line is Config, and refuses what cannot be meant."""

import argparse
import re
import subprocess
import sys
import typing
from dataclasses import fields, replace
from pathlib import Path

import pytest

from alexnet_nb.engine import cli, config
from alexnet_nb.engine.cli import command_line, main
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.run_dir import validate
from helpers.runs import TINY64, fit_one


def test_resume_takes_what_the_run_was_begun_with(tmp_path, monkeypatch, capsys):
    """Every option but the folder; another one is refused by name."""
    fit_one(tmp_path / "run")
    asked = []
    monkeypatch.setattr(cli, "train", lambda config: asked.append(validate(config)))
    command = ["alexnet-train", "--resume", "--out-dir", str(tmp_path / "run")]
    for words in ([], ["--gpus", "2"]):
        monkeypatch.setattr(sys, "argv", [*command, *words])
        main()
    monkeypatch.setattr(sys, "argv", [*command, "--seed", "5"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "seed: got 5, expected 0, as in the run in" in capsys.readouterr().err
    stored = resolve(Config(**TINY64)).parameters()
    changed = dict(resume=True, out_dir=str(tmp_path / "run"))
    expected = Config(**stored | changed)
    assert asked == [expected, replace(expected, gpus=2)]


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
        options = [option]
        if kinds[f.name] == bool | None:
            options.append("--no-" + option.removeprefix("--"))
        assert action.option_strings == options
        assert ", ".join(options) in words
        assert comment in words
        if kinds[f.name] is bool:
            assert f.default is False
            assert action.nargs == 0
        elif kinds[f.name] == bool | None:
            assert f.default is None
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
            "--no-compile",
        ]
    )
    assert Config(**vars(given)) == Config(
        gpus=4,
        data_parallel=True,
        compile=False,
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
            "gpus: got 2, expected 1, because recipe caffe",
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
        ("--lr nan", {}, "lr: got nan, expected a number or None"),
        ("--data nowhere", {}, "data: got nowhere, which is not a folder"),
        (
            "--out-dir file/run",
            {},
            "out_dir: got 'file/run', expected a folder",
        ),
        (
            "--out-dir full",
            {},
            "out_dir: got full, which is not empty, expected an empty folder; --resume",
        ),
        ("--gpu-count 2", {}, "unrecognized arguments: --gpu-count"),
        (
            "--out-dir x --gpus 2",
            dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="4"),
            "gpus: got 2, expected 4, the number of processes that torchrun has",
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
            "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1",
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
            "out_dir: got 'full', which has no config.json, "
            "expected the folder of a run",
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


STUBS = """
scontrol() { printf 'first\\nsecond\\n'; }
srun() { "$@"; }
torchrun() { printf '%s\\n' "$@"; }
which() { echo alexnet-train; }
export SLURM_CPUS_PER_TASK=32 SLURM_JOB_NODELIST=x SLURM_NNODES=2 SLURM_JOB_ID=7 HOME=.
"""


@pytest.mark.parametrize("begun", [False, True])
def test_the_slurm_script_says_what_it_means(cells, tmp_path, begun):
    """The script of the how-to page, with Slurm's programs replaced.

    torchrun and alexnet-train understand every option.
    """
    from torch.distributed.run import get_args_parser

    (script,) = re.findall(
        r"```sh\n(#!/bin/bash.*?)```",
        "\n".join("".join(c["source"]) for c in cells("guides/train.ipynb")),
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
