"""The notebooks keep to the rules of the house."""

import ast
import base64
import io
import itertools
import json
import re
import runpy
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from PIL import Image

from alexnet_nb.engine.config import Config
from helpers import ROOT, play

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
EVERY = sorted((ROOT / "nbs").rglob("*.ipynb"))


def source(cell):
    return "".join(cell["source"])


def test_parameters_cell_equals_config(cells):
    tagged = [
        c for c in cells("train.ipynb") if "parameters" in c["metadata"].get("tags", [])
    ]
    assert len(tagged) == 1
    lines = [
        re.match(r"(\w+): (.+?) = (.+?)  # (.+)$|(\w+): (.+?) = (.+)$", line)
        for line in source(tagged[0]).splitlines()
    ]
    found = {
        (m[1] or m[5]): (m[2] or m[6], ast.literal_eval(m[3] or m[7]), m[4])
        for m in lines
    }
    code = Path(sys.modules["alexnet_nb.engine.config"].__file__).read_text()
    kinds = typing.get_type_hints(Config)
    assert list(found) == list(kinds)
    for name, (kind, default, comment) in found.items():
        assert eval(kind, vars(typing)) == kinds[name]
        assert default == getattr(Config(), name)
        assert comment is None or f"# {comment}\n" in code, (
            f"the comment on {name} differs from Config's"
        )


def test_train_notebook_holds_no_function(cells):
    for cell in cells("train.ipynb"):
        if cell["cell_type"] == "code":
            assert not [
                n
                for n in ast.walk(ast.parse(source(cell)))
                if isinstance(n, (ast.FunctionDef, ast.Lambda, ast.ClassDef))
            ]


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_outputs_are_clean(path):
    nb = json.loads(path.read_text())
    assert nb["metadata"]["kernelspec"]["language"] == "python"
    assert path.stat().st_size < 900_000
    for cell in nb["cells"]:
        kinds = [o.get("name", o["output_type"]) for o in cell.get("outputs", [])]
        assert all(
            a != "stdout" or b != "stdout" for a, b in itertools.pairwise(kinds)
        ), (
            f"cell {cell['id']}: lines printed one by one are one output in Jupyter, "
            "and with coalesce_streams in nbclient"
        )
        for output in cell.get("outputs", []):
            words = json.dumps(
                {
                    k: v
                    for k, v in output.get("data", {}).items()
                    if k.startswith("text/")
                }
                | {"text": output.get("text", "")}
            )
            assert output["output_type"] != "error", words
            assert output.get("name") != "stderr", words
            assert not re.search(
                r"/(root|tmp|home|work)/|Warning|0x[0-9a-f]{8}", words
            ), words
            box = output.get("metadata", {}).get("needs_background")
            assert box is None, f"{cell['id']}: Jupyter draws a {box} box behind it"
            if png := output.get("data", {}).get("image/png"):
                assert (
                    Image.open(io.BytesIO(base64.b64decode(png)))
                    .convert("RGBA")
                    .getpixel((1, 1))[3]
                    == 0
                ), "a figure for light pages only: plt.style.use"


@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if p.stem[0].isdigit()], ids=lambda p: p.stem
)
def test_page_has_its_form(path):
    """A visible check, a figure, what the authors' code did, mistakes and exercises."""
    nb = json.loads(path.read_text())
    prose = "\n".join(source(c) for c in nb["cells"] if c["cell_type"] == "markdown")
    for part in (
        "::: {.callout-note}\n## What the ",
        "## Common mistakes",
        "## Exercises",
        "<details><summary>Answer</summary>",
    ):
        assert part in prose, part
    shown = [
        c
        for c in nb["cells"]
        if c["cell_type"] == "code" and "#| hide" not in source(c)
    ]
    assert any(
        re.search(
            r"^\s*(assert|test_eq|torch\.testing|with expect_fail)", source(c), re.M
        )
        for c in shown
    )
    assert any(
        kind.startswith("image/") or "<svg" in "".join(data)
        for c in shown
        for o in c["outputs"]
        for kind, data in o.get("data", {}).items()
    )


def test_imports_stand_alone(cells):
    """The docs build runs every cell that imports, so such a cell does nothing else."""
    for path in EVERY:
        for cell in cells(path.relative_to(ROOT / "nbs")):
            if cell["cell_type"] != "code" or "nbdev_export" in source(cell):
                continue
            body = ast.parse(re.sub(r"^\s*[%!].*$", "", source(cell), flags=re.M)).body
            kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in body}
            assert kinds != {True, False}, f"{path.name}: {source(cell)[:80]}"


def test_readme_is_made_from_index(tmp_path):
    """Made again in another folder, README.md is the committed one.

    And so is its drawing.
    """
    site = runpy.run_path(str(ROOT / ".ci/site.py"))
    (tmp_path / "nbs/assets").mkdir(parents=True)
    site["readme"](tmp_path)
    made = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert [str(p) for p in made] == ["README.md", "nbs/assets/columns.svg"]
    for path in made:
        committed = (ROOT / path).read_text()
        assert committed == (tmp_path / path).read_text(), (
            f"{path}: run `python .ci/site.py readme`"
        )
    readme = (ROOT / "README.md").read_text()
    assert len(re.findall(r"```sh\n(.+?)\n```", readme, re.S)) == 2


def test_package_is_exported(tmp_path):
    """nbdev_export on a copy gives the committed package."""
    subprocess.run(
        ["git", "-C", ROOT, "checkout-index", "-a", f"--prefix={tmp_path}/"], check=True
    )
    for path in NOTEBOOKS:
        (tmp_path / "nbs" / path.name).write_bytes(path.read_bytes())
    subprocess.run(
        [Path(sys.executable).with_name("nbdev_export")],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    for module in (ROOT / "alexnet_nb").glob("*.py"):
        assert (
            tmp_path / "alexnet_nb" / module.name
        ).read_text() == module.read_text(), f"{module.name}: run nbdev_export"


@pytest.mark.parametrize("id", play.PAGES)
def test_pages_hold_the_figure_its_script_and_its_styles(id):
    """A page embeds three files; run its notebook again after a change."""
    nb = json.loads((ROOT / f"nbs/{play.NOTEBOOKS[id]}.ipynb").read_text())
    outputs = [
        "".join(o.get("data", {}).get("text/html", ""))
        for c in nb["cells"]
        for o in c.get("outputs", [])
    ]
    (page,) = [o for o in outputs if f'id="{id}"' in o]
    for name in ("play.js", "play.css"):
        assert (ROOT / "nbs/assets" / name).read_text() in page, name
    figure = (ROOT / f"nbs/assets/{id}.html").read_text().strip()
    for part in re.split(r"\$\w+", figure):  # between what the notebook fills in
        assert part in page, part
    if id == "play-crop":
        assert len(base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])) < 40_000


def test_pages_for_colab_go_to_their_own_folder(cells):
    """The cell that installs a page in Colab names the folder that the page is in."""
    folders = {}
    for path in EVERY:
        name = path.relative_to(ROOT / "nbs")
        for cell in cells(name):
            if cell["id"] == "colab":
                assert "#| export" not in source(cell)
                (folders[name],) = re.findall(r'"cd", "([^"]+)"', source(cell))
    assert len(folders) > 10
    for name, folder in folders.items():
        assert folder == (Path("alexnet_nb/nbs") / name.parent).as_posix(), name
