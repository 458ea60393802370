"""A small project whose pages and modules are in folders, built by the real builder."""

import html.parser
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers import ROOT

pytestmark = pytest.mark.slow

CHECK = runpy.run_path(str(ROOT / ".ci/site.py"))
HOST = "https://alexnet-nb.github.io/alexnet_nb"
PACKAGE = "small_nb"  # of another name, or Python would take the installed one
ASSETS = ("after.html", "styles.css", "card.png", "favicon.svg")
RELU = """
def relu(x: float) -> float:
    "Return max(0, x)."
    return max(0.0, x)
"""
CONFIG = """
class Settings:
    "What was asked for."
"""
SETTINGS = """
def settings() -> Settings:
    "Return the settings as they are without a file."
    return Settings()
"""
PAGES = {  # each a title, the module it exports, and its cells
    "index": (
        "Start",
        None,
        [
            "[ReLU](01_relu.ipynb), [scale](guides/02_scale.ipynb), "
            "[steps](guides/train.ipynb#steps), "
            "[the plateau](evidence/experiments/plateau.ipynb)."
        ],
    ),
    "01_relu": (
        "ReLU",
        "relu",
        [
            ("export", RELU),
            "## Where next\n\nSee [the plateau](evidence/experiments/plateau.ipynb"
            "#a-result), [scale](guides/02_scale.ipynb#two-machines), `Settings`.",
        ],
    ),
    "engine/config": (
        "Configuration",
        "engine.config",
        [
            ("export", f"from {PACKAGE}.relu import relu"),
            ("export", CONFIG),
            ("export", SETTINGS),
            "It uses `relu` of [this page](../01_relu.ipynb#relu). `Settings`.",
        ],
    ),
    "guides/config": (
        "Write a configuration",
        None,
        ["## Settings\n\nThese are fields of `Settings`."],
    ),
    "guides/train": (
        "Train",
        None,
        [
            "## Steps\n\n`Settings`, `settings` and `relu`, "
            "![a card](../assets/card.png), [top](/01_relu.ipynb#relu).",
            "[Scale](02_scale.ipynb), [the engine](../engine/config.ipynb#settings).",
        ],
    ),
    "guides/02_scale": (
        "Scale",
        None,
        ["## Two machines\n\n[Before](train.ipynb), [math](../01_relu.ipynb): $x^2$."],
    ),
    "evidence/experiments/plateau": (
        "The plateau",
        None,
        [
            "## A result\n\n`relu`, [ReLU](../../01_relu.ipynb#where-next), "
            "[scale](../../guides/02_scale.ipynb), ![a card](../../assets/card.png).",
            ("html", '<a href="../../relu.html#relu">a link in HTML</a>'),
        ],
    ),
}
ORDER = [
    "index",
    "relu",
    "guides/train",
    "guides/scale",
    "guides/config",
    "evidence/experiments/plateau",
    "engine/config",
]
MOVED = {
    "howto.html": "guides/train.html",
    "experiments/plateau.html": "evidence/experiments/plateau.html",
}


def make_cell(number, content):
    """Make a cell of prose, of code that is exported, or with an output in HTML."""
    kind, source = content if isinstance(content, tuple) else ("markdown", content)
    cell = dict(id=f"c{number}", metadata={}, cell_type=kind)
    if kind in ("export", "html"):
        cell |= dict(cell_type="code", execution_count=None, outputs=[])
    if kind == "export":
        source = f"#| export\n{source.strip()}"
    if kind == "html":
        shown = dict(output_type="display_data", metadata={})
        cell["outputs"] = [shown | dict(data={"text/html": [source]})]
        source = "#| echo: false\nshow()"
    return cell | dict(source=source.splitlines(keepends=True))


