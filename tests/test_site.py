"The site builds in one command, and its links and mathematics are whole."
import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def site():
    done = subprocess.run([sys.executable, ROOT / ".ci/site.py"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "0 broken links" in done.stdout, done.stdout + done.stderr
    return {p.stem: p.read_text() for p in (ROOT / "_docs").glob("*.html")}


def test_every_notebook_has_its_page(site):
    names = {re.sub(r"^\d\d_", "", p.stem) for p in (ROOT / "nbs").glob("*.ipynb")}
    assert names <= set(site)


def test_mathematics_is_mathml(site):
    assert site["lrn"].count("<math") >= 10
    for name, page in site.items():
        prose = re.sub(r"<(pre|code|script|style)\b.*?</\1>", "", page, flags=re.S)
        assert not re.search(r"\\[a-zA-Z]{3,}|\$\$", prose), name


def test_no_page_loads_from_another_host(site):
    for name, page in site.items():
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]+"', page), name


def test_links_to_a_missing_anchor_are_found(site, tmp_path):
    import runpy
    check = runpy.run_path(str(ROOT / ".ci/site.py"))
    (tmp_path / "page.html").write_text('<a href="other.html">x</a><a href="#nowhere">y</a><h2 id="here"></h2><a href="#here">z</a>')
    check["broken"].__globals__["SITE"] = tmp_path
    assert [b.split(": ")[1] for b in check["broken"]()] == ["other.html", "#nowhere"]
