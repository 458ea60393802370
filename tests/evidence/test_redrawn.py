"""What pages draw from data is computed again and compared with what is stored.

Only the cells that draw are executed, with the cells before them that they need, all
pages in one kernel. A cell that trains or runs a network, or whose numbers depend on
the processor, is left out: by what it calls, or by name.
"""

import base64
import io
import json
import re
import symtable

import nbformat
import numpy as np
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from PIL import Image

from helpers import ROOT

pytestmark = pytest.mark.slow

# train.ipynb is one run; .ci/store_train.py stores its outputs
NBS = ROOT / "nbs"
PAGES = sorted(set(NBS.rglob("*.ipynb")) - {NBS / "train.ipynb"})


def name_of(page):
    """Return a page's name with its folder, such as `evidence/claims`."""
    return page.relative_to(NBS).with_suffix("").as_posix()


# a cell that reads one of these names, or needs a cell that does, trains, runs a
# network, or starts processes
RUNS = {
    "train",
    "load",
    "read_weights",
    "evaluate",
    "load_model",
    "probabilities",
    "hidden_features",
    "baselines",
    "check_signal",
    "create_feature_extractor",
    "logit_spreads",
    "race",
    "train_plainly",
    "subprocess",
}

LEFT_OUT = {  # page and cell → why
    (
        "07_augmentation",
        "play-figure",
    ): "holds a JPEG and axes to the last digit; test_play.py compares what it shows",
}

# cells that must be among those drawn again, whatever a change of the rules above does
DRAWN = {
    "evidence/claims": {"picture", "table", "commands-table", "open-table", "one-view"},
    "tour": {"net-picture", "source-diff", "claims-count"},
    "00_recipes": {"diff-show"},
    "evidence/lab": {"seven-table", "ingredients-table"},
    "evidence/pitfalls": {"table", "count", "bite-table", "random-table"},
    "evidence/survived": {"budget", "budget-line"},
    "guides/fine_tune": {"weights-error", "table", "differences"},
    "guides/scale": {"measured-table", "wire-table"},
    "11_evaluation": {"photographs-table", "paper-tables-draw"},
    "evidence/experiments/analogues": {
        "result",
        "columns-table",
        "norm-table",
        "dropout-line",
    },
    "evidence/experiments/figure1": {"result", "curves", "table"},
    "evidence/experiments/plateau": {
        "result",
        "places-devices",
        "places-table",
        "places-tests",
        "alike-table",
        "biases-line",
    },
    "evidence/performance": {
        "bars",
        "bits",
        "cpu-data-table",
        "cpu-lrn-table",
        "cpu-step",
        "headline",
        "lrn-table",
        "pipeline-bars",
        "pipeline-table",
        "precision",
        "profile",
        "runs",
        "step-package",
        "step-table",
    },
    "engine/kernels": {"forms-table"},
    "engine/rng": {"counts", "draw-masks"},
}


def code_of(cell):
    """Return the code of a cell without the lines that only IPython reads."""
    return re.sub(r"^\s*[%!].*$", "", "".join(cell["source"]), flags=re.M)


def names_of(code):
    """Return the names that a cell defines, and those it reads from outside.

    Also inside of its functions.
    """
    table = symtable.symtable(code, "cell", "exec")
    defined = {
        s.get_name()
        for s in table.get_symbols()
        if s.is_assigned() or s.is_imported() or s.is_namespace()
    }
    read = {s.get_name() for s in table.get_symbols() if s.is_referenced()}
    inner = list(table.get_children())
    while inner:
        scope = inner.pop()
        inner += scope.get_children()
        read |= {
            s.get_name()
            for s in scope.get_symbols()
            if s.is_global() and s.is_referenced()
        }
    return defined, read


def needed(cells, target):
    """Return the places of the cells that must run for a cell, itself included.

    Those which define what it reads. A name has its definition in the last cell before
    the one that reads it. A function may read a name that is defined after it, as long
    as it is before the call: then the last definition before the cell asked for is
    taken.
    """
    names = [names_of(code_of(cell)) for cell in cells]
    places, waiting = set(), [target]
    while waiting:
        place = waiting.pop()
        if place in places:
            continue
        places.add(place)
        for name in names[place][1]:
            definitions = [i for i in range(target) if name in names[i][0]]
            before = [i for i in definitions if i < place]
            waiting += (before or definitions)[-1:]
    return places


def drawn(page):
    """Return the code cells of a page that are executed again, and the ids compared.

    The cells are in their order.
    """
    cells = [
        c for c in json.loads(page.read_text())["cells"] if c["cell_type"] == "code"
    ]
    executed, compared = set(), []
    for place, cell in enumerate(cells):
        if not cell["outputs"] or (name_of(page), cell["id"]) in LEFT_OUT:
            continue
        places = needed(cells, place)
        reads = set().union(*(names_of(code_of(cells[i]))[1] for i in places))
        if reads & RUNS:
            continue
        executed |= places
        compared.append(cell["id"])
    executed |= {i for i, cell in enumerate(cells) if cell["id"].startswith("page-")}
    return [cells[i] for i in sorted(executed)] if compared else [], compared


