"""The staged copy pleases both renderers, and nothing else is rendered."""

import json
import os
import re
import runpy
import shutil
import sys

import pytest

from helpers import ROOT
from helpers.pages import Outline

pytestmark = pytest.mark.slow

CHECK = runpy.run_path(str(ROOT / ".ci/site.py"))


STAGED = runpy.run_path(str(ROOT / ".ci/staged.py"))


@pytest.fixture
def copy(site, tmp_path):
    """The staged copy of this site, to be broken."""
    return shutil.copytree(ROOT / "_proc", tmp_path / "staged")


def notebook(copy, name, change):
    """Change one notebook of the copy."""
    path = copy / f"{name}.ipynb"
    content = json.loads(path.read_text())
    change(content["cells"])
    path.write_text(json.dumps(content))


def replaced(copy, name, old, new):
    text = (copy / name).read_text()
    assert old in text
    (copy / name).write_text(text.replace(old, new, 1))


def markdown(*lines):
    """A change that adds a cell of prose."""
    cell = dict(
        cell_type="markdown",
        metadata={},
        id="added",
        source=[line + "\n" for line in lines],
    )
    return lambda cells: cells.append(cell)


def stage_as_strings(copy):
    """As `.ci/site.py` once did, everywhere."""
    for path in copy.rglob("*.ipynb"):

        def join(cells):
            for cell in cells:
                cell["source"] = "".join(cell["source"])

        notebook(copy, path.relative_to(copy).with_suffix(""), join)


def leave_html(cells):
    """As nbdev stages the output of a cell that displays HTML."""
    output = next(
        o
        for c in cells
        for o in c.get("outputs", [])
        if "{=html}" in "".join(o.get("data", {}).get("text/markdown", ""))
    )
    output["data"] = {"text/html": output["data"]["text/markdown"]}


def leave_pipes(cells):
    output = next(
        o
        for c in cells
        for o in c.get("outputs", [])
        if "&#124;" in o.get("data", {}).get("text/markdown", "")
    )
    output["data"]["text/markdown"] += "\n\n| `a \\| b` |\n"


def rename_cell(cells):
    next(c for c in cells if "show_doc(window_sum)" in "".join(c["source"]))["id"] = (
        "window_sum"
    )


def share_anchor(cells):
    for output in (
        o["data"]
        for c in cells
        for o in c.get("outputs", [])
        if "text/markdown" in o.get("data", {})
    ):
        output["text/markdown"] = output["text/markdown"].replace(
            "### LRN {#lrn-class}", "### LRN"
        )


def lose_language(copy):
    path = copy / "lrn.ipynb"
    content = json.loads(path.read_text())
    del content["metadata"]["kernelspec"]["language"]
    path.write_text(json.dumps(content))


HTML = "```{=html}"


BROKEN = {
    "sources as strings": (
        stage_as_strings,
        r"lrn\.ipynb cell 3 source: got one string, expected a list of lines; ",
    ),
    "sources without ends": (
        lambda c: notebook(
            c, "lrn", lambda cells: cells[3].update(source=["## By hand", "words"])
        ),
        r"lrn\.ipynb cell 3 source: got lines without their ends, ",
    ),
    "html as such": (
        lambda c: notebook(c, "lrn", leave_html),
        r"lrn\.ipynb cell \d+ output: got text/html, "
        r"expected text/markdown with a raw block; ",
    ),
    "far script": (
        lambda c: notebook(
            c,
            "tour",
            markdown(
                HTML, '<script src="https://cdn.example.org/jquery.js"></script>', "```"
            ),
        ),
        r"tour\.ipynb: got https://cdn\.example\.org/jquery\.js, "
        r"expected nothing from another host; ",
    ),
    "far import": (
        lambda c: notebook(
            c,
            "tour",
            markdown(
                HTML,
                '<script type="module">import x from "https://cdn.example.org/x.js"</script>',
                "```",
            ),
        ),
        r"tour\.ipynb: got https://cdn\.example\.org/x\.js, ",
    ),
    "far picture": (
        lambda c: notebook(
            c, "tour", markdown("![a cat](https://example.org/cat.png)")
        ),
        r"tour\.ipynb: got https://example\.org/cat\.png, ",
    ),
    "far font": (
        lambda c: replaced(
            c,
            "assets/styles.css",
            "body {",
            "@import url('//fonts.example.org/a.css');\nbody {",
        ),
        r"assets/styles\.css: got //fonts\.example\.org/a\.css, ",
    ),
    "far script everywhere": (
        lambda c: replaced(
            c,
            "assets/after.html",
            "<script>",
            '<script src="//cdn.example.org/a.js"></script><script>',
        ),
        r"assets/after\.html: got //cdn\.example\.org/a\.js, ",
    ),
    "no card": (
        lambda c: replaced(
            c, "_quarto.yml", "open-graph: {image: /card.png}", "open-graph: true"
        ),
        r"_quarto\.yml open-graph: got None, expected image: /card\.png; ",
    ),
    "card of a page": (
        lambda c: notebook(
            c,
            "tour",
            lambda cells: cells[0].update(
                source=["---\n", "title: x\n", "image: y.png\n", "---\n"]
            ),
        ),
        r"tour\.ipynb image: got y\.png, expected none",
    ),
    "no address": (
        lambda c: replaced(c, "_quarto.yml", "  site-url:", "  not-url:"),
        r"_quarto\.yml site-url: got None, ",
    ),
    "anchor elsewhere": (
        lambda c: notebook(c, "tour", markdown("[x](lrn.ipynb#nowhere)")),
        r"tour\.ipynb lrn\.ipynb#nowhere: got no such target, expected an anchor; ",
    ),
    "anchor here": (
        lambda c: notebook(
            c, "tour", markdown(HTML, '<a href="#nowhere">x</a>', "```")
        ),
        r"tour\.ipynb #nowhere: got no such target, expected an anchor; ",
    ),
    "file": (
        lambda c: notebook(
            c, "evidence/experiments/plateau", markdown("[x](lrn.ipynb)")
        ),
        r"evidence/experiments/plateau\.ipynb lrn\.ipynb: "
        r"got no such target, expected a file; ",
    ),
    "page of the sidebar": (
        lambda c: replaced(
            c, "_quarto.yml", "href: guides/scale.ipynb", "href: guides/scala.ipynb"
        ),
        r"_quarto\.yml guides/scala\.ipynb: got no file, ",
    ),
    "page marked twice": (
        lambda c: replaced(
            c,
            "_quarto.yml",
            "    right:\n",
            "    right:\n      - text: Scale\n        href: guides/scale.ipynb\n",
        ),
        r"_quarto\.yml guides/scale\.ipynb: got two entries, expected one; ",
    ),
    "escaped pipe": (
        lambda c: notebook(c, "evidence/pitfalls", leave_pipes),
        r"evidence/pitfalls\.ipynb cell \d+: got an escaped pipe in ",
    ),
    "id of a cell": (
        lambda c: notebook(c, "lrn", rename_cell),
        r"lrn\.ipynb id window_sum: got more than one, expected one; ",
    ),
    "names of one anchor": (
        lambda c: notebook(c, "lrn", share_anchor),
        r"lrn\.ipynb heading LRN: got #lrn, the id of lrn, expected an id of its own; ",
    ),
    "citation": (
        lambda c: notebook(c, "tour", markdown("As [@alex12] says.")),
        r"tour\.ipynb cell \d+: got \[@alex12, expected a link; ",
    ),
    "reference": (
        lambda c: notebook(c, "tour", markdown("See @fig-one.")),
        r"tour\.ipynb cell \d+: got @fig-one, expected a link; ",
    ),
    "mermaid": (
        lambda c: notebook(c, "tour", markdown("```{mermaid}", "graph", "```")),
        r"tour\.ipynb cell \d+: got \{mermaid\}, expected a stored drawing; ",
    ),
    "language": (
        lose_language,
        r"lrn\.ipynb kernelspec: got language None, expected python; ",
    ),
}


