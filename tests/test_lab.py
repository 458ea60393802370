"The author's experiments: the table, and the recipes made from it."
import re
from dataclasses import replace

import pytest
import torch

from alexnet_nb.learning import rates_at, reduced
from alexnet_nb.model import AlexNet, plan
from alexnet_nb.recipes import LAB, RECIPES, experiments, lab, recorded, source2010, source2012
from alexnet_nb.training import Config, check

RUNS = experiments()
figures = lambda r: [e for e in (r.one, r.ten, r.unclear) if e]


def test_table_has_every_file_once():
    assert len(RUNS) == 110 and len({r.file for r in RUNS.values()}) == 97
    assert {r.file for r in RUNS.values()} == {id for id, r in RUNS.items() if id == r.file}  # each file has its own row
    assert sum(bool(figures(r)) for r in RUNS.values() if r.id == r.file) == 40
    assert sum(bool(r.unclear) for r in RUNS.values()) == 9 and not any(r.unclear and (r.one or r.ten) for r in RUNS.values())
    assert {r.data for r in RUNS.values()} == {"", "2009", "2010", "2011", "2012", "2012-full", "16k", "flickr"}


def test_parents_exist_and_dates_run_forward():
    assert {r.id for r in RUNS.values() if not r.parent} == {"131-2009", "170-4gpu", "96-16k", "98-16kinit", "inet-5layer-conv94-2gpu"}
    assert {r.parent for r in RUNS.values() if r.parent and r.parent not in RUNS} == {"97", "101", "115", "159"}  # they have no file
    for r in RUNS.values():
        parent = RUNS.get(r.parent)
        if parent and r.date and parent.date: assert r.date >= parent.date, r.id


def test_figures_can_be_traced_and_are_counts_of_pictures():
    "Ten views: whole numbers of wrong pictures among 50,000 (validation, 2012) or 150,000 (test, 2010)."
    for r in RUNS.values():
        if not figures(r): continue
        assert re.fullmatch(r"\d+(-\d+)?", r.lines), r.id
        for e in figures(r): assert 0 < e.top5 < e.top1 < 1 and (e.nll is None or 1 < e.nll < 4), r.id
        if not r.ten: continue
        n = {"2012": 50_000, "2010": 150_000}[r.data]
        for e in r.ten[1:]: assert abs(e * n - round(e * n)) < 1e-6 * n, (r.id, e)


def test_seven_pairs_equal_the_paper():
    percent = lambda e: tuple(round(100 * x, 1) for x in e[1:])
    points = lambda a, b: tuple(round(100 * (x - y), 1) for x, y in zip(a[1:], b[1:]))
    ten = {id: r.ten for id, r in RUNS.items()}
    assert percent(ten["145-2010"]) == (37.5, 17.0) and percent(RUNS["145-2010"].one) == (39.0, 18.3)
    assert percent(ten["145"]) == (40.7, 18.2) and percent(ten["146-2012-2011"]) == (39.0, 16.6)
    assert points(ten["145-half"], ten["145-2010"]) == (1.7, 1.2)
    assert points(ten["148"], ten["145"]) == (1.4, 1.2) and points(ten["147"], ten["145"]) == (0.4, 0.3)


@pytest.mark.parametrize("id", LAB)
def test_recipe_can_be_built_and_run(id):
    recipe = lab(id)
    assert recipe.name == f"lab-{id}" and RUNS[id].file == id and check(Config(recipe=recipe.name, data="photos"))
    small = reduced(recipe, 1 / 16, 96)
    logits = AlexNet(small, 7).eval()(torch.randn(2, 3, 96, 96) * 60)
    assert logits.shape == (2, 7) and logits.isfinite().all()


def test_recipes_hold_the_authors_numbers():
    counts = {id: sum(l.parameters for l in plan(lab(id))) for id in ("145", "145-half", "150", "148", "170")}
    assert counts == {"145": 60_965_224, "145-half": 59_798_312, "150": 60_714_408, "148": 60_965_224, "170": 60_965_224}
    with pytest.raises(ValueError, match="recipe: found 'lab-137'"): check(Config(recipe="lab-137"))


def epochs(recipe, n):
    "Epochs, counted from 1, at which a rate or the noise changes."
    rates = [rates_at(recipe, e / n) for e in range(n)]
    return {e + 1: {k: v for k, v in b.items() if v != a[k]} for e, (a, b) in enumerate(zip([rates[0], *rates], rates)) if a != b}


@pytest.mark.parametrize("recipe, id, n", [(source2012, "145", 90), (source2010, "145-2010", 93)])
def test_the_papers_schedules_are_the_recorded_ones(recipe, id, n):
    run = RUNS[id]
    by_hand = replace(recipe, schedule=recorded(replace(run, epochs=n)))
    assert epochs(recipe, n) == epochs(by_hand, n)
    assert sorted(epochs(recipe, n)) == sorted({int(d.split(":")[0]) for d in run.drops.split()} | {run.colour_off})


def test_rates_follow_the_notes():
    "147: drops at 23, 51 and 79, where conv1 stops; 171: five levels from 0.01 to 0.00002."
    changes = epochs(lab("147"), 90)
    assert list(changes) == [23, 51, 79] and changes[79]["conv1"] == 0 and changes[79]["weights"] == pytest.approx(1e-5)
    rates = sorted({rates_at(lab("171"), e / 90)["weights"] for e in range(90)}, reverse=True)
    assert len(rates) == 5 and rates[0] == 0.01 and rates[-1] == pytest.approx(2e-5)
    assert all(a / b == pytest.approx(500 ** (1 / 4)) for a, b in zip(rates, rates[1:]))


def test_names_do_not_meet():
    assert len(LAB) >= 20 and not {f"lab-{id}" for id in LAB} & RECIPES.keys()