@pytest.fixture(scope="module")
def kernel():
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


def execute(kernel, page, cells):
    """Execute cells in the folder of their page, without what the page before has left.

    Return id → outputs.
    """
    start = nbformat.v4.new_code_cell(
        f"%reset -f\nimport os\nos.chdir({str(page.parent)!r})"
    )
    again = [
        nbformat.v4.new_code_cell("".join(cell["source"]), id=cell["id"])
        for cell in cells
    ]
    notebook = nbformat.v4.new_notebook(cells=[start, *again])
    NotebookClient(notebook, km=kernel, timeout=120, coalesce_streams=True).execute()
    return {
        cell["id"]: json.loads(json.dumps(cell["outputs"]))
        for cell in notebook.cells[1:]
    }


def joined(text):
    return "".join(text)


def pixels(data):
    """Return a small picture.

    So the last bits of another machine's fonts do not count.
    """
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(joined(data))))
        .convert("RGBA")
        .resize((240, 120)),
        float,
    )


def apart(stored, computed):
    """Return how far two pictures differ, from 0 to 255.

    On average, and in the one of their 288 tiles where most.
    """
    difference = np.abs(pixels(stored) - pixels(computed))
    return difference.mean(), difference.reshape(12, 10, 24, 10, 4).mean(
        (1, 3, 4)
    ).max()


def differences(stored, computed):
    """Say where the outputs of a cell differ.

    Words and drawings by every character, pictures by their pixels.
    """
    kinds = [sorted(o["data"]) if "data" in o else o["output_type"] for o in stored]
    again = [sorted(o["data"]) if "data" in o else o["output_type"] for o in computed]
    if kinds != again:
        return [f"stored {kinds}, computed {again}"]
    found = []
    for old, new in zip(stored, computed, strict=True):
        if "needs_background" in new.get("metadata", {}):
            found.append("Jupyter draws a box behind it: its labels have one lightness")
        if "text" in old:
            old, new = (
                dict(data={"text": old["text"]}),
                dict(data={"text": new["text"]}),
            )
        for kind, value in old.get("data", {}).items():
            if kind in ("image/png", "image/jpeg"):
                mean, most = apart(value, new["data"][kind])
                if mean >= 1 or most >= 32:
                    found.append(
                        f"{kind}: pixels differ by {mean:.1f} of 255 on average, "
                        f"by {most:.0f} in a tile"
                    )
                continue
            lines = [joined(words).splitlines() for words in (value, new["data"][kind])]
            if lines[0] == lines[1]:
                continue
            pairs = zip(*lines, strict=False)  # of different length, perhaps
            first = next(((a, b) for a, b in pairs if a != b), map(len, lines))
            found.append(
                "{}: stored {!r}, computed {!r}".format(
                    kind, *(str(x)[:300] for x in first)
                )
            )
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_computed_again_it_is_what_is_stored(page, kernel):
    cells, compared = drawn(page)
    assert set(compared) >= DRAWN.get(name_of(page), set()), (
        "a cell that draws from data is left out"
    )
    if not compared:
        pytest.skip("nothing on this page is drawn without a run")
    stored = {cell["id"]: cell["outputs"] for cell in cells}
    computed = execute(kernel, page, cells)
    wrong = [
        f"{page.relative_to(ROOT)}, cell {id}: {words}"
        for id in compared
        for words in differences(stored[id], computed[id])
    ]
    assert not wrong, "run the page again:\n" + "\n".join(wrong)


def test_a_stale_output_is_found():
    """One number of a table, and a picture in which one bar is longer."""

    def table(rows):
        return [
            dict(
                output_type="execute_result",
                data={"text/markdown": f"| status | rows |\n| reproduced | {rows} |"},
            )
        ]

    assert differences(table(8), table(8)) == []
    assert differences(table(10), table(8)) == [
        "text/markdown: stored '| reproduced | 10 |', computed '| reproduced | 8 |'"
    ]

    def picture(width):
        image, encoded = Image.new("RGBA", (480, 240)), io.BytesIO()
        image.paste((200, 60, 60, 255), (0, 0, width, 20))
        image.save(encoded, "PNG")
        return [
            dict(
                output_type="display_data",
                data={"image/png": base64.b64encode(encoded.getvalue()).decode()},
            )
        ]

    assert differences(picture(100), picture(100)) == []
    assert len(differences(picture(100), picture(120))) == 1
