"""The curves of a run show what is in its metrics."""

import json

import matplotlib.pyplot as plt
import pytest

from alexnet_nb.engine.report import plot_curves


def test_curves_are_the_metrics_by_epoch(tmp_path):
    rows = []
    for step in range(1, 9):
        row = dict(split="train", epoch=(step + 3) // 4, step=step)
        rows.append(row | dict(loss=3 - step / 4, top1=1 - step / 10))
        if step % 4 == 0:
            rows.append(row | dict(split="val", loss=step / 3, top1=step / 20))
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    figure = plot_curves(tmp_path)
    for ax, what in zip(figure.axes, ("loss", "top1"), strict=True):
        training, validation = ax.lines
        assert training.get_label() == "training"
        assert validation.get_label() == "validation"
        for line, split in ((training, "train"), (validation, "val")):
            expected = [row for row in rows if row["split"] == split]
            epochs = [row["step"] / 4 for row in expected]
            assert list(line.get_xdata()) == pytest.approx(epochs)
            assert list(line.get_ydata()) == [row[what] for row in expected]
    plt.close(figure)
