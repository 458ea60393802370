"""What a run in this process records, and what it keeps."""

import json

import numpy as np
import pytest

from alexnet_nb.engine.config import Config
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.loop import run_training
from alexnet_nb.engine.metrics import StepMetrics, mean_metrics
from alexnet_nb.engine.run_dir import RunDir
from helpers.runs import TINY, begin, dies, metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.distributed
def test_a_run_that_ends_in_overflow_does_not_succeed(tmp_path):
    """One step of all images, after which nothing else would notice.

    And what it wrote is JSON to any reader.
    """
    with pytest.raises(
        RuntimeError, match="FloatingPointError: val_loss: got nan after step 1"
    ):
        train(Config(out_dir=str(tmp_path / "run"), batch_size=1437, lr=1e30, **TINY))
    assert not (tmp_path / "run/model.safetensors").exists()
    assert not RunDir(tmp_path / "run").checkpoints()
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=dies)


def test_means_are_over_images_not_over_batches(tmp_path, digits):
    """520 images in batches of 128 leave a batch of 8.

    Which is no quarter of the epoch.
    """
    steps = [StepMetrics(1, 128, 1.0, 0.75, 0.5, 0.1, 0.0)] * 4 + [
        StepMetrics(5, 8, 2.0, 0.0, 0.0, 0.1, 0.0)
    ]
    assert mean_metrics(steps) == pytest.approx(
        (528 / 520, 0.75 * 512 / 520, 0.5 * 512 / 520)
    )
    worker = begin(tmp_path, digits, batch_size=500)
    said = []
    worker.log = lambda words, mark=":": said.append(words)
    run_training(worker)
    found = [row for row in metrics(tmp_path) if row["split"] == "train"]
    assert [row["images"] for row in found] == [500, 500, 437]
    assert [row["images"] for row in metrics(tmp_path) if row["split"] == "val"] == [
        360
    ]
    loss = sum(row["loss"] * row["images"] for row in found) / 1437
    error = sum(row["top1"] * row["images"] for row in found) / 1437
    assert any(
        f"loss {loss:.3f} " in words and f"training {error:6.1%}" in words
        for words in said
    ), said


def test_a_run_keeps_what_turns_images_into_its_input(tmp_path, digits):
    run_training(begin(tmp_path, digits))
    stats = np.load(tmp_path / "stats.npz")
    assert np.array_equal(stats["mean"], digits.mean)
    assert np.array_equal(stats["cov"], digits.cov)
    assert json.loads((tmp_path / "data.json").read_text())["names"] == list(
        digits.names
    )
