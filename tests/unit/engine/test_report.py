"""The report of a run: its words follow from its numbers, whole run or stopped one."""

import json
import math
import shutil

import numpy as np
import pytest
from matplotlib_inline.backend_inline import _fetch_figure_metadata

from alexnet_nb.engine.report import (
    epoch_means,
    how_to_predict,
    plot_curves,
    read_metrics,
    read_progress,
    run_facts,
    summarize,
    verdict,
)
from alexnet_nb.evaluation import load_input, load_model, probabilities

TEN = math.log(10)


@pytest.mark.parametrize(
    ("loss", "top1", "n", "baseline", "words"),
    [
        (2.31, 0.9, 1000, 0.4, "has not left the plateau"),
        (2.27, 0.85, 1000, 0.4, "has not left the plateau"),  # 98.6 % of ln 10
        (2.20, 0.89, 1000, 0.4, "not better than chance"),  # within chance's interval
        (0.10, 0.90, 1000, 0.4, "not better than chance"),  # learned by heart
        (2.20, 0.87, 1000, 0.4, "not better than nearest neighbor"),
        (1.00, 0.40, 1000, 0.4, "not better than nearest neighbor"),
        (1.00, 0.38, 1000, 0.4, "not better than nearest neighbor"),  # by chance
        (1.00, 0.38, 100_000, 0.4, "learning"),  # the same two points, certain
        (1.00, 0.30, 1000, 0.4, "learning"),
        (1.00, 0.40, 20, 0.5, "not better than nearest neighbor"),
    ],
)
def test_a_verdict_follows_from_the_numbers(loss, top1, n, baseline, words):
    found = verdict(
        loss, TEN, top1, n, 0.9, {"other": 0.8, "nearest neighbor": baseline}
    )
    assert found.partition(":")[0] == words
    assert f"{top1:.1%}" in found
    assert "90.0% by chance" in found


def test_a_verdict_says_by_how_much():
    found = verdict(1.0, TEN, 0.3, 1000, 0.9, {"logistic regression": 0.45})
    assert found == (
        "learning: 30.0% of 1,000 validation images are wrong (27.2% to 32.9%), against"
        " 90.0% by chance (60.0 points fewer) and 45.0% with logistic regression"
        " (15.0 points fewer)"
    )


def test_without_baselines_chance_decides():
    assert verdict(1.0, TEN, 0.3, 1000, 0.9).startswith("learning: 30.0%")


def wrong_answers(run, textures):
    """Count the wrong answers of a run by hand."""
    model = load_model(run)
    transform = load_input(run, model)
    p = probabilities(model, transform, textures.val.images, 1)
    return int((p.argmax(1).numpy() != textures.val.labels).sum())


def test_a_run_that_learned_says_by_how_much(runs, summaries, textures):
    wrong = wrong_answers(runs / "learned", textures) / 80
    first = summaries["learned"].splitlines()[0]
    assert first.startswith(f"**Verdict: learning: {wrong:.1%} of 80 validation images")
    assert f"80.0% by chance ({100 * (0.8 - wrong):.1f} points fewer)" in first
    for row in (
        "| chance: always “checked” | 80.0% | 70.0% to 87.3% | 80 |",
        f"| this network, 1 crop | {wrong:.1%} |",
        "| this network, 10 crops |",
        "| nearest neighbor on 8×8 pixels |",
        "| logistic regression on 8×8 pixels |",
    ):
        assert row in summaries["learned"]


def test_a_run_that_learned_nothing_says_so_first(summaries):
    first = summaries["dead"].splitlines()[0]
    assert first.startswith("**Verdict: has not left the plateau: the loss is 1.")
    assert "and guessing gives 1.609;" in first


def test_no_summary_of_textures_speaks_of_digits(runs, summaries):
    assert "digit" not in "".join(summaries.values())
    assert "digit" not in run_facts(runs / "learned") + how_to_predict(runs / "learned")


def test_means_of_an_epoch_count_every_image_once(runs):
    """Of 300 images in batches of 16 the last has 12."""
    rows = [row for row in read_metrics(runs / "learned") if row["split"] == "train"]
    last = [row for row in rows if row["epoch"] == 6]
    assert [row["images"] for row in last] == [16] * 18 + [12]
    wrong = sum(round(row["top1"] * row["images"]) for row in last)
    progress = read_progress(runs / "learned")
    assert progress.train_top1 == pytest.approx(wrong / 300)
    assert progress.train_top1 != pytest.approx(np.mean([row["top1"] for row in last]))
    assert progress.images == 6 * 300


