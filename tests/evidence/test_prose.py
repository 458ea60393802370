"""No result is typed into prose.

A figure with a unit stands in an output of its page, in the paper or the ledger, in the
notes, or in quoted.tsv with its origin.
"""

import csv
import json
import re

import pytest

from alexnet_nb.lab import lab_experiments
from helpers import ROOT

PAGES = sorted((ROOT / "nbs").rglob("*.ipynb"))


def name_of(page):
    """Return a page's name with its folder, such as `evidence/claims`."""
    return page.relative_to(ROOT / "nbs").with_suffix("").as_posix()


UNITS = (
    r"%|points?|times|seconds?|s|ms|minutes?|min|hours?|days?|updates?|epochs?|steps?"
    r"|GB|MB|kB|bytes|(?:pictures|images?)(?: a second|/s)|GFLOP/s"
    r"|core-hours?"
)
FIGURE = re.compile(rf"(?<![\w.,§])(\d[\d,]*(?:\.\d+)?)[ -]?(?:{UNITS})(?![\w])")
with open(ROOT / "tests/quoted.tsv") as f:
    QUOTED = list(csv.DictReader(f, delimiter="\t"))
with open(ROOT / "nbs/evidence/claims.tsv") as f:
    PRINTED = [
        f"{c['paper']} {c['ours']}"
        for c in csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE)
    ]
NOTES = {
    f"{100 * e:.{digits}f}"
    for run in lab_experiments().values()
    for errors in (run.one, run.ten, run.unclear)
    if errors
    for e in errors[1:]
    for digits in (1, 2)
}
NOTES |= {f"{run.epochs:g}" for run in lab_experiments().values() if run.epochs}


def figures(text):
    """Figures with a unit in prose, without code, links and mathematics."""
    return FIGURE.findall(
        re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|\$[^$]*\$", " ", text, flags=re.S)
    )


def typed(page, cells):
    """Figures of a page that nothing stands behind.

    They are in no output of it, not in the paper, the notes, or the list of quotations.
    """
    outputs = " ".join(
        json.dumps(
            [o.get("data", {}).get(k, "") for k in ("text/markdown", "text/plain")]
            + [o.get("text", "")]
        )
        for c in cells
        for o in c.get("outputs", [])
    )

    def stands(n, words):
        return re.search(rf"(?<![\d.,]){re.escape(n)}(?![\d]|[.,]\d)", words)

    known = {q["figure"] for q in QUOTED if q["page"] in (page, "")} | NOTES
    prose = "\n\n".join(
        "".join(c["source"]) for c in cells if c["cell_type"] == "markdown"
    )
    return [
        n
        for n in figures(prose)
        if n not in known
        and not stands(n, outputs)
        and not any(stands(n, p) for p in PRINTED)
    ]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_result_is_typed(path):
    assert typed(name_of(path), json.loads(path.read_text())["cells"]) == []


def test_quotations_are_needed():
    """Every line of quoted.tsv has an origin, and its figure stands on its page."""
    for q in QUOTED:
        assert q["origin"]
        pages = [p for p in PAGES if q["page"] in (name_of(p), "")]
        assert any(
            q["figure"] in figures("".join(c["source"]))
            for p in pages
            for c in json.loads(p.read_text())["cells"]
            if c["cell_type"] == "markdown"
        ), q


def test_a_typed_result_is_found():
    cells = [
        dict(
            cell_type="markdown",
            source="It took 1,234 minutes and cost 12.3 % of the time, "
            "in `99 %` of runs.",
        ),
        dict(cell_type="code", source="", outputs=[dict(text="12.3 %")]),
    ]
    assert typed("page", cells) == ["1,234"]


FREQUENCY = re.compile(
    r"commonest|most (?:common|frequent|people|of the time)|most often|everybody"
    r"|widely (?:used|copied)"
)


def test_no_frequency_without_a_source(cells):
    """How often something happens to others is not known here.

    Pages link to threads instead of saying it.
    """
    texts = {path.name: path.read_text() for path in (ROOT / "nbs").rglob("*.tsv")}
    for path in PAGES:
        name = str(path.relative_to(ROOT / "nbs"))
        texts[name] = "\n".join(
            "".join(c["source"]) for c in cells(name) if c["cell_type"] == "markdown"
        )
    assert {
        name: FREQUENCY.findall(text)
        for name, text in texts.items()
        if FREQUENCY.search(text)
    } == {}


def test_weights_that_a_page_promises_can_be_loaded(cells):
    """A page that says whose weights are taken means a function of the package."""
    import alexnet_nb.model

    for path in PAGES:
        for cell in cells(str(path.relative_to(ROOT / "nbs"))):
            if cell["cell_type"] != "markdown":
                continue
            for sentence in re.split(r"(?<=[.:])\s", "".join(cell["source"])):
                if not re.search(r"\btakes?\b.*\bweights\b", sentence):
                    continue
                for name in ("torchvision", "Caffe"):
                    if f"{name}'s" in sentence:
                        assert hasattr(alexnet_nb.model, f"from_{name.lower()}"), (
                            path.stem,
                            sentence,
                        )


@pytest.mark.parametrize("page", ["01_preprocessing", "05_pooling", "07_augmentation"])
def test_photographs_of_others_are_credited(page, cells):
    """A page that shows scikit-learn's photographs names their authors and the license.

    With links.
    """
    code, prose = (
        "\n".join(
            "".join(c["source"])
            for c in cells(f"{page}.ipynb")
            if c["cell_type"] == kind
        )
        for kind in ("code", "markdown")
    )
    authors = {
        "flower.jpg": "https://www.flickr.com/photos/vultilion/",
        "china.jpg": "https://www.flickr.com/photos/danielbuechele/",
    }
    for photograph, author in authors.items():
        if photograph in code:
            assert author in prose, photograph
            assert "https://creativecommons.org/licenses/by/2.0/" in prose, photograph
