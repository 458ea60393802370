"Two processes of one column each train the net that one process trains."
import json
import os

import numpy as np

from alexnet_nb.training import Config, check, train


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