def write_page(nbs, name, title, module, contents):
    """Write a notebook as Jupyter would."""
    front = f"# {title}\n\n> The page called {title}, for tests.\n"
    cells = [front, *contents]
    if module:
        start = dict(cell_type="code", source=[f"#| default_exp {module}"])
        start |= dict(id="start", metadata={}, execution_count=None, outputs=[])
    cells = [make_cell(number, content) for number, content in enumerate(cells)]
    if module:
        cells.insert(1, start)
    kernel = dict(display_name="python3", language="python", name="python3")
    metadata = dict(kernelspec=kernel)
    notebook = dict(cells=cells, metadata=metadata, nbformat=4, nbformat_minor=5)
    path = nbs / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook))


def write_config(project):
    """The configuration of the real site, for other pages, with files in assets/."""
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    config["format"]["html"] |= {
        "css": "assets/styles.css",
        "include-after-body": "assets/after.html",
    }
    config["website"]["favicon"] = "assets/favicon.svg"

    def entries(*names):
        return [dict(text=f"page {name}", href=f"{name}.ipynb") for name in names]

    inner = dict(section="Experiments", contents=entries(ORDER[5]))
    config["website"]["sidebar"]["contents"] = [
        *entries(*ORDER[:2]),
        dict(section="Guides", contents=entries(*ORDER[2:5])),
        dict(section="Evidence", contents=[inner]),
        dict(section="Engine", contents=entries(ORDER[6])),
    ]
    (project / "_quarto.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    (project / "nbs/_quarto.yml").symlink_to("../_quarto.yml")


def write_moves(project, moves):
    rows = "\n".join(f"| {old} | {new} |" for old, new in moves)
    table = f"## Moved pages\n\n| Old | New |\n|---|---|\n{rows}\n\n## Next\n"
    (project / "CONTRIBUTING.md").write_text(f"# Contributing\n\n{table}")


def command(project, *words):
    """Run a program of this environment in the project; return what it did."""
    env = os.environ | dict(PYTHONPATH=str(project))
    words = [sys.executable, *words]
    return subprocess.run(words, cwd=project, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project, exported and built."""
    project = tmp_path_factory.mktemp("project")
    nbs = project / "nbs"
    for name, page in PAGES.items():
        write_page(nbs, name, *page)
    (nbs / "assets").mkdir()
    for name in ASSETS:
        found = next(path for path in (ROOT / "nbs").rglob(name))
        shutil.copy(found, nbs / "assets")
    shutil.copy(nbs / "assets/card.png", nbs)
    shutil.copy(ROOT / "nbs/404.md", nbs)
    shutil.copytree(ROOT / ".ci", project / ".ci")
    settings = (ROOT / "settings.ini").read_text()
    settings = re.sub(
        r"^(lib_name|lib_path) = .*", rf"\1 = {PACKAGE}", settings, flags=8
    )
    (project / "settings.ini").write_text(settings)
    (project / "pyproject.toml").write_text(f'[project]\nname = "{PACKAGE}"\n')
    (project / PACKAGE).mkdir()
    (project / PACKAGE / "__init__.py").write_text('__version__ = "0.1.0"\n')
    installed = project / f"{PACKAGE}.egg-info"  # as `pip install -e` leaves it
    installed.mkdir()
    (installed / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\n")
    entry = f"[nbdev]\n{PACKAGE} = {PACKAGE}._modidx:d\n"
    (installed / "entry_points.txt").write_text(entry)
    write_config(project)
    write_moves(project, MOVED.items())
    done = command(project, "-c", "import nbdev.cli as c; c.nbdev_export()")
    assert (project / PACKAGE / "engine/config.py").exists(), done.stderr
    return project


@pytest.fixture(scope="module")
def small(project):
    """The site of the project."""
    done = command(project, ".ci/site.py")
    words = done.stdout + done.stderr
    assert done.returncode == 0, words
    assert "8 pages and 2 redirects under _docs/, 0 broken links" in words
    return project / "_docs"


class Links(html.parser.HTMLParser):
    """Addresses of a page's links by their words, and of everything that it loads."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.open = [], [], None
        self.feed(Path(path).read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "a":
            self.open = [attributes.get("href", ""), ""]
            self.links.append(self.open)
        elif tag in ("link", "script", "img"):
            self.loaded.append(attributes.get("href") or attributes.get("src") or "")

    def handle_endtag(self, tag):
        if tag == "a":
            self.open = None

    def handle_data(self, data):
        if self.open:
            self.open[1] += data

    def to(self, words):
        return {href for href, shown in self.links if shown.strip() == words}


def test_pages_lose_their_number_in_every_folder(small):
    names = {str(path.relative_to(small)) for path in small.rglob("*.html")}
    assert names == {f"{name}.html" for name in ORDER} | {"404.html"} | set(MOVED)


def test_links_lead_from_folder_to_folder(small):
    plateau = Links(small / "evidence/experiments/plateau.html")
    assert "../../relu.html#where-next" in plateau.to("ReLU")
    assert "../../guides/scale.html" in plateau.to("scale")
    assert plateau.to("a link in HTML") == {"../../relu.html#relu"}
    assert "../../assets/card.png" in plateau.loaded
    assert "../../assets/styles.css" in plateau.loaded
    train = Links(small / "guides/train.html")
    assert "../relu.html#relu" in train.to("top")
    assert "scale.html" in train.to("Scale")


def test_names_in_prose_lead_to_their_page(small):
    train = Links(small / "guides/train.html")
    assert train.to("settings") == {"../engine/config.html#settings"}
    assert train.to("Settings") == {"../engine/config.html#settings-class"}
    assert train.to("relu") == {"../relu.html#relu"}
    engine = Links(small / "engine/config.html")
    assert engine.to("relu") == {"../relu.html#relu"}


def test_a_page_of_the_same_name_keeps_its_anchor(small):
    """`guides/config` has a section Settings; the class is on `engine/config`."""
    page = Links(small / "guides/config.html")
    assert page.to("Settings") == {"#settings", "../engine/config.html#settings-class"}
    link = "[`Settings`](config.html#settings)"
    notebooks = {
        Path(f"{folder}/config.ipynb"): {"cells": [{"source": [link]}]}
        for folder in ("engine", "guides")
    }
    CHECK["link_to_class"](notebooks, Path("engine/config.html"), "Settings")
    words = ["".join(page["cells"][0]["source"]) for page in notebooks.values()]
    assert words == [link.replace("#settings", "#settings-class"), link]


def test_sources_are_named_with_their_folder(small):
    sources = Links(small / "engine/config.html").to("source")
    assert len(sources) == 2
    for address in sources:
        assert f"/blob/main/{PACKAGE}/engine/config.py#L" in address


def test_pages_follow_each_other_as_in_the_sidebar(small):
    for number, name in enumerate(ORDER[1:], start=1):
        page = small / f"{name}.html"
        links = [href.partition("#")[0] for href, _ in Links(page).links]
        before = os.path.relpath(small / f"{ORDER[number - 1]}.html", page.parent)
        assert links.count(before) > 1, (name, before)  # in the sidebar, and below


def test_search_and_lists_know_pages_in_folders(small):
    found = {entry["href"] for entry in json.loads((small / "search.json").read_text())}
    assert {"engine/config.html#settings", "guides/scale.html#two-machines"} <= found
    assert not [href for href in found if href.partition("#")[0] in MOVED]
    listed = (small / "llms.txt").read_text()
    assert re.findall(r"^## (.+)$", listed, flags=re.M) == [
        "Pages",
        "Guides",
        "Experiments",
        "Engine",
    ]
    lines = re.findall(rf"\({HOST}/(.+)\.html\)", listed)
    assert lines == ORDER
    mapped = (small / "sitemap.xml").read_text()
    assert f"<loc>{HOST}/engine/config.html</loc>" in mapped
    assert not [old for old in MOVED if f"<loc>{HOST}/{old}</loc>" in mapped]


def test_the_readme_links_to_notebooks_in_folders(small, project):
    readme = (project / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", readme):
        assert (project / link).exists(), link
    assert "(nbs/guides/train.ipynb#steps)" in readme


def test_an_old_address_leads_to_the_new_one(small):
    for old, new in MOVED.items():
        page = (small / old).read_text()
        link = os.path.relpath(small / new, (small / old).parent)
        assert Links(small / old).to(new) == {link}
        assert f'<meta http-equiv="refresh" content="0; url={link}">' in page
        assert f'<link rel="canonical" href="{HOST}/{new}">' in page
        assert '<meta name="robots" content="noindex">' in page


@pytest.mark.browser
@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_a_browser_goes_there(browser, small, script):
    """With the part behind the #, where scripts run."""
    context = browser.new_context(java_script_enabled=script)
    page = context.new_page()
    page.goto((small / "experiments/plateau.html").as_uri() + "#a-result")
    end = "#a-result" if script else ""
    page.wait_for_url(f"**/evidence/experiments/plateau.html{end}")
    assert page.title().startswith("The plateau")
    context.close()


FAULTS = {
    "missing": (
        [("howto.html", "guides/gone.html")],
        r"moved page howto\.html: got guides/gone\.html, expected a page of the site; ",
    ),
    "taken": (
        [("relu.html", "guides/train.html")],
        r"moved page relu\.html: got a page at this address, expected none; ",
    ),
    "twice": (
        [("howto.html", "relu.html"), ("howto.html", "guides/train.html")],
        r"moved page howto\.html: got two rows, expected one; ",
    ),
    "chain": (
        [("a.html", "b.html"), ("b.html", "relu.html")],
        r"moved page a\.html: got b\.html, expected a page of the site; ",
    ),
    "row": (
        [("how to", "guides/train.html")],
        r"moved page \| how to \| guides/train\.html \|: got another row, expected ",
    ),
}


def test_a_move_to_a_missing_page_ends_the_build(small, project):
    """And so does each other row that is wrong. Nothing is rendered then."""
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*.html")}
    moves = [move for rows, _ in FAULTS.values() for move in rows]
    write_moves(project, dict.fromkeys(moves))
    try:
        done = command(project, ".ci/site.py")
    finally:
        write_moves(project, MOVED.items())
    assert done.returncode == 1
    for _, message in FAULTS.values():
        assert re.search(rf"^{message}", done.stdout, flags=re.M), done.stdout
    after = {path: path.stat().st_mtime_ns for path in small.rglob("*.html")}
    assert after == before


def test_the_table_of_this_project_can_be_read():
    """A table that is missing is a fault; an empty one is none."""
    sys.path.append(str(ROOT / ".ci"))
    import redirects

    moves, faults = redirects.read_moves((ROOT / "CONTRIBUTING.md").read_text())
    assert faults == []
    assert len(dict(moves)) == len(moves)
    expected = {old.partition("#")[0]: new for old, new in SECTIONS.items()}
    assert expected.items() <= dict(moves).items()
    moves, faults = redirects.read_moves("# Contributing\n")
    assert (moves, len(faults)) == ([], 1)


SECTIONS = {  # of this project: a section at its old address, and the page it is on now
    "howto.html#train-on-imagenet": "guides/train.html",
    "symptoms.html#the-loss-is-stuck-at-6.9": "guides/troubleshooting.html",
    "cluster.html#what-a-step-sends": "guides/scale.html",
    "claims.html#open-rows": "evidence/claims.html",
    "family.html#run-147": "evidence/lab.html",
    "traps.html#stepping-into-them-on-purpose": "evidence/pitfalls.html",
    "survived.html#what-went": "evidence/survived.html",
    "experiments/analogues.html#ten-views": "evidence/experiments/analogues.html",
    "experiments/figure1.html#the-rates": "evidence/experiments/figure1.html",
    "experiments/plateau.html#at-full-size": "evidence/experiments/plateau.html",
}


@pytest.mark.parametrize("old", SECTIONS)
def test_an_old_address_of_this_project_leads_to_its_section(browser, site, old):
    """And without its section, to the page."""
    path, _, anchor = old.partition("#")
    page = browser.new_page()
    for end in ("", f"#{anchor}"):
        page.goto((site / path).as_uri() + end)
        page.wait_for_url((site / SECTIONS[old]).as_uri() + end)
    assert page.locator(f"[id='{anchor}']").count() == 1
    page.close()
