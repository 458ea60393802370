"""Draw nbs/card.png and nbs/assets/favicon.svg from nbs/assets/columns.svg.

Other sites show the card beside a link to this one. Needs playwright and Chromium.

    python .ci/card.py
"""

import configparser
import hashlib
import io
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DRAWING = (ROOT / "nbs/assets/columns.svg").read_text()
CARD = """<!doctype html><style>
body {
  margin: 0; width: 1200px; height: 630px; box-sizing: border-box;
  padding: 40px 80px 0; background: white; color: #343a40;
  font-family: system-ui, "DejaVu Sans", sans-serif;
}
h1 {
  margin: 0; font-size: 64px; border-bottom: 6px solid #b32d46; padding-bottom: 10px;
}
p { margin: 18px 0 14px; font-size: 31px; line-height: 1.35; }
svg { width: 1000px; } svg text { fill: #5a626a; }
</style><h1>%s</h1><p>%s</p>%s"""


def favicon():
    """Two layers in two columns, each read by both."""
    corners = [
        (x, y, color) for x, color in ((1, "#d1495b"), (19, "#2e86ab")) for y in (1, 19)
    ]
    assert all(color in DRAWING for _, _, color in corners)
    boxes = "".join(
        f'<rect x="{x}" y="{y}" width="12" height="12" rx="2" fill="{color}"/>'
        for x, y, color in corners
    )
    lines = (
        '<path d="M7 12V20M25 12V20M8 12L24 20M24 12L8 20" stroke="#808890"'
        ' stroke-width="2"/>'
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32'
        f' 32">{lines}{boxes}</svg>\n'
    )


def card():
    """Draw the card: the drawing under name and description, as a small PNG.

    The PNG remembers which drawing it shows.
    """
    from PIL import Image, PngImagePlugin
    from playwright.sync_api import sync_playwright

    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    browser = next(
        filter(
            None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        )
    )
    with sync_playwright() as p:
        page = p.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        ).new_page(viewport=dict(width=1200, height=630))
        page.set_content(
            CARD
            % (
                settings["DEFAULT"]["title"],
                settings["DEFAULT"]["description"],
                DRAWING,
            )
        )
        shown = Image.open(io.BytesIO(page.screenshot()))
    note = PngImagePlugin.PngInfo()
    note.add_text("drawing", hashlib.sha256(DRAWING.encode()).hexdigest())
    shown.convert("RGB").quantize(64).save(
        ROOT / "nbs/card.png", optimize=True, pnginfo=note
    )


if __name__ == "__main__":
    (ROOT / "nbs/assets/favicon.svg").write_text(favicon())
    card()
