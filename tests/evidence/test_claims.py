"""Every row of the ledger points at things that exist.

Its values are those of the notes, the results and the code.
"""

import ast
import csv
import functools
import importlib
import inspect
import json
import re

import pytest

from alexnet_nb.lab import lab_experiments
from alexnet_nb.learning import learning_rates
from alexnet_nb.lrn import LRN
from alexnet_nb.model import AlexNet, layer_specs
from alexnet_nb.recipes import paper, source2012
from helpers import ROOT

with open(ROOT / "nbs/evidence/claims.tsv") as f:
    CLAIMS = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
TESTS = {
    n.name
    for p in (ROOT / "tests").rglob("test_*.py")
    for n in ast.walk(ast.parse(p.read_text()))
    if isinstance(n, ast.FunctionDef)
}
COMPUTED = {
    "reproduced",
    "misprint in the paper",
    "paper and code differ",
    "did not reproduce",
}
STATUS = COMPUTED | {
    "read in the notes",
    "small-scale analogue",
    "cannot be shown here",
    "needs ImageNet",
}


def ids(c):
    return f"{c['section']} {c['claim'][:40]}"


def notes(words):
    """Top-1 and top-5 error in the notes, per cent.

    Of 'ID' or 'ID, one crop', or the difference of two.
    """
    runs = lab_experiments()

    def pick(w):
        return (
            runs[w.removesuffix(", one crop")].one
            if w.endswith(", one crop")
            else runs[w].ten
        )

    a, _, b = words.partition(" - ")
    return [100 * (x - (pick(b)[i] if b else 0)) for i, x in enumerate(pick(a)) if i]


def assert_agrees(ours, file, key):
    """The numbers of a row are those of its results file.

    A row has 'estimate (low to high), n = …' or an error in per cent.
    """
    values, _, n = ours.partition(", n = ")
    if file.endswith(".json"):
        found = {
            "estimate": str(
                functools.reduce(
                    dict.get,
                    key.split("."),
                    json.loads((ROOT / "results" / file).read_text()),
                )
            )
        }
    else:
        with open(ROOT / "results" / file) as f:
            found = next(
                r for r in csv.DictReader(f, delimiter="\t") if r["what"] == key
            )
    scale = 100 if "points" in values or "%" in values else 1
    scale *= -1 if "fewer" in values else 1
    numbers = re.findall(
        r"-?\d+(?:\.\d+)?",
        re.sub("95 %|−", lambda m: "-" if m[0] == "−" else "", values),
    )
    assert numbers
    assert numbers == [
        f"{scale * float(w):.{len(x.partition('.')[2])}f}"
        for x, w in zip(
            numbers,
            [found[k] for k in ("estimate", "low", "high") if found.get(k)],
            strict=True,
        )
    ]
    assert n == found.get("n", "")


@pytest.mark.parametrize("claim", CLAIMS, ids=ids)
def test_row_is_true(claim):
    assert claim["status"] in STATUS
    assert claim["paper"]
    assert claim["claim"]
    if claim["test"]:
        assert claim["test"] in TESTS
    if claim["symbol"]:
        module, name = claim["symbol"].split(".")
        assert hasattr(importlib.import_module(f"alexnet_nb.{module}"), name)
    if claim["lab"]:
        assert [f"{e:.1f}" for e in notes(claim["lab"])] == claim["paper"].split(", ")
    if claim["result"]:
        assert_agrees(claim["ours"], *claim["result"].split(":", 1))
    if claim["result"]:  # and the command that made it is known
        folder = ROOT / "results" / claim["result"].partition("/")[0]
        command = json.loads((folder / "env.json").read_text()).get("command", "")
        scripts = r"python nbs/(evidence/)?experiments/"  # as it was called then
        assert (folder / "config.json").exists() or re.match(scripts, command)
    if claim["lab"]:
        run = lab_experiments()[claim["lab"].split(" - ")[0].removesuffix(", one crop")]
        file, lines = claim["source"].split(":")
        first, last = (int(n) for n in (run.lines.split("-") * 2)[:2])
        assert file == f"layer-params-{run.file}.cfg"
        assert all(first <= int(n) <= last for n in lines.split("-"))
        assert claim["crops"] in ("1", "10")
        assert run.data in claim["images"]
    assert claim["ours"] or claim["why"] or claim["lab"], (
        "a row without a value says why"
    )
    if claim["status"] in COMPUTED:
        assert claim["ours"]
        assert claim["test"]
    if claim["status"] in ("paper and code differ", "read in the notes"):
        assert claim["source"], "the file that says so is named"
    if claim["status"] == "small-scale analogue":
        assert claim["ours"]
        assert claim["symbol"]
    if claim["status"] in COMPUTED - {"reproduced"} | {"read in the notes"}:
        assert claim["why"]


