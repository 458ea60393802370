"Every run under results/ is whole, and its figures agree with each other."
import json

import pytest
from conftest import ROOT

from alexnet_nb.evaluation import wilson
from alexnet_nb.model import plan
from alexnet_nb.training import Config, run_recipe

RUNS = sorted(p.parent for p in (ROOT / "results").glob("*/result.json"))


@pytest.mark.parametrize("folder", RUNS, ids=lambda p: p.name)
def test_run_is_whole(folder):
    config = Config(**json.loads((folder / "config.json").read_text()))
    result = json.loads((folder / "result.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    val = [r for r in rows if r["split"] == "val"]
    assert [r["epoch"] for r in val] == list(range(1, config.epochs + 1))
    assert val[-1]["top1"] == pytest.approx(result["top1_central"], abs=1e-9)
    assert result["recipe"] == config.recipe and result["seed"] == config.seed
    classes = 5 if folder.name == "flowers5" else 1000
    assert result["parameters"] == sum(l.parameters for l in plan(run_recipe(config), classes))


def test_flowers_stay_under_thirty_percent():
    result = json.loads((ROOT / "results/flowers5/result.json").read_text())
    assert (result["n"], result["views"]) == (450, 10)
    low, high = wilson(result["top1"], result["n"])
    assert low < result["top1"] <= 0.30 and high < 0.8
