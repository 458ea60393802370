"""The author's experiments: the table, and the recipes made from it."""

import csv
import itertools
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.run_dir import load_run_config, validate
from alexnet_nb.lab import (
    LAB_IDS,
    Setting,
    lab_experiments,
    lab_recipe,
    recorded_schedule,
)
from alexnet_nb.learning import learning_rates, scale_width
from alexnet_nb.lrn import LRN, SpatialNorm
from alexnet_nb.model import AlexNet, layer_specs
from alexnet_nb.recipes import RECIPES, source2010, source2012
from helpers import ROOT

RUNS = lab_experiments()


def figures(r):
    return [e for e in (r.one, r.ten, r.unclear) if e]


def test_table_has_every_file_once():
    assert len(RUNS) == 110
    assert len({r.file for r in RUNS.values()}) == 97
    assert {r.file for r in RUNS.values()} == {
        id for id, r in RUNS.items() if id == r.file
    }  # each file has its own row
    assert sum(bool(figures(r)) for r in RUNS.values() if r.id == r.file) == 40
    assert sum(bool(r.unclear) for r in RUNS.values()) == 9
    assert not any(r.unclear and (r.one or r.ten) for r in RUNS.values())
    assert {r.data for r in RUNS.values()} == {
        "",
        "2009",
        "2010",
        "2011",
        "2012",
        "2012-full",
        "16k",
        "flickr",
    }


def test_parents_exist_and_dates_run_forward():
    assert {r.id for r in RUNS.values() if not r.parent} == {
        "131-2009",
        "170-4gpu",
        "96-16k",
        "98-16kinit",
        "inet-5layer-conv94-2gpu",
    }
    assert {r.parent for r in RUNS.values() if r.parent and r.parent not in RUNS} == {
        "97",
        "101",
        "115",
        "159",
    }  # they have no file
    for r in RUNS.values():
        parent = RUNS.get(r.parent)
        if parent and r.date and parent.date:
            assert r.date >= parent.date, r.id


def test_figures_can_be_traced_and_are_counts_of_pictures():
    """Ten crops: whole numbers of wrong pictures.

    Among 50,000 (validation, 2012) or 150,000 (test, 2010).
    """
    for r in RUNS.values():
        if not figures(r):
            continue
        assert re.fullmatch(r"\d+(-\d+)?", r.lines), r.id
        for e in figures(r):
            assert 0 < e.top5 < e.top1 < 1, r.id
            assert e.nll is None or 1 < e.nll < 4, r.id
        if not r.ten:
            continue
        n = {"2012": 50_000, "2010": 150_000}[r.data]
        for e in r.ten[1:]:
            assert abs(e * n - round(e * n)) < 1e-6 * n, (r.id, e)


def test_seven_pairs_equal_the_paper():
    def percent(e):
        return tuple(round(100 * x, 1) for x in e[1:])

    def points(a, b):
        return tuple(round(100 * (x - y), 1) for x, y in zip(a[1:], b[1:], strict=True))

    ten = {id: r.ten for id, r in RUNS.items()}
    assert percent(ten["145-2010"]) == (37.5, 17.0)
    assert percent(RUNS["145-2010"].one) == (39.0, 18.3)
    assert percent(ten["145"]) == (40.7, 18.2)
    assert percent(ten["146-2012-2011"]) == (
        39.0,
        16.6,
    )
    assert points(ten["145-half"], ten["145-2010"]) == (1.7, 1.2)
    assert points(ten["148"], ten["145"]) == (1.4, 1.2)
    assert points(ten["147"], ten["145"]) == (0.4, 0.3)


