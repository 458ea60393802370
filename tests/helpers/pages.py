"""The pages of the site, and the windows in which they are opened."""

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
    """As the real host: the site in its folder, and 404.html wherever there is nothing."""

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