def stopped(runs, dest, lines):
    """Copy a run as if it had been killed while it wrote a line of its metrics."""
    shutil.copytree(runs / "learned", dest)
    for name in ("model.safetensors", "result.json", "report.json", "memory.json"):
        (dest / name).unlink(missing_ok=True)
    text = (dest / "metrics.jsonl").read_text().splitlines()
    torn = "\n".join(text[:lines]) + "\n" + text[lines][:30]
    (dest / "metrics.jsonl").write_text(torn)
    return dest


@pytest.mark.parametrize("steps", [5, 45])
def test_a_stopped_run_has_a_report(runs, summaries, textures, tmp_path, style, steps):
    """From metrics and checkpoint alone; after two epochs, or within the first."""
    epochs = steps // 19
    run = stopped(runs, tmp_path / "stopped", steps + epochs)
    summary = summarize(run, textures)
    assert f"The run stopped after {epochs} of 6 epochs, at step {steps};" in summary
    assert "| this network, 1 crop |" in summary
    facts = run_facts(run)
    assert f"| training steps | {steps} |" in facts
    assert "| memory | unknown |" in facts
    step_line = plot_curves(run).axes[0].lines[0]
    assert list(step_line.get_xdata()) == [step / 19 for step in range(1, steps + 1)]


def test_a_folder_without_steps_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"got no metrics.jsonl, expected"):
        read_progress(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="without a training step"):
        read_progress(tmp_path)


def test_curves_are_the_metrics_by_epoch(runs, style):
    run = runs / "learned"
    rows = read_metrics(run)
    figure = plot_curves(run)
    for ax, metric in zip(figure.axes, ("loss", "top1"), strict=False):
        steps, means, validation = ax.lines[:3]
        train = [row for row in rows if row["split"] == "train"]
        assert list(steps.get_xdata()) == [row["step"] / 19 for row in train]
        assert list(steps.get_ydata()) == [row[metric] for row in train]
        assert list(means.get_ydata()) == list(epoch_means(rows, metric).values())
        val = [row for row in rows if row["split"] == "val"]
        assert list(validation.get_xdata()) == [1, 2, 3, 4, 5, 6]
        assert list(validation.get_ydata()) == [row[metric] for row in val]
    assert figure.axes[0].lines[3].get_ydata() == [math.log(5)] * 2
    (rate,) = figure.axes[2].lines
    assert list(rate.get_ydata()) == [row["lr"] for row in train]
    figure.draw_without_rendering()
    for ax in figure.axes:
        assert all(tick == round(tick) for tick in ax.get_xticks())
    assert _fetch_figure_metadata(figure) is None  # else it is put on a dark box


def test_facts_are_those_of_the_run(runs):
    run = runs / "learned"
    facts = run_facts(run)
    rows = [row for row in read_metrics(run) if row["split"] == "train"]
    seconds = sum(row["seconds"] for row in rows)
    waited = sum(row["data_seconds"] for row in rows)
    memory = json.loads((run / "memory.json").read_text())
    assert 1e8 < memory["peak_bytes"] < memory["total_bytes"]
    env = json.loads((run / "env.json").read_text())
    for row in (
        f"| images per second | {1800 / seconds:,.0f} |",
        f"| waiting for images | {waited / seconds:.1%} of the time |",
        f"| memory | at most {memory['peak_bytes'] / 1e9:.1f} of ",
        f"| devices | {env['layout']} |",
        f"torch {env['torch']}",
    ):
        assert row in facts


def test_the_lines_that_predict_are_python(runs):
    text = how_to_predict(runs / "it's a run")
    code = text.removeprefix("```python\n").removesuffix("\n```")
    compile(code, "report", "exec")
    assert "from alexnet_nb import load\n" in code


def test_a_run_that_was_out_of_patience_says_so(runs, summaries, textures, tmp_path):
    run = tmp_path / "patient"
    shutil.copytree(runs / "learned", run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | dict(epochs=50, patience=1)))
    *rows, last = read_metrics(run)
    lines = [json.dumps(row) for row in (*rows, last | dict(top1=1.0))]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    summary = summarize(run, textures)
    assert (
        "The run ended after 6 of 50 epochs, because the validation error had not"
        " become lower for as many epochs as `patience` allows, 1."
    ) in summary


def test_the_report_of_a_stopped_run_is_of_one_network(runs, textures, tmp_path):
    """Epochs after its last checkpoint are left out; a resumed run repeats them."""
    run = stopped(runs, tmp_path / "stopped", 45)
    *others, checkpoint = sorted(run.glob("checkpoints/step-*"))
    for other in others:
        shutil.rmtree(other)
    checkpoint.rename(checkpoint.with_name("step-0000019"))
    summary = summarize(run, textures)
    assert "The run stopped after 1 of 6 epochs, at step 19;" in summary
    assert read_progress(run).epochs == 2