@pytest.mark.parametrize("id", LAB_IDS)
def test_recipe_can_be_built_and_run(id):
    recipe = lab_recipe(id)
    assert recipe.name == f"lab-{id}"
    assert RUNS[id].file == id
    assert validate(Config(recipe=recipe.name, data="photos"))
    small = scale_width(recipe, 1 / 16, 96)
    logits = AlexNet(small, 7).eval()(torch.randn(2, 3, 96, 96) * 60)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_recipes_hold_the_authors_numbers():
    counts = {
        id: sum(layer.parameters for layer in layer_specs(lab_recipe(id)))
        for id in ("145", "145-half", "150", "148", "170")
    }
    assert counts == {
        "145": 60_965_224,
        "145-half": 59_798_312,
        "150": 60_714_408,
        "148": 60_965_224,
        "170": 60_965_224,
    }
    with pytest.raises(ValueError, match="recipe: got 'lab-137'"):
        validate(Config(recipe="lab-137"))


def test_a_folder_of_version_0_1_finds_its_lab_recipe(tmp_path):
    """It has the name of the recipe, and that version's names of the parameters."""
    stored = dict(data="photos", recipe="lab-147", width=0.25, size=72, crop=64)
    (tmp_path / "config.json").write_text(json.dumps(stored))
    run = resolve(Config(**load_run_config(str(tmp_path))))
    assert run.model_recipe == scale_width(lab_recipe("147"), 0.25, 64)
    assert run.model_recipe.pool == 2


def epochs(recipe, n):
    """Epochs, counted from 1, at which a rate or the noise changes."""
    rates = [learning_rates(recipe, e / n) for e in range(n)]
    return {
        e + 1: {k: v for k, v in b.items() if v != a[k]}
        for e, (a, b) in enumerate(itertools.pairwise([rates[0], *rates]))
        if a != b
    }


@pytest.mark.parametrize(
    ("recipe", "id", "n"), [(source2012, "145", 90), (source2010, "145-2010", 93)]
)
def test_the_papers_schedules_are_the_recorded_ones(recipe, id, n):
    run = RUNS[id]
    by_hand = replace(recipe, schedule=recorded_schedule(replace(run, epochs=n)))
    assert epochs(recipe, n) == epochs(by_hand, n)
    assert sorted(epochs(recipe, n)) == sorted(
        {d.epoch for d in run.drops} | {run.color_off}
    )


def test_rates_follow_the_notes():
    """147: drops at 23, 51 and 79, where conv1 stops.

    171: five levels from 0.01 to 0.00002.
    """
    changes = epochs(lab_recipe("147"), 90)
    assert list(changes) == [23, 51, 79]
    assert changes[79]["weights"] == pytest.approx(1e-5)
    assert changes[79]["conv1"] == changes[79]["conv1_bias"] == 0
    rates = sorted(
        {learning_rates(lab_recipe("171"), e / 90)["weights"] for e in range(90)},
        reverse=True,
    )
    assert len(rates) == 5
    assert rates[0] == 0.01
    assert rates[-1] == pytest.approx(2e-5)
    assert all(
        a / b == pytest.approx(500 ** (1 / 4)) for a, b in itertools.pairwise(rates)
    )


def test_names_do_not_meet():
    assert len(LAB_IDS) >= 20
    assert not {f"lab-{id}" for id in LAB_IDS} & RECIPES.keys()


def table_text():
    """The table as it is on disk: id → column → text."""
    with open(ROOT / "alexnet_nb/lab.tsv", encoding="utf-8") as f:
        return {
            row["id"]: row
            for row in csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE)
        }


def test_every_value_of_the_table_is_read():
    """No value is lost or changed on the way from the text to the types."""
    for id, row in table_text().items():
        run = RUNS[id]
        for name in (
            "drops",
            "lr0",
            "bias_lr0",
            "bias_drops",
            "batch",
            "decay",
            "lr_stored",
            "bias_stored",
        ):
            assert " ".join(map(str, getattr(run, name))) == row[name], (id, name)
        for name in (
            "epochs",
            "color_off",
            "conv1_slow",
            "conv1_freeze",
            "planned",
            "gpus",
        ):
            value = getattr(run, name)
            assert value == (float(row[name]) if row[name] else None), (id, name)
        for name in ("weight_schedule", "bias_schedule"):
            formulas = getattr(run, name)
            assert len(formulas) == len(row[name].split()), (id, name)
            assert all(
                str(f.factor or "").removesuffix(".0") in row[name] for f in formulas
            ), (id, name)
        assert str(run.date or "") == row["date"]
        assert (run.structure is not None) == (id in LAB_IDS) == bool(row["structure"])


