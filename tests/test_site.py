"The site builds in one command, its links and mathematics are whole, and it says to others what it is. What needs a browser is in test_browser.py."
import hashlib
import importlib
import re
import runpy
from html import unescape

import pytest
from conftest import ROOT

CHECK = runpy.run_path(str(ROOT / ".ci/site.py"))
MODULES = sorted(p.stem for p in (ROOT / "alexnet_nb").glob("[a-z]*.py"))


@pytest.fixture(scope="module")
def pages(site):
    return {str(p.relative_to(site).with_suffix("")): p.read_text() for p in site.rglob("*.html")}


def meta(page):
    "Names and contents of a page's meta tags."
    return {name: unescape(content) for name, content in re.findall(r'<meta (?:name|property)="([^"]+)" content="([^"]*)"', page)}


def test_every_notebook_has_its_page(pages):
    names = {re.sub(r"(^|/)\d\d_", r"\1", str(p.relative_to(ROOT / "nbs").with_suffix(""))) for p in (ROOT / "nbs").rglob("*.ipynb") if "-checkpoint" not in p.stem}
    assert names | {"404"} == set(pages)


def test_mathematics_is_mathml(pages):
    assert pages["lrn"].count("<math") >= 10
    for name, page in pages.items():
        prose = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", page, flags=re.S)
        assert not re.search(r"\\[a-zA-Z]{3,}|\$\$", prose), name
        assert not re.search(r"\]\([\w./#-]+\)|\.ipynb\)", prose), f"{name}: Markdown is left"


def test_signatures_are_a_readers(pages):
    for name, page in pages.items():
        assert not (found := re.search(r"VAR_POSITIONAL|builtin_function_or_method|:NoneType=|__main__\.", re.sub(r"<[^>]+>", "", page))), (name, found)


def test_no_page_loads_from_another_host(pages):
    for name, page in pages.items():
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]+"', page), name


def test_links_to_a_missing_anchor_are_found(tmp_path):
    (tmp_path / "page.html").write_text('<a href="other.html">x</a><a href="#nowhere">y</a><h2 id="here"></h2><a href="#here">z</a><a href="/alexnet_nb/page.html#here">top</a><a href="/alexnet_nb/gone.html">w</a>')
    CHECK["broken"].__globals__["SITE"], before = tmp_path, CHECK["broken"].__globals__["SITE"]
    assert [b.split(": ")[1] for b in CHECK["broken"]()] == ["other.html", "#nowhere", "/alexnet_nb/gone.html"]
    CHECK["broken"].__globals__["SITE"] = before


@pytest.mark.parametrize("module", MODULES)
def test_every_exported_symbol_is_documented_on_its_page(pages, module):
    "A function or class under a heading of its own, with its signature and a sentence; a constant in the code that is shown."
    page, code = pages[module], importlib.import_module(f"alexnet_nb.{module}")
    shown = unescape(re.sub(r"<[^>]+>", "", "\n".join(re.findall(r"<pre.*?</pre>", page, flags=re.S))))
    documented = re.findall(r'<h3 [^>]*>(\w+)</h3>\s*<div class="code-copy[^\n]*>def(?:</span> <span class="fu">)\1<(?:(?!<h3).)*?</pre>(?:(?!<h3).)*?<p><em>[\w<]', page, flags=re.S)
    for name in code.__all__:
        if callable(getattr(code, name)): assert name in documented, name
        else: assert re.search(rf"\b{name}\b", shown), name


def test_a_link_to_a_page_has_title_sentence_and_picture(pages, site):
    from PIL import Image
    host = "".join(CHECK["address"]())
    for name, page in pages.items():
        said = meta(page)
        assert said["og:title"] and len(said["og:description"]) > 20 and said["og:image"] == f"{host}/card.png", name
        assert re.search(r'<link rel="icon" href="[^"]*favicon\.svg"', page), name
    with Image.open(site / "card.png") as card:
        assert card.size == (1200, 630)
        assert card.text["drawing"] == hashlib.sha256((ROOT / "nbs/columns.svg").read_bytes()).hexdigest(), "the drawing has changed: python .ci/card.py"
    assert (site / "favicon.svg").read_text() == runpy.run_path(str(ROOT / ".ci/card.py"))["favicon"]()


def test_llms_txt_lists_every_page(pages, site):
    listed = dict(re.findall(r"^- \[.+?\]\((.+?)\.html\): (.{20,})$", (site / "llms.txt").read_text(), flags=re.M))
    host = "".join(CHECK["address"]()) + "/"
    assert {u.removeprefix(host) for u in listed} == set(pages) - {"404"}
    for url, line in listed.items(): assert meta(pages[url.removeprefix(host)])["description"] == line


def test_the_page_for_lost_readers_works_in_any_folder(pages):
    links = re.findall(r'(?:href|src)="([^"#]+)"', pages["404"])
    assert len(links) > 20 and all(l.startswith(("/alexnet_nb/", "https://")) for l in links)