def test_the_staged_copy_pleases_both_renderers(site):
    assert len(list((ROOT / "_proc").rglob("*.ipynb"))) > 25
    assert STAGED["faults"](ROOT / "_proc") == []


@pytest.mark.parametrize("what", BROKEN)
def test_a_staged_copy_that_quarto_would_break_is_found(copy, what):
    change, message = BROKEN[what]
    change(copy)
    found = STAGED["faults"](copy)
    assert [line for line in found if re.match(message, line)], found
    for line in found:
        assert re.fullmatch(r".+: got .+, expected .+; .+", line), line


def test_nothing_is_rendered_from_such_a_copy(copy, monkeypatch, capsys):
    """The command ends with a message, and so with 1."""
    stage_as_strings(copy)
    command = CHECK["main"].__globals__
    for name in ("readme", "stage"):
        monkeypatch.setitem(command, name, lambda: None)
    monkeypatch.setitem(command, "STAGED", copy)
    monkeypatch.setattr(sys, "argv", ["site.py"])
    with pytest.raises(SystemExit, match=r"^staged: got \d+ faults, expected none; "):
        CHECK["main"]()
    assert "got one string, expected a list of lines" in capsys.readouterr().out
    assert not (copy / "_site").exists()


def test_anchors_are_those_of_the_rendered_page(pages):
    """So the check of the staged copy speaks of the page that readers see."""
    folder, checked = (ROOT / "_proc").resolve(), 0
    for path in folder.rglob("*.ipynb"):
        staged, page = (
            STAGED["Page"](folder, path),
            pages[str(path.relative_to(folder).with_suffix(""))],
        )
        assert set(staged.anchors) <= set(Outline(page).ids), path.name
        checked += len(staged.anchors)
    assert checked > 300


def test_quarto_renders_only_when_asked_for(copy, tmp_path, monkeypatch, capfd):
    """Not because it lies on PATH; and one that is missing is named."""
    command = CHECK["main"].__globals__
    for name in ("readme", "stage"):
        monkeypatch.setitem(command, name, lambda: None)
    monkeypatch.setitem(command, "moved_pages", lambda: ([], []))
    monkeypatch.setitem(command, "STAGED", copy)
    monkeypatch.setitem(command, "SITE", tmp_path / "site")
    quarto = tmp_path / "bin/quarto"
    quarto.parent.mkdir()
    monkeypatch.setenv("PATH", str(quarto.parent), prepend=os.pathsep)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["site.py", *flags])
        with pytest.raises(SystemExit) as end:
            CHECK["main"]()
        return end.value.code

    if not shutil.which("quarto"):
        assert run("--quarto").startswith(
            "quarto: got no such program, expected it on this machine; "
        )
    quarto.write_text(
        f'#!/bin/sh\nmkdir -p "$2/_site"\necho "$1" > "{tmp_path}/asked"\n'
        'echo "<h1>x</h1>" | tee "$2/_site/404.html"\n'
    )
    quarto.chmod(0o755)
    assert run() == 0
    assert not (tmp_path / "asked").exists()
    assert "lrn" in {p.stem for p in (tmp_path / "site").glob("*.html")}
    assert run("--quarto") == 0
    assert (tmp_path / "asked").read_text() == "render\n"
    assert {p.name for p in (tmp_path / "site").iterdir()} == {"404.html", "llms.txt"}