def test_columns_of_the_table_agree_with_each_other():
    """conv1's epochs are those of its drops.

    And a file saved at the end of a run holds what the last drop says.
    """
    for id, run in RUNS.items():
        if id == "120-4gpu":
            continue  # its stage files' timetable is in run4.sh, and was not finished
        conv1 = [d for d in run.drops if d.layers in ("conv1", "conv1-2")]
        assert [d.epoch for d in conv1 if not d.value] == [
            e for e in [run.conv1_freeze] if e
        ], id
        assert sorted(d.epoch for d in conv1 if d.value) == [
            e for e in [run.conv1_slow] if e
        ], id
        if run.color_off and run.conv1_slow and "2012-20" not in id:
            assert run.color_off == run.conv1_slow or run.weight_schedule, id
        last = [d.value for d in run.drops if not d.layers]
        if run.stored_stage == "end" and last and not run.weight_schedule:
            assert last[-1] == next(s.value for s in run.lr_stored if not s.layers), id


def test_table_says_when_the_color_noise_ended():
    """59 runs note it; some of them at a fraction of an epoch."""
    noted = {id: run.color_off for id, run in RUNS.items() if run.color_off}
    assert len(noted) == 59
    assert noted["135-2009"] == 10.3697
    assert noted["141-2009-half"] == 18.2396
    unknown = {id for id in LAB_IDS if id not in noted}
    assert unknown == {"147", "154", "170-256", "170-256-0.015"}


def test_contrast_normalization_of_109_and_114_is_in_conv2_only():
    for id in ("109", "114"):
        assert (
            "of the weights of conv2 (the fully connected layers have none)"
            in RUNS[id].change
        )


def row_rates(run, progress):
    """Rates and noise at a point of a run, computed from the row alone.

    With none of the code that makes recipes.
    """
    length = run.planned or (90 if run.weight_schedule else run.epochs or 90)
    now = progress * length + 1 + 1e-9
    usual = {
        name: next((s.value for s in settings if not s.layers), None)
        for name, settings in (("weights", run.lr0), ("biases", run.bias_lr0))
    }
    rates = dict(
        weights=usual["weights"], biases=usual["biases"] or 2 * usual["weights"]
    )
    for name, formulas in (
        ("weights", run.weight_schedule),
        ("biases", run.bias_schedule),
    ):
        for formula in [f for f in formulas if f.epoch <= now][-1:]:
            if formula.kind == "exp":
                done = (
                    math.floor(progress * 90 + 1e-9) / 90
                )  # rates are set at the beginning of an epoch
            else:
                done = min(
                    math.floor(progress * formula.steps + 1e-9), formula.steps - 1
                ) / (formula.steps - 1)
            rates[name] /= formula.factor**done
    for drops, name in ((run.drops, "weights"), (run.bias_drops, "biases")):
        for drop in drops:
            if not drop.layers and drop.epoch and drop.epoch <= now:
                rates[name] = drop.value
    rates |= dict(conv1=rates["weights"], conv1_bias=rates["biases"])
    if run.conv1_slow and run.conv1_slow <= now:
        rates["conv1"] = next(
            d.value
            for d in run.drops
            if d.layers == "conv1" and d.epoch == run.conv1_slow
        )
        rates["conv1_bias"] = 0.002
    if run.conv1_freeze and run.conv1_freeze <= now:
        rates |= dict(conv1=0.0, conv1_bias=0.0)
    return rates | dict(color=not (run.color_off and run.color_off <= now))


