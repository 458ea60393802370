"""Train on few photographs, from weights and from scratch.

    python fine_tune.py CIFAR FLOWERS RESULTS [minutes]

CIFAR, FLOWERS: image folders (train/CLASS/…, val/CLASS/…); RESULTS: results/fine_tune,
with its protocol.md. RESULTS/weights keeps the record of the run that makes the
weights.
"""

import json
import os
import random
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

import intervals
import numpy as np
import torch
from cifar import DEVICE, lines, record, run
from scipy import stats

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.config import Config
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.loop import run_training
from alexnet_nb.engine.run_dir import open_run, validate
from alexnet_nb.engine.trainer import Trainer

FEW = dict(train=50, val=40)  # photographs a class
SIZES = dict(width_mult=0.25, image_size=72, crop_size=64)
CONDITIONS = {
    "from scratch, 30 epochs": dict(weights=False, epochs=30),
    "from scratch, 90 epochs": dict(weights=False, epochs=90),
    "from weights, all layers": dict(weights=True, train_from="", epochs=30),
    "from weights, learning rate 0.01": dict(
        weights=True, train_from="", lr=0.01, lr_fc8=0.01, epochs=30
    ),
    "from weights, fc8 alone": dict(weights=True, train_from="fc8", epochs=30),
}


def take(folder, target, choose):
    """Copy of each class of an image folder what `choose` makes of its files."""
    for kind in ("train", "val"):
        for path in sorted((folder / kind).iterdir()):
            (target / kind / path.name).mkdir(parents=True)
            for file in choose(kind, sorted(path.iterdir())):
                shutil.copy(file, target / kind / path.name / file.name)
    return target


def fit(data, out_dir, **settings):
    """Train a run in this process; return its folder."""
    config = Config(data=str(data), out_dir=str(out_dir), **settings)
    config = validate(config)
    run_dir = open_run(config, plan_placement(1))
    run_config = run_dir.config()
    packed = load_dataset(config.data, run_config.image_size, config.batch_size)
    run_training(Trainer(run_dir.path, run_config, packed, None, DEVICE))
    run_dir.close()
    return run_dir.path


def make_weights(cifar, home, results):
    """Train the run that the others start from; keep its record without the weights."""

    def choose(kind, files):
        return files if kind == "train" else files[:100]

    data = take(cifar, home / "cifar10", choose)
    folder = fit(data, home / "weights", **SIZES, batch_size=64, epochs=6)
    target = results / "weights"
    target.mkdir(exist_ok=True)
    for name in ("env.json", "metrics.jsonl"):
        shutil.copy(folder / name, target / name)
    config = json.loads((folder / "config.json").read_text())
    config |= dict(data="cifar10", out_dir="runs/weights")
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return folder


def pack_few(flowers, home, seed):
    """Pack the photographs of a seed, once for all of its conditions."""
    draw = random.Random(seed)

    def choose(kind, files):
        return draw.sample(files, FEW[kind])

    load_dataset(str(take(flowers, home / f"few-{seed}", choose)), SIZES["image_size"])


def train_few(home, seed, weights, epochs, model="", **settings):
    """Train on few photographs; return the validation error of every epoch."""
    torch.set_num_threads(1)
    os.environ["ALEXNET_NB_CACHE"] = str(home / "cache")
    settings |= dict(seed=seed, epochs=epochs, batch_size=25)
    settings |= dict(weights=str(model)) if weights else SIZES
    with tempfile.TemporaryDirectory() as out:
        fit(home / f"few-{seed}", out, **settings)
        text = Path(out, "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return dict(errors=[round(r["top1"], 6) for r in rows if r["split"] == "val"])


def jobs():
    return [dict(seed=seed, **job) for seed in range(5) for job in CONDITIONS.values()]


def errors(results):
    """Return the last validation error of every seed, by condition."""
    found = {name: {} for name in CONDITIONS}
    for line in lines(results):
        seed = line["job"]["seed"]
        for name, job in CONDITIONS.items():
            if line["job"] == dict(seed=seed, **job):
                found[name][seed] = line["errors"][-1]
    return {name: [e[seed] for seed in sorted(e)] for name, e in found.items()}


def paired(a, b):
    """Mean of the differences of pairs, a less b, and its 95 % interval."""
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    return float(np.mean(np.subtract(a, b))), float(low), float(high)


def summarize(results):
    found = errors(results)
    rows = [
        intervals.row(f"{name}: top-1 error", *intervals.mean(e), str(len(e)))
        for name, e in found.items()
    ]
    scratch, others = list(CONDITIONS)[:2], list(CONDITIONS)[2:]
    for base in scratch:
        for name in others:
            estimate = paired(found[name], found[base])
            what = f"{name} less {base}"
            rows.append(intervals.row(what, *estimate, str(len(found[name]))))
    return rows


def main(cifar, flowers, results, minutes):
    command = "python nbs/evidence/experiments/fine_tune.py cifar10 flowers5"
    record(results, f"{command} results/fine_tune")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["ALEXNET_NB_CACHE"] = str(home / "cache")
        model = make_weights(cifar, home, results)
        for seed in range(5):
            pack_few(flowers, home, seed)
        work = partial(train_few, model=model)
        if run(jobs(), home, results, minutes, work):
            intervals.write(results / "summary.tsv", summarize(results))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*map(Path, sys.argv[1:4]), float((sys.argv[4:] or ["inf"])[0]))
