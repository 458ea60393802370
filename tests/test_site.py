"""The site builds in one command, its links and mathematics are whole, and it says to others what it is. What needs a browser is in test_browser.py."""

import hashlib
import html.parser
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from html import unescape

import pytest
import yaml
from conftest import ROOT

CHECK = runpy.run_path(str(ROOT / ".ci/site.py"))
STAGED = runpy.run_path(str(ROOT / ".ci/staged.py"))


def module_pages():
    """Each module of the package, such as `lrn` or `engine.config`, and its page."""
    documented, pages = importlib.import_module("alexnet_nb._modidx").d["syms"], {}
    for path in sorted((ROOT / "alexnet_nb").rglob("[a-z]*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        module = name.replace("/", ".")
        shown = [link for link, _ in documented.get(module, {}).values()]
        page = shown[0].partition(".html")[0] if shown else name.partition("/")[2]
        pages[module.partition(".")[2]] = page
    return pages


MODULES = module_pages()


@pytest.fixture(scope="module")
def pages(site):
    """Every page's text by its name. What leads from an old address to a new one is none."""
    texts = {
        str(p.relative_to(site).with_suffix("")): p.read_text()
        for p in site.rglob("*.html")
    }
    return {k: text for k, text in texts.items() if 'http-equiv="refresh"' not in text}


class Outline(html.parser.HTMLParser):
    """What any renderer's page holds: its blocks in order, links with their words, head."""

    BLOCKS = ("h1", "h2", "h3", "h4", "pre", "p")

    def __init__(self, page):
        super().__init__()
        self.blocks, self.links, self.tags, self.ids = [], [], [], {}
        self.open, self.link = None, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.setdefault(attributes["id"], len(self.blocks))
        if tag in self.BLOCKS:
            self.open = tag
            self.blocks.append([tag, ""])
        if tag == "em" and self.open == "p" and not self.blocks[-1][1].strip():
            self.blocks[-1][0] = "emphasized"
        if tag == "a":
            self.link = [attributes.get("href") or "", ""]
            self.links.append(self.link)

    def handle_endtag(self, tag):
        if tag == self.open:
            self.open = None
        if tag == "a":
            self.link = None

    def handle_data(self, data):
        if self.open:
            self.blocks[-1][1] += data
        if self.link:
            self.link[1] += data

    def heading(self, name):
        """The first heading at or after an id."""
        blocks = self.blocks[self.ids[name] :]
        return next(words.strip() for tag, words in blocks if tag[0] == "h")


def meta(page):
    """Names and contents of a page's meta tags."""
    tags = [a for tag, a in Outline(page).tags if tag == "meta" and "content" in a]
    return {a.get("name") or a.get("property"): a["content"] for a in tags}


def test_every_notebook_has_its_page(pages):
    names = {
        re.sub(r"(^|/)\d\d_", r"\1", str(p.relative_to(ROOT / "nbs").with_suffix("")))
        for p in (ROOT / "nbs").rglob("*.ipynb")
        if "-checkpoint" not in p.stem
    }
    assert names | {"404"} == set(pages)


def test_mathematics_is_mathml(pages):
    assert pages["lrn"].count("<math") >= 10
    for name, page in pages.items():
        prose = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", page, flags=re.S)
        assert not re.search(r"\\[a-zA-Z]{3,}|\$\$", prose), name
        assert not re.search(r"\]\([\w./#-]+\)|\.ipynb\)", prose), (
            f"{name}: Markdown is left"
        )


def test_signatures_are_a_readers(pages):
    for name, page in pages.items():
        assert not (
            found := re.search(
                r"VAR_POSITIONAL|builtin_function_or_method|:NoneType=|__main__\.",
                re.sub(r"<[^>]+>", "", page),
            )
        ), (name, found)


def test_no_page_loads_from_another_host(pages):
    for name, page in pages.items():
        assert not re.findall(
            r'<(?:script|link(?! rel="canonical")|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+"',
            page,
        ), name


def test_links_to_a_missing_anchor_are_found(tmp_path):
    (tmp_path / "page.html").write_text(
        '<a href="other.html">x</a><a href="#nowhere">y</a><h2 id="here"></h2><a href="#here">z</a><a href="/alexnet_nb/page.html#here">top</a><a href="/alexnet_nb/gone.html">w</a>'
    )
    CHECK["broken"].__globals__["SITE"], before = (
        tmp_path,
        CHECK["broken"].__globals__["SITE"],
    )
    assert [b.split(": ")[1] for b in CHECK["broken"]()] == [
        "other.html",
        "#nowhere",
        "/alexnet_nb/gone.html",
    ]
    CHECK["broken"].__globals__["SITE"] = before


@pytest.mark.parametrize("module", MODULES)
def test_every_exported_symbol_is_documented_on_its_page(pages, module):
    """A function or class under a heading of its own, with its signature and a sentence; a constant in the code that is shown."""
    page = Outline(pages[MODULES[module]])
    code = importlib.import_module(f"alexnet_nb.{module}")
    blocks = page.blocks
    shown = "\n".join(words for tag, words in blocks if tag == "pre")
    documented = set()
    for number, (tag, words) in enumerate(blocks):
        name, follows = words.strip(), []
        for block in blocks[number + 1 :]:
            if block[0][0] == "h":
                break
            follows.append(block)
        signature = follows and follows[0][0] == "pre" and follows[0][1].lstrip()
        if tag[0] != "h" or not signature or not signature.startswith(f"def {name}("):
            continue
        if any(tag == "emphasized" and words.strip() for tag, words in follows):
            documented.add(name)
    for name in code.__all__:
        if callable(getattr(code, name)):
            assert name in documented, name
        else:
            assert re.search(rf"\b{name}\b", shown), name


def test_links_that_show_a_name_lead_to_its_heading(pages):
    """A link to `LRN` leads to the class, not to the function `lrn`."""
    outlines = {name: Outline(page) for name, page in pages.items()}
    names = {
        name
        for module in MODULES
        for name in importlib.import_module(f"alexnet_nb.{module}").__all__
    }
    followed = set()
    for page, outline in outlines.items():
        for link, words in outline.links:
            path, _, anchor = link.partition(".html#")
            target = os.path.normpath(os.path.join(os.path.dirname(page), path))
            name = words.strip().partition("(")[0]
            if anchor and target in MODULES.values() and name in names:
                assert outlines[target].heading(anchor) == name, (link, words)
                followed.add(name)
    assert {"LRN", "lrn"} <= followed
    assert len(followed) > 30


def test_code_in_tables_is_printed_without_backslashes(pages):
    cells = re.findall(
        r"<code>([^<]*)</code>",
        "".join(re.findall(r"<td.*?</td>", pages["evidence/pitfalls"], re.S)),
    )
    code = [unescape(words) for words in cells]
    assert "init_bias: tuple | None = (0.0, 0.0" in code
    assert [words for words in code if r"\|" in words] == []
    random = (ROOT / "results/mutants/random.md").read_text()
    for words in re.findall(r"`([^`\n]*\\\|[^`\n]*)`", random):
        assert words.replace(r"\|", "|") in code


def test_drawings_are_in_the_page_and_have_a_name(pages):
    for name, page in pages.items():
        tags = Outline(page).tags
        assert [
            a["src"] for tag, a in tags if tag == "img" and a["src"].endswith(".svg")
        ] == []
        if name in ("index", "tour", "model"):
            labels = [
                a.get("aria-label", "")
                for tag, a in tags
                if tag == "svg" and a.get("role") == "img"
            ]
            assert any(
                "conv3, fc6, fc7 and fc8 read both" in words for words in labels
            ), name


def test_a_link_to_a_page_has_title_sentence_and_picture(pages, site):
    from PIL import Image

    host = "".join(CHECK["address"]())
    for name, page in pages.items():
        said = meta(page)
        assert said["og:title"], name
        assert len(said["og:description"]) > 20, name
        assert said["og:image"] == f"{host}/card.png", name
        assert said["twitter:image"] == said["og:image"], name
        icons = [
            a["href"]
            for tag, a in Outline(page).tags
            if tag == "link" and a.get("rel") == "icon"
        ]
        assert len(icons) == 1, name
        assert icons[0].endswith("favicon.svg"), name
    with Image.open(site / "card.png") as card:
        assert card.size == (1200, 630)
        assert (
            card.text["drawing"]
            == hashlib.sha256(
                (ROOT / "nbs/assets/columns.svg").read_bytes()
            ).hexdigest()
        ), "the drawing has changed: python .ci/card.py"
    assert (site / "assets/favicon.svg").read_text() == runpy.run_path(
        str(ROOT / ".ci/card.py")
    )["favicon"]()


def test_llms_txt_lists_every_page(pages, site):
    listed = dict(
        re.findall(
            r"^- \[.+?\]\((.+?)\.html\): (.{20,})$",
            (site / "llms.txt").read_text(),
            flags=re.M,
        )
    )
    host = "".join(CHECK["address"]()) + "/"
    assert {u.removeprefix(host) for u in listed} == set(pages) - {"404"}

    def straight(words):
        return words.translate(
            {0x2019: "'", 0x201C: '"', 0x201D: '"'}
        )  # one renderer sets quotes, one does not

    for url, line in listed.items():
        assert straight(meta(pages[url.removeprefix(host)])["description"]) == straight(
            line
        )


def test_the_page_for_lost_readers_works_in_any_folder(pages):
    links = re.findall(r'(?:href|src)="([^"#]+)"', pages["404"])
    assert len(links) > 20
    assert all(l.startswith(("/alexnet_nb/", "https://")) for l in links)


# --- the staged copy: what Quarto needs and smalldocs forgives


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
    output["data"]["text/markdown"] += "| `a \\| b` |\n"


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
        r"lrn\.ipynb cell \d+ output: got text/html, expected text/markdown with a raw block; ",
    ),
    "far script": (
        lambda c: notebook(
            c,
            "tour",
            markdown(
                HTML, '<script src="https://cdn.example.org/jquery.js"></script>', "```"
            ),
        ),
        r"tour\.ipynb: got https://cdn\.example\.org/jquery\.js, expected nothing from another host; ",
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
        r"evidence/experiments/plateau\.ipynb lrn\.ipynb: got no such target, expected a file; ",
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
        f'#!/bin/sh\nmkdir -p "$2/_site"; echo "$1" > "{tmp_path}/asked"; echo "<h1>x</h1>" | tee "$2/_site/404.html"\n'
    )
    quarto.chmod(0o755)
    assert run() == 0
    assert not (tmp_path / "asked").exists()
    assert "lrn" in {p.stem for p in (tmp_path / "site").glob("*.html")}
    assert run("--quarto") == 0
    assert (tmp_path / "asked").read_text() == "render\n"
    assert {p.name for p in (tmp_path / "site").iterdir()} == {"404.html", "llms.txt"}


# --- what GitHub does with it

WORKFLOWS = {
    p.stem: yaml.load(p.read_text(), yaml.BaseLoader)
    for p in (ROOT / ".github/workflows").glob("*.yml")
}
JOBS = {
    f"{name}: {key}": job
    for name, w in WORKFLOWS.items()
    for key, job in w["jobs"].items()
}


def steps(job):
    return [step.get("run") or step["uses"].partition("@")[0] for step in job["steps"]]


def test_what_is_published_is_the_build_that_the_tests_saw():
    test, deploy = (JOBS[f"test: {key}"] for key in ("test", "deploy"))
    done = steps(test)
    build, look, keep = (
        done.index("python .ci/site.py"),
        done.index("pytest"),
        done.index("actions/upload-pages-artifact"),
    )
    assert build < look < keep
    assert (
        test["steps"][look]["env"]["ALEXNET_NB_SITE"]
        == "_docs"
        == test["steps"][keep]["with"]["path"]
    )
    assert not [run for run in done[build + 1 :] if "site.py" in run]
    assert deploy["needs"] == "test"
    assert steps(deploy) == ["actions/deploy-pages"]
    for condition in (deploy["if"], test["steps"][keep]["if"]):
        assert "github.ref == 'refs/heads/main'" in condition
        assert "pull_request" in condition
    uses = [
        step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step
    ]
    assert sum("deploy-pages" in action for action in uses) == 1


# what a job may do beyond reading the repository
PERMISSIONS = {
    "test: deploy": {"pages": "write", "id-token": "write"},
    "release: publish": {"id-token": "write"},
}


def test_only_the_jobs_that_publish_may_write():
    for name, job in JOBS.items():
        assert job.get("permissions") == PERMISSIONS.get(name), name
        assert 0 < int(job["timeout-minutes"]) <= 120, name
        for step in job["steps"]:
            if "uses" not in step:
                continue
            assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40}", step["uses"]), step
            if "checkout" in step["uses"]:
                assert step["with"]["persist-credentials"] == "false"
            if "setup-python" in step["uses"]:
                assert step["with"]["cache"] == "pip"
                assert step["with"]["cache-dependency-path"] == "settings.ini"
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == dict(contents="read")
        assert "group" in workflow["concurrency"]
        assert "workflow_dispatch" in workflow["on"]
    assert WORKFLOWS["test"]["on"]["push"] == dict(branches=["main"])
    assert "pull_request" in WORKFLOWS["test"]["on"]