@pytest.mark.parametrize("progress", [0, 0.3, 0.5, 0.7, 0.735, 0.76, 0.9, 0.99])
@pytest.mark.parametrize("id", LAB_IDS)
def test_recipe_has_the_rates_of_its_row(id, progress):
    """Weights, conv1's weights and biases, the other biases, and the noise."""
    assert learning_rates(lab_recipe(id), progress) == pytest.approx(
        row_rates(RUNS[id], progress), rel=1e-6
    )


ON, OFF = True, False
# Epochs, then rates of the weights, conv1's weights, conv1's biases, the other biases,
# and the noise. By hand from layers/layer-params-ID.cfg: the comments at its end, epsW
# and epsB of its sections, sched, schedW and schedB.
READ = {
    "145": (
        91,
        {  # comments in lines 169-181; epsB 0.0 in lines 3 and 11, 0.02 elsewhere
            1: (0.01, 0.01, 0.02, 0.02, ON),
            25: (0.001, 0.001, 0.02, 0.02, ON),
            51: (0.0001, 0.0001, 0.02, 0.02, ON),
            67: (0.0001, 0.00001, 0.002, 0.02, OFF),
            72: (0.0001, 0, 0, 0.02, OFF),
            79: (0.00001, 0, 0, 0.02, OFF),
        },
    ),
    "148": (
        97,
        {  # 141-146
            1: (0.01, 0.01, 0.02, 0.02, ON),
            22: (0.001, 0.001, 0.02, 0.02, ON),
            44: (0.0001, 0.0001, 0.02, 0.02, ON),
            69: (0.0001, 0.00001, 0.002, 0.02, OFF),
            73: (0.0001, 0, 0, 0.02, OFF),
            86: (0.00001, 0, 0, 0.02, OFF),
        },
    ),
    "149": (
        90,
        {  # 179-182; saved in the slowed stage: epsW 0.00001 and epsB 0.002 in conv1,
            # lines 2-3 and 10-11
            1: (0.01, 0.01, 0.02, 0.02, ON),
            21: (0.001, 0.001, 0.02, 0.02, ON),
            54: (0.0001, 0.0001, 0.02, 0.02, ON),
            66: (0.0001, 0.00001, 0.002, 0.02, OFF),
            90: (0.0001, 0.00001, 0.002, 0.02, OFF),
        },
    ),
    "150": (
        92,
        {  # 170-177
            1: (0.01, 0.01, 0.02, 0.02, ON),
            25: (0.001, 0.001, 0.02, 0.02, ON),
            49: (0.0001, 0.0001, 0.02, 0.02, ON),
            66: (0.0001, 0.00001, 0.002, 0.02, OFF),
            72: (0.0001, 0, 0, 0.02, OFF),
            79: (0.00001, 0, 0, 0.02, OFF),
        },
    ),
    "155": (
        90,
        {  # 185-186; sched=exp[4000], 0.02 and 0.04; 46 is half way, where the
            # factor is 63.2456
            1: (0.02, 0.02, 0.04, 0.04, ON),
            46: (3.16228e-4, 3.16228e-4, 6.32456e-4, 6.32456e-4, ON),
            61: (7.93701e-5, 7.93701e-5, 1.58740e-4, 1.58740e-4, OFF),
            74: (2.39530e-5, 0, 0, 4.79059e-5, OFF),
        },
    ),
    "157": (
        90,
        {  # 185-186; sched=exp[8000], 0.04 and 0.08
            1: (0.04, 0.04, 0.08, 0.08, ON),
            46: (4.47214e-4, 4.47214e-4, 8.94427e-4, 8.94427e-4, ON),
            61: (1e-4, 1e-4, 2e-4, 2e-4, ON),
            62: (9.04966e-5, 9.04966e-5, 1.80993e-4, 1.80993e-4, OFF),
            73: (3.01709e-5, 0, 0, 6.03418e-5, OFF),
        },
    ),
    "158": (
        90,
        {  # 185-186; sched=exp[20000], 0.04 and 0.08
            1: (0.04, 0.04, 0.08, 0.08, ON),
            46: (2.82843e-4, 2.82843e-4, 5.65685e-4, 5.65685e-4, ON),
            63: (4.35640e-5, 4.35640e-5, 8.71281e-5, 8.71281e-5, OFF),
            77: (9.33424e-6, 0, 0, 1.86685e-5, OFF),
        },
    ),
    "160": (
        90,
        {  # 185; sched=dexp[2000,4], 0.02 and 0.04: quarters of the run, 12.5992
            # apart; conv1's freeze has no date
            1: (0.02, 0.02, 0.04, 0.04, ON),
            24: (1.58740e-3, 1.58740e-3, 3.17480e-3, 3.17480e-3, ON),
            46: (1.25992e-4, 1.25992e-4, 2.51984e-4, 2.51984e-4, ON),
            61: (1.25992e-4, 1.25992e-4, 2.51984e-4, 2.51984e-4, OFF),
            69: (1e-5, 1e-5, 2e-5, 2e-5, OFF),
        },
    ),
    "166": (
        90,
        {  # 200-201; schedW=dexp[1000,4], schedB=dexp[10,2]
            1: (0.01, 0.01, 0.02, 0.02, ON),
            24: (0.001, 0.001, 0.02, 0.02, ON),
            46: (0.0001, 0.0001, 0.002, 0.002, ON),
            64: (0.0001, 0.0001, 0.002, 0.002, OFF),
            69: (0.00001, 0.00001, 0.002, 0.002, OFF),
            73: (0.00001, 0, 0, 0.002, OFF),
        },
    ),
    "170": (
        95,
        {  # 201-203, length in 207; schedW and schedB with 250 in 4 steps and 10 in 2;
            # the fade-in came later
            1: (0.01, 0.01, 0.02, 0.02, ON),
            25: (1.58740e-3, 1.58740e-3, 0.02, 0.02, ON),
            49: (2.51984e-4, 2.51984e-4, 0.002, 0.002, ON),
            68: (2.51984e-4, 2.51984e-4, 0.002, 0.002, OFF),
            73: (0.00004, 0.00004, 0.002, 0.002, OFF),
            74: (0.00004, 0, 0, 0.002, OFF),
        },
    ),
    "170-256-double": (
        90,
        {  # 200-201; schedW=dexp[250,0,4], schedB=dexp[10,0,2], 0.02 and 0.04
            1: (0.02, 0.02, 0.04, 0.04, ON),
            24: (3.17480e-3, 3.17480e-3, 0.04, 0.04, ON),
            46: (5.03968e-4, 5.03968e-4, 0.004, 0.004, ON),
            61: (5.03968e-4, 5.03968e-4, 0.004, 0.004, OFF),
            69: (0.00008, 0.00008, 0.004, 0.004, OFF),
            73: (0.00008, 0, 0, 0.004, OFF),
        },
    ),
}


