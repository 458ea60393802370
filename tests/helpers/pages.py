"""The pages of the site, and the windows in which they are opened."""

import html.parser
import http.server
import re
import runpy
from pathlib import Path

from helpers import ROOT

BASE = runpy.run_path(str(ROOT / ".ci/site.py"))["address"]()[1]


NOTEBOOKS = [
    p.relative_to(ROOT / "nbs")
    for p in (ROOT / "nbs").rglob("*.ipynb")
    if "-checkpoint" not in p.stem
]


PAGES = [
    *sorted(
        re.sub(r"(^|/)\d\d_", r"\1", str(p.with_suffix(".html"))) for p in NOTEBOOKS
    ),
    "404.html",
]


PAPER = [
    re.sub(r"^\d\d_", "", str(p.with_suffix(".html")))
    for p in sorted(NOTEBOOKS)
    if re.match(r"\d\d_", str(p))
]


WIDE, LAPTOP, PHONE = (
    dict(width=1500, height=900),
    dict(width=1280, height=800),
    dict(width=390, height=844),
)


class Host(http.server.SimpleHTTPRequestHandler):
    """As the real host: the site in its folder, and 404.html where there is nothing."""

    def translate_path(self, path):
        return super().translate_path(
            path.removeprefix(BASE) if path.startswith(BASE + "/") else "/nothing"
        )

    def send_error(self, code, *_):
        self.send_response(code)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(Path(self.directory, "404.html").read_bytes())

    def log_message(self, *_):
        pass


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def ground(page):
    return {"rgb(255, 255, 255)": "light", "rgb(39, 43, 48)": "dark"}[
        page.evaluate(BACKGROUND)
    ]


def ends_in_sight(page):
    """Wait until the target of the page's address is in the window.

    Nothing of the layout lies on its first line.
    """
    page.wait_for_function(
        """() => {
          const id = decodeURIComponent(location.hash.slice(1));
          const box = document.getElementById(id).getBoundingClientRect();
          const left = box.left + Math.min(8, box.width / 2);
          const top = document.elementFromPoint(left, box.top + 4);
          return box.top >= 0 && !!top?.closest("main");
        }""",
        timeout=5000,
    )


class Outline(html.parser.HTMLParser):
    """What any renderer's page holds.

    Its blocks in order, links with their words, head.
    """

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
