"""Losses that are read late are written as if they had been read at once."""

import json

import pytest
import torch

from alexnet_nb.engine.loop import run_training, train_loop
from alexnet_nb.engine.metrics import MetricsLogger
from alexnet_nb.engine.trainer import Trainer
from helpers.runs import begin, metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def reads_late(monkeypatch):
    """Let a CPU look at its losses as seldom as a GPU does."""
    monkeypatch.setattr(Trainer, "read_interval", property(lambda self: 20))


def test_reading_late_writes_the_same(tmp_path, digits, monkeypatch):
    settings = dict(epochs=2, batch_size=60)  # 24 steps an epoch, the last one short
    run_training(begin(tmp_path / "now", digits, **settings))
    reads = []
    read = Trainer.read_metrics

    def count(self):
        reads.append(len(self.unread))
        return read(self)

    monkeypatch.setattr(Trainer, "read_interval", property(lambda self: 20))
    monkeypatch.setattr(Trainer, "read_metrics", count)
    run_training(begin(tmp_path / "late", digits, **settings))
    assert metrics(tmp_path / "late") == metrics(tmp_path / "now")
    assert [n for n in reads if n] == [20, 4, 20, 4]
    steps = [row["step"] for row in metrics(tmp_path / "late")]
    assert steps == [*range(1, 25), 24, *range(25, 49), 48]


@pytest.mark.parametrize("step", [1, 7, 20, 24])
def test_the_step_whose_loss_was_not_finite_is_named(
    tmp_path, digits, reads_late, monkeypatch, step
):
    """Though the loss is read steps later; and no checkpoint comes after it."""
    trainer = begin(tmp_path, digits, batch_size=60)
    step_on = Trainer.step_on

    def overflow(self, images, labels, shard):
        values = step_on(self, images, labels, shard)
        if self.step + 1 == step:
            values[0] = torch.inf
        return values

    monkeypatch.setattr(Trainer, "step_on", overflow)
    message = rf"loss: got inf at step {step} with a learning rate"
    with pytest.raises(FloatingPointError, match=message):
        train_loop(trainer, 24)
    report = json.loads((tmp_path / "log/not-finite.json").read_text())
    assert report["step"] == step
    assert report["positions"] == [60 * (step - 1), min(60 * step, len(digits.train))]
    assert all(int(p.name[5:]) < step for p in trainer.run_dir.checkpoints())


def test_time_is_shared_by_the_steps_that_are_read_together(
    tmp_path, digits, reads_late
):
    trainer = begin(tmp_path, digits, batch_size=60)
    train_loop(trainer, 24)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "train"]
    assert len(rows) == 24
    assert len({row["seconds"] for row in rows[:20]}) == 1
    assert all(row["seconds"] > 0 for row in rows)
    assert isinstance(MetricsLogger(trainer, 0).interval, int)