@pytest.mark.parametrize("id", READ)
def test_recipe_has_the_rates_read_in_the_released_file(id):
    length, noted = READ[id]
    previous = noted[1]
    for epoch, (weights, conv1, conv1_bias, biases, color) in noted.items():
        expected = dict(
            weights=weights,
            conv1=conv1,
            conv1_bias=conv1_bias,
            biases=biases,
            color=color,
        )
        assert learning_rates(
            lab_recipe(id), (epoch - 1) / length + 1e-9
        ) == pytest.approx(expected, rel=1e-5), epoch
        before = learning_rates(
            lab_recipe(id), max(0, epoch - 2) / length + 1e-9
        )  # an epoch earlier the noise and conv1 are as noted before
        assert (before["color"], before["conv1"] > 0, before["conv1_bias"] > 0) == (
            previous[4],
            previous[1] > 0,
            previous[2] > 0,
        ), epoch
        previous = noted[epoch]


SOURCE_NET = dict(
    conv1=[LRN, nn.ReLU, nn.MaxPool2d],
    conv2=[nn.ReLU, LRN, SpatialNorm, nn.MaxPool2d],
    conv3=[nn.ReLU],
    conv4=[nn.ReLU],
    conv5=[nn.ReLU, nn.MaxPool2d],
)
# What follows the layers, by hand from layers/layers-ID.cfg. A ReLU over a max pooling
# is written before it, which gives the same values.
OTHER_NETS = {
    "148": dict(conv1=[nn.ReLU, nn.MaxPool2d], conv2=[nn.ReLU, nn.MaxPool2d]),
    "149": dict(conv5=[LRN, nn.ReLU, nn.MaxPool2d]),
    "166": dict(conv2=[LRN, SpatialNorm, nn.ReLU, nn.MaxPool2d]),
    "167": dict(conv2=[nn.ReLU, nn.MaxPool2d]),
}
WIDTHS = {
    "145-half": ((48, 128, 192, 192, 256), (4096, 4096), 1, ()),
    "150": ((96, 320, 384, 384, 256), (8192, 4096), 2, ("fc8",)),
}


