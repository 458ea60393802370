"""Two processes of one column each train the net that one process trains."""

import functools
import json
import math
import subprocess
import tempfile

import numpy as np
import pytest
import torch

from alexnet_nb.engine.config import Config
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.launch import torchrun_command, train, worker_environment
from alexnet_nb.engine.run_dir import validate
from helpers import LONG, ROOT

pytestmark = pytest.mark.distributed


SMALL = "0.125:80:10:8"  # width, crop, classes, batch
TEN_STEPS = {name: f"{name}:{SMALL}:10:float64:" for name in ("paper", "source2012")}
WHOLE = {"paper": "paper:1:224:1000:2:1:float64:"}
WHOLE["no_communication"] = "no_communication:0.125:80:10:2:1:float64:"
if LONG:
    WHOLE["no_communication"] = "no_communication:1:224:1000:2:1:float64:"
FAULTS = {
    fault: f"paper:{SMALL}:1:float64:{fault}"
    for fault in ("gather", "lrn", "masks", "loss")
}
FLOAT32 = {name: f"{name}:{SMALL}:1:float32:" for name in ("paper", "source2012")}
FAULT_IN_FLOAT32 = f"paper:{SMALL}:1:float32:loss"
CASES = [
    *TEN_STEPS.values(),
    *WHOLE.values(),
    *FAULTS.values(),
    *FLOAT32.values(),
    FAULT_IN_FLOAT32,
]


@functools.cache
def launched():
    """Two processes that train every net of this file, one after the other."""
    with tempfile.TemporaryDirectory() as store:
        env = worker_environment(plan_placement(2, num_devices=0), store) | {
            "OMP_NUM_THREADS": "1"
        }
        command = [
            *torchrun_command(2, store),
            ROOT / "tests/helpers/parity.py",
            *CASES,
        ]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=300, env=env
        )


def parity(case):
    """Differences of two processes from one, and the bytes that column 0 sent a step.

    Of every tensor the largest difference, as a share of its largest number; in float32
    the mean difference, as a share of the mean. Tensors are logits and gradients of the
    first step, and weights after the last; bytes are those of the forward and the
    backward pass.
    """
    done = launched()
    rows = [json.loads(line) for line in done.stdout.splitlines() if line[0] == "{"]
    found = {row.pop("case"): row for row in rows}
    assert case in found, done.stderr
    gaps = dict(found[case])
    sent = [gaps.pop(f"bytes {way}") for way in ("forward", "backward")]
    print(
        "seed", gaps.pop("seed"), "worst", max(gaps, key=gaps.get), max(gaps.values())
    )
    assert not any(map(math.isnan, gaps.values())), gaps
    return gaps, sent


@pytest.mark.parametrize("recipe", ["paper", "source2012"])
def test_ten_steps_agree_in_float64(recipe):
    """With dropout, augmentation, decay and, for the source, its whole schedule."""
    gaps, _ = parity(TEN_STEPS[recipe])
    assert len(gaps) == 1 + 16 + 16
    assert max(gaps.values()) <= 1e-10


@pytest.mark.parametrize(
    ("recipe", "into", "fc8"),
    [
        ("paper", [128 * 13**2, 128 * 6**2, 2048], 2048),
        ("no_communication", [], 2048 if LONG else 256),
    ],
)
def test_one_step_of_the_whole_net_agrees_in_float64(recipe, into, fc8):
    """And sends what conv3, fc6, fc7 and fc8 read from the other column.

    Eight bytes a number, two pictures. A short test without communication makes do with
    an eighth of the width.
    """
    gaps, sent = parity(WHOLE[recipe])
    assert max(gaps.values()) <= 1e-10
    assert sent == [
        2 * 8 * sum(into),
        2 * 8 * (sum(into) + fc8),
    ]  # column 0 receives fc8's input, and sends its gradient


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        ("gather", "gradient of conv1.weight"),
        ("lrn", "logits"),
        ("masks", "logits"),
        ("loss", "gradient of fc8.weight"),
    ],
)
def test_faults_are_caught(fault, first):
    """A gather without gradient, normalization across columns, masks drawn per process.

    And a doubled loss gradient.
    """
    assert parity(FAULTS[fault])[0][first] > 1e-6


def losses(folder):
    rows = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return [r["loss"] for r in rows if r["split"] == "train"]


def both(tmp_path, **settings):
    """Training losses of the digits run in one process and in two."""
    runs = [
        losses(
            train(
                validate(
                    Config(gpus=gpus, out_dir=str(tmp_path / str(gpus)), **settings)
                )
            )
        )
        for gpus in (1, 2)
    ]
    return np.array(runs)


def test_every_loss_of_the_digits_run_agrees_in_float64(tmp_path):
    """The whole run behind the flag.

    Else a tenth of its epochs, with every drop of the rate, at half of its width.
    """
    settings = dict(epochs=40) if LONG else dict(epochs=4, width_mult=1 / 8)
    one, two = both(tmp_path, precision="float64", **settings)
    assert len(one) == len(two) == 12 * settings["epochs"]
    assert abs(one - two).max() <= 1e-8


@pytest.mark.parametrize("recipe", ["paper", "source2012"])
def test_one_step_agrees_in_float32(recipe):
    """From equal weights.

    Which kernels a processor picks decides how sums are rounded, and a ReLU or pooling
    window that was nearly undecided may then decide otherwise; from there a longer run
    goes its own way. One such decision changes one unit of one image, which a mean over
    a tensor hardly sees; many steps are compared in float64.
    """
    gaps, _ = parity(FLOAT32[recipe])
    layers, terms = 8, 512  # a sum of n terms is off by about sqrt(n) roundings
    rounding = layers * math.sqrt(terms) * torch.finfo(torch.float32).eps
    assert gaps["logits"] <= rounding
    for name, gap in gaps.items():
        assert gap <= 1e-2, name


def test_float32_step_sees_a_fault():
    assert parity(FAULT_IN_FLOAT32)[0]["gradient of fc8.weight"] > 0.1
