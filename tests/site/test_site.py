"""The site builds in one command, and its links and mathematics are whole.

It says to others what it is.
"""

import hashlib
import importlib
import os
import re
import runpy
import types
from html import unescape

import pytest

from helpers import ROOT
from helpers.pages import Outline

pytestmark = pytest.mark.slow

CHECK = runpy.run_path(str(ROOT / ".ci/site.py"))


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
            r'<(?:script|link(?! rel="canonical")|img)[^>]+'
            r'(?:src|href)="(?:https?:)?//[^"]+"',
            page,
        ), name


def test_links_to_a_missing_anchor_are_found(tmp_path):
    (tmp_path / "page.html").write_text(
        '<a href="other.html">x</a><a href="#nowhere">y</a><h2 id="here"></h2>'
        '<a href="#here">z</a><a href="/alexnet_nb/page.html#here">top</a>'
        '<a href="/alexnet_nb/gone.html">w</a>'
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
    """A function or class has a heading, a signature and a sentence.

    A constant or an alias of a type is in the code that is shown.
    """
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
        value = getattr(code, name)
        is_type_alias = isinstance(value, types.GenericAlias)
        if callable(value) and not is_type_alias:
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


def test_marked_outputs_are_folded_on_the_site_only(pages):
    source = (ROOT / "nbs/train.ipynb").read_text()
    titles = re.findall(r'site-fold: \\"(.*?)\\"', source)
    assert titles
    for title in titles:
        fold = pages["train"].partition(f"<summary>{title}</summary>")[2]
        assert "</details>" in fold, title
        assert re.search("<table|<img|<svg", fold.partition("</details>")[0]), title
    assert "site-fold" not in pages["train"]


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
    assert all(link.startswith(("/alexnet_nb/", "https://")) for link in links)
