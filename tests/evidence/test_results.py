"""Every run under results/ is whole, and its figures agree with each other."""

import csv
import importlib
import json
import statistics

import pytest

from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.evaluation import wilson
from alexnet_nb.model import layer_specs
from helpers import ROOT

RUNS = sorted(p.parent for p in (ROOT / "results").glob("*/result.json"))


@pytest.mark.parametrize("folder", RUNS, ids=lambda p: p.name)
def test_recorded_run_is_whole(folder):
    config = Config(**json.loads((folder / "config.json").read_text()))
    result = json.loads((folder / "result.json").read_text())
    rows = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    val = [r for r in rows if r["split"] == "val"]
    assert [r["epoch"] for r in val] == list(range(1, config.epochs + 1))
    assert val[-1]["top1"] == pytest.approx(result["top1_central"], abs=1e-9)
    assert result["recipe"] == config.recipe
    assert result["seed"] == config.seed
    classes = 5 if folder.name == "flowers5" else 1000
    assert result["parameters"] == sum(
        layer.parameters for layer in layer_specs(resolve(config).model_recipe, classes)
    )


def test_recorded_flowers_stay_under_thirty_percent():
    result = json.loads((ROOT / "results/flowers5/result.json").read_text())
    assert (result["n"], result["crops"]) == (450, 10)
    low, high = wilson(result["top1"], result["n"])
    assert low < result["top1"] <= 0.30
    assert high < 0.8


@pytest.mark.parametrize("name", ["lrn", "columns", "forms", "step", "data"])
def test_table_is_made_from_its_numbers(name, monkeypatch):
    """The tables of pages are made from the JSON beside them.

    By the benchmarks' functions.
    """
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module(name)
    for path in (ROOT / "results/benchmarks").glob(f"{name}*.json"):
        results = json.loads(path.read_text())
        assert (
            path.with_suffix(".md").read_text()
            == module.table(results.get("rounds", results)) + "\n"
        )


def test_recorded_gpu_runs_are_what_the_status_page_states(cells):
    """So many tests passed, and so many full-size runs of the plateau are from a GPU.

    The page with the status says so, and no other page lists it again.
    """
    record = json.loads((ROOT / "results/gpu/h100.json").read_text())
    runs = [
        json.loads(line)
        for line in (ROOT / "results/in_place/metrics.jsonl").read_text().splitlines()
    ]
    whole = [r["device"] for r in runs if "precision" not in r["job"]]
    (stated,) = (
        "".join(c["outputs"][0]["data"]["text/markdown"])
        for c in cells("evidence/status.ipynb")
        if c["id"] == "gpu-record"
    )
    tests = record["runs"][-1]["tests"]
    assert f"{tests['passed']} of the {tests['of']} tests of `tests/gpu`" in stated
    assert f"{whole.count('cuda')} of the {len(whole)} full-size runs" in stated
    for page in ("engine/checkpoint.ipynb", "guides/scale.ipynb", "guides/train.ipynb"):
        prose = "".join(
            "".join(c["source"]) for c in cells(page) if c["cell_type"] == "markdown"
        )
        assert "status.ipynb" in prose
        assert "H100" not in prose


def test_recorded_drills_were_survived(monkeypatch):
    """The table of drills is made from its outcomes.

    All survived, and nothing stayed behind.
    """
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    with open(ROOT / "results/drills/drills.tsv") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    assert (
        ROOT / "results/drills/drills.md"
    ).read_text() == f"{importlib.import_module('drills').table(rows)}\n"
    assert len({r["pass"] for r in rows}) >= 5
    assert {r["outcome"] for r in rows} == {"survived"}
    assert {r["left behind"] for r in rows} == {"0"}


def test_recorded_measurement_of_lrn_is_five_times_as_fast():
    """In the measurement that is shown, in both layouts, eager and compiled.

    And never slower than torch's.
    """
    rounds = json.loads((ROOT / "results/benchmarks/lrn.json").read_text())["rounds"]
    seconds = {
        (tuple(r["shape"]), r["layout"], r["busy"]): {
            n: statistics.median(s) for n, s in r["seconds"].items()
        }
        for r in rounds
    }
    for layout in ("contiguous", "channels-last"):
        main = seconds[(32, 96, 55, 55), layout, False]
        assert main["torch's"] >= 5 * main["ours"]
        assert main["torch's"] >= 5 * main["ours, compiled"]
        assert main["torch's, compiled"] >= 1.4 * main["ours, compiled"]
    assert all(s["torch's"] > s["ours"] for s in seconds.values())


def test_recorded_measurement_of_packing_and_batches_is_fast_enough():
    """In the measurement that is shown.

    Packing beside PIL, batches beside a copy and a memory-mapped Dataset.
    """
    r = json.loads((ROOT / "results/benchmarks/data.json").read_text())

    def ratio(group, a, b):
        return statistics.median(
            x / y
            for x, y in zip(r[group]["seconds"][a], r[group]["seconds"][b], strict=True)
        )

    assert (
        ratio("packing, one core", "PIL, Resize(256), CenterCrop(256)", "ours") >= 1.7
    )
    assert ratio("batches", "a copy of as many bytes", "ours") >= 0.6
    assert ratio("batches", "memory-mapped Dataset, DataLoader", "ours") >= 1.5


def test_tables_are_made_from_the_measurements(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cluster

    for name, table in (("cores", cluster.table), ("wire", cluster.wire_table)):
        assert (ROOT / f"results/cluster/{name}.md").read_text() == table(
            json.loads((ROOT / f"results/cluster/{name}.json").read_text())
        ) + "\n"