def test_commands_of_the_page_name_files_that_exist(cells):
    """A script that has moved since its results were written is named where it is."""
    (table,) = [
        "".join(cell["outputs"][0]["data"]["text/markdown"])
        for cell in cells("evidence/claims.ipynb")
        if cell["id"] == "commands-table"
    ]
    scripts = re.findall(r"`(?:python|papermill) (\S+)", table)
    assert len(scripts) == 5
    assert [script for script in scripts if not (ROOT / script).exists()] == []


def test_ledger_has_the_papers_numbers():
    assert len(CLAIMS) >= 45
    assert len({ids(c) for c in CLAIMS}) == len(CLAIMS)
    printed = " ".join(c["paper"] for c in CLAIMS)
    for number in [
        "37.5",
        "17.0",
        "39.0",
        "18.3",
        "47.1",
        "28.2",
        "45.7",
        "25.7",
        "40.7",
        "18.2",
        "38.1",
        "16.4",
        "16.6",
        "36.7",
        "15.4",
        "15.3",
        "26.2",
        "67.4",
        "40.9",
        "78.1",
        "60.9",
        "1.7",
        "1.4",
        "2,048",
        "650,000",
        "150,528",
        "253,440",
    ]:
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", printed), number


def test_what_was_only_read_is_not_called_reproduced():
    """The length of training and its drops stand in the notes.

    No run of ours has them.
    """
    read = {c["claim"] for c in CLAIMS if c["status"] == "read in the notes"}
    assert read == {
        "Training took about 90 epochs",
        "The learning rate was divided by ten three times",
    }


def test_pages_have_a_place_for_every_status(cells):
    """The picture of the claims page and the table of the tour count all of them."""
    used = {c["status"] for c in CLAIMS}
    assert used <= STATUS
    for page, id in (
        ("evidence/claims.ipynb", "picture"),
        ("tour.ipynb", "claims-count"),
    ):
        (source,) = ("".join(c["source"]) for c in cells(page) if c["id"] == id)
        assert set(re.findall(r'"([\w -]+)"(?=[:,)])', source)) >= STATUS, page


def test_gain_of_ten_views_in_the_notes():
    """What pages say of one crop and ten: the runs whose notes have both."""
    both = [run for run in lab_experiments().values() if run.one and run.ten]
    gains = sorted(100 * (run.one.top1 - run.ten.top1) for run in both)
    on_2012 = sorted(
        100 * (run.one.top1 - run.ten.top1) for run in both if run.data == "2012"
    )
    assert (len(gains), f"{gains[0]:.2f}", f"{gains[-1]:.2f}") == (17, "1.55", "2.19")
    assert (len(on_2012), f"{on_2012[0]:.2f}", f"{on_2012[-1]:.2f}") == (
        16,
        "1.75",
        "2.19",
    )


def test_claim_neurons():
    units = [layer.neurons for layer in layer_specs(source2012)]
    assert units == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert sum(units) == 659_272
    assert (
        round(sum(units), -4) == 660_000
    )  # the printed 650,000 is what is left when the rest is cut
    assert 253_440 + sum(units[1:]) == 622_312
    assert 3 * paper.crop**2 == 150_528


def test_claim_share_of_conv3():
    layers = {layer.name: layer.parameters for layer in layer_specs(paper)}
    shares = {
        n: 100 * layers[n] / sum(layers.values())
        for n in layers
        if n.startswith("conv")
    }
    assert {n: f"{s:.2f}" for n, s in shares.items() if s > 1} == {
        "conv3": "1.45",
        "conv4": "1.09",
    }


def test_claim_rates():
    rates = learning_rates(paper, 0.0)
    assert (
        rates["weights"],
        rates["biases"],
        paper.momentum,
        paper.decay,
        paper.decay_bias,
    ) == (0.01, 0.02, 0.9, 5e-4, 0)
    from alexnet_nb.engine.config import Config

    assert Config().batch_size == 128
    assert [lab_experiments()[id].epochs for id in ("145", "145-2010")] == [91, 93]


def test_claim_constants_and_kernels():
    defaults = {
        name: p.default for name, p in inspect.signature(LRN).parameters.items()
    }
    assert {n: defaults[n] for n in ("k", "n", "alpha", "beta")} == dict(
        k=2, n=5, alpha=1e-4, beta=0.75
    )
    kernels = [tuple(getattr(AlexNet(), f"conv{i}").weight.shape) for i in range(1, 6)]
    assert kernels == [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
    ]
    assert AlexNet().conv1.stride == (4, 4)
