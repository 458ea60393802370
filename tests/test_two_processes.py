"Two processes of one column each train the net that one process trains."
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from alexnet_nb.training import Config, check, train


def parity(recipe, width, crop, classes, batch, steps, fault=""):
    "Largest difference of every tensor, as a share of its largest number: logits and gradients of the first step, weights after the last."
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    arguments = map(str, (recipe, width, crop, classes, batch, steps, fault))
    done = subprocess.run([*torchrun, ROOT / "tests/parity.py", *arguments], capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    gaps = json.loads(done.stdout.splitlines()[-1])
    print("seed", gaps.pop("seed"), "worst", max(gaps, key=gaps.get), max(gaps.values()))
    assert not any(map(math.isnan, gaps.values())), gaps
    return gaps


@pytest.mark.parametrize("recipe", ["paper", "source2012"])
def test_ten_steps_agree_in_float64(recipe):
    "With dropout, augmentation, decay and, for the source, its whole schedule."
    gaps = parity(recipe, 1 / 8, 80, 10, 8, 10)
    assert len(gaps) == 1 + 16 + 16 and max(gaps.values()) <= 1e-10


@pytest.mark.parametrize("recipe", ["paper", "no_communication"])
def test_one_step_of_the_whole_net_agrees_in_float64(recipe):
    gaps = parity(recipe, 1, 224, 1000, 2, 1)
    assert max(gaps.values()) <= 1e-10


@pytest.mark.parametrize("fault, first", [("gather", "gradient of conv1.weight"), ("lrn", "logits"), ("masks", "logits"), ("loss", "gradient of fc8.weight")])
def test_faults_are_caught(fault, first):
    "A gather without gradient, response normalisation across columns, masks drawn per process, a doubled loss gradient."
    assert parity("paper", 1 / 8, 80, 10, 8, 1, fault)[first] > 1e-6


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in rows if r["split"] == "train"]


def both(tmp_path, **settings):
    "Training losses of the digits run in one process and in two."
    runs = [losses(train(check(Config(gpus=gpus, out_dir=str(tmp_path / str(gpus)), **settings)))) for gpus in (1, 2)]
    return np.array(runs)


def test_every_loss_of_the_digits_run_agrees_in_float64(tmp_path):
    one, two = both(tmp_path, precision="float64")
    assert len(one) == len(two) == 480
    assert abs(one - two).max() <= 1e-8


def test_the_first_ten_losses_agree_in_float32(tmp_path):
    """With as many threads in each process: a thread more changes the order of sums in the last bit, and from there a
    pooling window or a ReLU that was nearly undecided decides otherwise."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try: one, two = both(tmp_path, epochs=1)
    finally: os.sched_setaffinity(0, cpus)
    assert abs(one - two)[:10].max() <= 1e-5