def steps_after_convolutions(net):
    """What runs after each convolution.

    In the order in which a forward pass runs it.
    """
    ran = []
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda module, inputs: ran.append(module))
    net(torch.zeros(1, 3, net.recipe.crop, net.recipe.crop))
    steps = {}
    for module in ran[: ran.index(net.fc6)]:
        if isinstance(module, nn.Conv2d):
            name = f"conv{len(steps) + 1}"
            steps[name] = []
        elif not isinstance(module, nn.Identity):
            steps[name].append(type(module))
    return steps


@pytest.mark.parametrize("id", LAB_IDS)
def test_recipe_has_the_net_of_the_released_definition(id):
    recipe = lab_recipe(id)
    net = AlexNet(scale_width(recipe, 1 / 16, 96), 7)
    assert steps_after_convolutions(net) == SOURCE_NET | OTHER_NETS.get(id, {})
    widths = (recipe.kernels, recipe.hidden, recipe.columns, recipe.joined)
    assert widths == WIDTHS.get(
        id, ((96, 256, 384, 384, 256), (4096, 4096), 2, ("conv3", "fc6", "fc7", "fc8"))
    )
    pooling = (recipe.pool, recipe.pool_stride, recipe.pads)
    assert pooling == (
        (2, 2, (0, 1, 1, 1, 0)) if id == "147" else (3, 2, (0, 2, 1, 1, 1))
    )
    assert (recipe.init_std, recipe.init_bias) == (
        source2012.init_std,
        source2012.init_bias,
    )


@pytest.mark.parametrize(
    ("id", "layer", "norms"),
    [("149", "conv5", [LRN]), ("166", "conv2", [LRN, SpatialNorm])],
)
def test_norms_before_the_relu_see_negative_responses(id, layer, norms):
    lowest = {}
    for name in (id, "145"):
        net = AlexNet(scale_width(lab_recipe(name), 1 / 16, 96), 7).eval()
        norm = getattr(net, layer.replace("conv", "norm"))
        for module in [] if norm is None else norm.modules():
            if isinstance(module, (LRN, SpatialNorm)):
                module.register_forward_pre_hook(
                    lambda module, inputs, name=name: lowest.update(
                        {(name, type(module)): inputs[0].min().item()}
                    )
                )
        net(torch.randn(2, 3, 96, 96) * 60)
    assert all(lowest[id, norm] < 0 for norm in norms)
    assert all(lowest.get(("145", norm), 0) >= 0 for norm in norms)


def test_batch_of_a_run_is_in_the_table():
    assert {id: RUNS[id].batch for id in LAB_IDS if RUNS[id].batch} == dict.fromkeys(
        ("170-256", "170-256-0.015", "170-256-double"), (Setting(256.0),)
    )
