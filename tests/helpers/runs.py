"""Runs of small nets in this process, and what they leave in their folder."""

import json

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.checkpoint import (
    last_checkpoint,
    load_checkpoint,
)
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.loop import run_training
from alexnet_nb.engine.run_dir import open_run
from alexnet_nb.engine.trainer import Trainer

TINY = dict(width_mult=1 / 16, epochs=1)
TINY64 = TINY | dict(precision="float64")
SMALL = dict(width_mult=1 / 8, epochs=2, recipe="source2012")


def begin(folder, data, **settings):
    """A run in this process, new or resumed."""
    config = Config(out_dir=str(folder), **TINY | settings)
    if not (folder / "config.json").exists():
        open_run(config, plan_placement(1, num_devices=0)).close()
    worker = Trainer(folder, resolve(config), data, None)
    if found := last_checkpoint(worker):
        load_checkpoint(worker, found)
    return worker


def metrics(folder):
    """The lines of the metrics without clock times."""
    found = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return [
        {name: value for name, value in row.items() if "seconds" not in name}
        for row in found
    ]


def victim(path):
    path.write_text("my thesis\n")
    return path


def fit_one(folder, **settings):
    """A whole run of one process, in this one."""
    config = Config(out_dir=str(folder), **TINY64 | settings)
    run_training(
        Trainer(
            open_run(config, plan_placement(1)).path,
            resolve(config),
            load_dataset("digits", 72),
            None,
        )
    )


class Killed(Exception):
    """Stands for a process that goes away."""


def dies(*_, **__):
    raise Killed