def test_a_release_publishes_what_was_checked_and_installed():
    """Only a tag publishes, and only the files that the job before has tried."""
    workflow = WORKFLOWS["release"]
    assert set(workflow["on"]) == {"push", "workflow_dispatch"}
    assert workflow["on"]["push"] == {"tags": ["v*"]}
    build, publish = JOBS["release: build"], JOBS["release: publish"]
    done = steps(build)
    tried = next(i for i, run in enumerate(done) if "alexnet_nb.lrn" in run)
    assert (
        done.index("python -m build")
        < done.index("twine check --strict dist/*")
        < tried
        < done.index("actions/upload-artifact")
    )
    assert publish["needs"] == "build"
    assert publish["if"].endswith("startsWith(github.ref, 'refs/tags/v')")
    assert publish["environment"]["name"] == "pypi"
    assert steps(publish) == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]


def test_quarto_is_looked_at_every_week():
    workflow = WORKFLOWS["quarto"]
    assert set(workflow["on"]) == {"schedule", "workflow_dispatch"}
    done, job = steps(JOBS["quarto: quarto"]), JOBS["quarto: quarto"]
    look = next(i for i, run in enumerate(done) if run.startswith("pytest"))
    assert (
        done.index("quarto-dev/quarto-actions/setup")
        < done.index("python .ci/site.py --quarto")
        < look
    )
    assert set(re.findall(r"tests/\w+\.py", done[look])) == {
        f"tests/test_{name}.py" for name in ("site", "browser", "play")
    }
    assert job["steps"][look]["env"]["ALEXNET_NB_SITE"] == "_docs"


@pytest.mark.parametrize("ci", [True, False], ids=["in CI", "elsewhere"])
def test_without_a_browser_ci_fails_and_others_skip(tmp_path, ci):
    (tmp_path / "test_one.py").write_text("def test_one(browser): pass\n")
    bare = {key: value for key, value in os.environ.items() if key != "CI"}
    bare |= dict(
        PATH=str(tmp_path),
        PLAYWRIGHT_BROWSERS_PATH=str(tmp_path),
        PYTHONPATH=str(ROOT / "tests"),
    )
    if ci:
        bare["CI"] = "true"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        tmp_path,
        tmp_path,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=bare, cwd=tmp_path
    )
    assert "browser: got none, expected Chromium" in done.stdout, (
        done.stdout + done.stderr
    )
    assert ("1 error" if ci else "1 skipped") in done.stdout
    assert done.returncode == (1 if ci else 0)
