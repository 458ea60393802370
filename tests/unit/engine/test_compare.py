"""Runs stand side by side with the numbers of their own folders."""

import json
import re
import shutil

import pytest

from alexnet_nb.engine.compare import (
    compare,
    compare_with_earlier,
    find_runs,
    plot_runs,
    to_tensorboard,
)
from alexnet_nb.engine.report import epoch_means, read_metrics
from helpers import run_python, skip_or_fail


def cells_of(table):
    """The cells of every row of a table, by the first one."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    lines = lines[: lines.index([""])]  # without the note
    head, _, *rows = lines
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_every_run_has_a_row(runs, summaries):
    rows = cells_of(compare(f"{runs}/*"))
    assert list(rows) == ["dead", "learned"]
    for name, epochs, lr, verdict in (
        ("dead", "1 of 1", "1e-06", "has not left the plateau"),
        ("learned", "6 of 6", "0.01", "learning"),
    ):
        row, last = rows[name], read_metrics(runs / name)[-1]
        error, low, high = re.findall(r"[\d.]+%", row["top-1 error (95 % interval)"])
        assert error == f"{last['top1']:.1%}"
        assert float(low[:-1]) < float(error[:-1]) < float(high[:-1])
        assert (row["epochs"], row["verdict"]) == (epochs, verdict)
        assert row["settings that differ"] == f"lr {lr}"


def test_what_all_runs_share_is_written_once(runs, summaries):
    note = compare(f"{runs}/*").splitlines()[-1]
    assert note.startswith("The same in every run: data textures; recipe source2012; ")
    assert "batch size 16" in note
    assert " lr " not in note
    of_one = compare(runs / "learned")
    assert "settings that differ" not in of_one
    assert of_one.splitlines()[-1].startswith("Settings of this run: data textures; ")
    assert "; lr 0.01; " in of_one.splitlines()[-1]


def test_the_table_has_no_more_columns_than_a_page_is_wide(runs, summaries):
    head = compare(f"{runs}/*").splitlines()[0]
    assert len(head.strip("|").split("|")) <= 6
    assert len(head) <= 90


def test_without_a_report_the_metrics_decide(runs, summaries, tmp_path):
    """A run that was stopped in its second epoch; and one in its first."""
    for name, lines in (("second", 30), ("first", 7)):
        shutil.copytree(runs / "dead", tmp_path / name)
        for file in ("report.json", "result.json", "model.safetensors"):
            (tmp_path / name / file).unlink()
        text = (runs / "learned/metrics.jsonl").read_text().splitlines(True)
        (tmp_path / name / "metrics.jsonl").write_text("".join(text[:lines]))
    rows = cells_of(compare(f"{tmp_path}/*"))
    assert rows["first"]["epochs"] == "0 of 1"
    assert rows["first"]["top-1 error (95 % interval)"] == "–"
    assert rows["first"]["verdict"] == "no validation yet"
    val = [row for row in read_metrics(tmp_path / "second") if row["split"] == "val"]
    error = rows["second"]["top-1 error (95 % interval)"].split()[0]
    assert error == f"{val[-1]['top1']:.1%}"
    assert rows["second"]["verdict"] in (
        "learning",
        "not better than chance",
        "has not left the plateau",
    )


def test_curves_of_several_runs(runs, style):
    figure = plot_runs([runs / "learned", runs / "dead"])
    rows = read_metrics(runs / "learned")
    for ax, metric in zip(figure.axes, ("loss", "top1"), strict=True):
        _, _, training, validation = ax.lines  # by name: dead, learned
        assert list(training.get_ydata()) == list(epoch_means(rows, metric).values())
        val = [row[metric] for row in rows if row["split"] == "val"]
        assert list(validation.get_ydata()) == val
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["dead", "learned"]


def test_earlier_runs_are_those_on_the_same_images(runs, summaries, tmp_path):
    for name in ("old", "new", "other"):
        shutil.copytree(runs / "dead", tmp_path / name)
    data = json.loads((tmp_path / "other/data.json").read_text())
    data["train/labels.npy"] = "0" * 64
    (tmp_path / "other/data.json").write_text(json.dumps(data))
    (tmp_path / "other folder").mkdir()
    assert list(cells_of(compare_with_earlier(tmp_path / "new"))) == ["new", "old"]
    words = compare_with_earlier(tmp_path / "other")
    assert words == "No other run beside other has the same images."


def test_a_pattern_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"runs: got .*nothing.*, expected folders"):
        find_runs(tmp_path / "nothing*")


def test_tensorboard_reads_every_metric(runs, tmp_path):
    try:
        from tensorboard.backend.event_processing.event_accumulator import (
            EventAccumulator,
        )
    except ImportError:
        skip_or_fail("tensorboard: got no such package, expected it: pip install")
    run = tmp_path / "run"
    shutil.copytree(runs / "learned", run)
    to_tensorboard(run)
    target = to_tensorboard(run)  # once more replaces the files
    assert len(list(target.iterdir())) == 1
    events = EventAccumulator(str(target), size_guidance=dict(scalars=0)).Reload()
    rows = read_metrics(run)
    expected = {"lr", *(f"{m}/{s}" for m in ("loss", "top1", "top5") for s in SPLITS)}
    assert set(events.Tags()["scalars"]) == expected
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        for metric in ("loss", "top1", "top5"):
            scalars = events.Scalars(f"{metric}/{split}")
            assert [s.step for s in scalars] == [row["step"] for row in own]
            values = [row[metric] for row in own]
            assert [s.value for s in scalars] == pytest.approx(values)
    rates = [row["lr"] for row in rows if row["split"] == "train"]
    assert [s.value for s in events.Scalars("lr")] == pytest.approx(rates)


SPLITS = ("train", "val")


WITHOUT_TENSORBOARD = """
import sys
sys.modules["tensorboard"] = None
from alexnet_nb.engine.compare import to_tensorboard
to_tensorboard(sys.argv[1])
"""


def test_without_tensorboard_the_error_says_what_to_install(runs):
    done = run_python(WITHOUT_TENSORBOARD, runs / "learned")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(
        "ImportError: tensorboard: got no such package, expected it for event files;"
        " do pip install tensorboard"
    )
