"""Every page as a reader sees it: the built site in Chromium.

Light and dark, wide and narrow.
"""

import re
import zlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers import require_playwright
from helpers.pages import (
    BACKGROUND,
    LAPTOP,
    PAGES,
    PAPER,
    PHONE,
    WIDE,
    ends_in_sight,
    ground,
)

pytestmark = pytest.mark.browser

require_playwright()
expect = import_module("playwright.sync_api").expect

AXE = (
    Path(find_spec("axe_playwright_python").origin).parent / "axe.min.js"
).read_text()


# the least contrast of text with what is painted behind it, and that text; each pair of
# colors counts once
CONTRAST = """() => {
  const parse = c => {
    const n = c.match(/[\\d.]+/g).map(Number);
    return [n[0], n[1], n[2], n[3] ?? 1];
  };
  const over = (top, under) =>
    [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]));
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const weights = [.2126, .7152, .0722];
  const light = c => c.reduce((s, v, i) => s + linear(v / 255) * weights[i], 0);
  const grounds = new Map(), pairs = new Map();
  const ground = e => {
    if (!e) return [255, 255, 255];
    if (!grounds.has(e)) {
      const c = parse(getComputedStyle(e).backgroundColor);
      grounds.set(e, c[3] === 1 ? c.slice(0, 3) : over(c, ground(e.parentElement)));
    }
    return grounds.get(e);
  };
  const kinds =
    "p, li, td, th, h1, h2, h3, em, strong, a, code, summary, pre, pre span";
  const speaks = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  for (const e of document.querySelectorAll(`main, main :is(${kinds})`)) {
    if (!speaks(e) || !e.getClientRects().length) continue;
    const color = parse(getComputedStyle(e).color), behind = ground(e);
    const both = [light(over(color, behind)), light(behind)];
    const [a, b] = both.sort((x, y) => y - x);
    const pair = `${color} on ${behind}`;
    const words = `${e.tagName} ${pair}: ${e.textContent.slice(0, 40)}`;
    pairs.set(pair, [(a + .05) / (b + .05), words]);
  }
  return [...pairs.values()].sort((x, y) => x[0] - y[0])[0];
}"""


# what ends to the right of the window, without a box around it that scrolls: the layout
# would clip it
CUT = """() => {
  const scrolling = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const scrolls = e =>
    e && e.tagName !== "MAIN" && (scrolling(e) || scrolls(e.parentElement));
  return [...document.querySelectorAll("main *")]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e))
    .map(e => e.outerHTML.slice(0, 80));
}"""


@pytest.fixture(scope="module", params=PAGES)
def seen(request, tab):
    """A page of the site, opened; the tests of a page share the visit."""
    tab.page.goto(
        "about:blank"
    )  # what the last page still asked for ends now, and is not this page's fault
    tab.asked.clear()
    tab.faults.clear()
    tab.page.set_viewport_size(WIDE)
    tab.page.goto(tab.top + request.param)
    tab.first = ground(tab.page)
    return tab


def turn(page, mode):
    """Use the switch, if the page is not in this mode."""
    if ground(page) == mode:
        return
    before = page.evaluate(BACKGROUND)
    page.get_by_title("dark mode").locator("visible=true").first.click()
    page.wait_for_function(f"{BACKGROUND} !== {before!r}")
    page.wait_for_timeout(100)  # what is painted by a script follows
    assert ground(page) == mode


def violations(page, options):
    """What axe finds to be serious or critical."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(AXE)
    found = page.evaluate(
        "([where, how]) => axe.run(where, how).then(r => r.violations)", options
    )
    return [
        f"{v['id']} {n['target']}: {n['failureSummary']}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for n in v["nodes"]
    ]


# Colors take long in code, which is left to CONTRAST. Each of the other rules sees a
# page wide and on a phone, but in one mode
HOW, COLOUR = (
    dict(resultTypes=["violations"], preload=False),
    ["color-contrast", "link-in-text-block"],
)


ALL, ONLY_COLOUR = (
    [dict(exclude=["pre code"]), HOW],
    [dict(exclude=["pre code"]), HOW | dict(runOnly=COLOUR)],
)


NO_COLOUR = ["html", HOW | dict(rules={rule: dict(enabled=False) for rule in COLOUR})]


def test_opens_without_complaint(seen):
    assert seen.faults == []
    assert [u for u in seen.asked if not u.startswith((seen.top, "data:"))] == []


def test_pictures_are_there(seen):
    broken = seen.page.evaluate("""() => {
      const fault = i => {
        i.loading = "eager";
        return i.decode().then(
          () => i.complete && i.naturalWidth > 0 ? "" : i.alt,
          () => i.outerHTML.slice(0, 200));
      };
      return Promise.all([...document.images].map(fault))
        .then(all => all.filter(Boolean));
    }""")
    assert broken == []


def test_mathematics_is_laid_out(seen):
    flat = seen.page.evaluate("""() => {
      document.querySelectorAll("main details").forEach(d => d.open = true);
      const isFlat = m => {
        const b = m.getBoundingClientRect();
        return !(b.width > 2 && b.height > 2);
      };
      return [...document.querySelectorAll("math")].filter(isFlat)
        .map(m => m.textContent);
    }""")
    assert flat == []
    prose = seen.page.evaluate("""() => {
      const copy = document.querySelector("main").cloneNode(true);
      copy.querySelectorAll("pre, code, script, style").forEach(e => e.remove());
      return copy.textContent;
    }""")
    assert not re.search(r"\\[a-zA-Z]{2,}|\$\$|(?<!\w)\$[^$\n]{1,60}\$", prose)


def test_page_is_small(seen, site):
    names = seen.page.evaluate(
        "performance.getEntriesByType('resource').map(e => e.name)"
    )
    files = {
        site / n.removeprefix(seen.top).partition("?")[0]
        for n in (*names, seen.page.url)
        if n.startswith(seen.top)
    }
    sent = sum(
        len(zlib.compress(f.read_bytes())) for f in files if f.is_file()
    )  # as a server sends them
    assert len(files) > 8
    assert sent < 900_000


def test_both_modes_can_be_read(seen):
    """The reader's system is followed at first, and the switch changes it.

    Text has a contrast of 4.5 in both.
    """
    assert seen.first == "dark"
    for mode, rules in (("dark", ALL), ("light", ONLY_COLOUR)):
        turn(seen.page, mode)
        least, where = seen.page.evaluate(CONTRAST)
        assert least >= 4.5, where
        assert violations(seen.page, rules) == []


def test_nothing_is_cut_on_a_wide_screen_or_a_phone(seen):
    for size in (WIDE, PHONE):
        seen.page.set_viewport_size(size)
        seen.page.evaluate(
            "() => new Promise(done => "
            "requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        assert (
            seen.page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        )
        assert seen.page.evaluate(CUT) == []
    assert violations(seen.page, NO_COLOUR) == []


# blocks of code and of printed output whose lines are wider than their box
SIDEWAYS = """() => {
  document.querySelectorAll("main details").forEach(d => d.open = true);
  const blocks = [...document.querySelectorAll("main pre")];
  const wide = blocks.filter(e => e.scrollWidth > e.clientWidth);
  return [blocks.length, wide.map(e => e.textContent.slice(0, 60))];
}"""


# in each block, how many characters fit beside each other
ROOM = """() => {
  const text = document.createElement("span");
  text.textContent = "0".repeat(100);
  text.style = "position: absolute; white-space: pre; padding: 0; text-indent: 0";
  return [...document.querySelectorAll("main pre > code")].map(code => {
    const box = getComputedStyle(code.parentElement);
    code.append(text);
    const character = text.getBoundingClientRect().width / 100;
    text.remove();
    const sides = parseFloat(box.paddingLeft) + parseFloat(box.paddingRight);
    return Math.floor((code.parentElement.clientWidth - sides) / character);
  });
}"""


# lines that go on below: how far from the first character the next piece begins
HANGING = """() => {
  const lines = [...document.querySelectorAll("main pre > code > span")];
  const found = [];
  for (const line of lines) {
    const range = document.createRange();
    range.selectNodeContents(line);
    const boxes = [...range.getClientRects()].filter(box => box.width);
    const below = boxes.find(box => box.top > boxes[0].bottom - 2);
    const start = line.textContent.search(/\\S/);
    const texts = document.createTreeWalker(line, NodeFilter.SHOW_TEXT);
    let text = texts.nextNode(), before = 0;
    while (below && before + text.length <= start) {
      before += text.length;
      text = texts.nextNode();
    }
    if (!below) continue;
    range.setStart(text, start - before);
    range.setEnd(text, start - before + 1);
    found.push([below.left - range.getBoundingClientRect().left, line.textContent]);
  }
  return found;
}"""


def sideways(page, top, name, size):
    """Open a page; return how many blocks of code it has, and those that scroll."""
    page.set_viewport_size(size)
    page.goto(top + name)
    return page.evaluate(SIDEWAYS)


@pytest.mark.parametrize("name", PAPER)
def test_code_of_the_paper_fits_beside_both_columns(tab, name):
    """Nothing scrolls at 1280 pixels, and a line of 88 characters is not broken."""
    blocks, wide = sideways(tab.page, tab.top, name, LAPTOP)
    assert blocks > 5
    assert wide == []
    assert min(tab.page.evaluate(ROOM), default=88) >= 88


def test_code_does_not_scroll_on_a_phone(tab):
    """At most a tenth of all blocks does."""
    found = [sideways(tab.page, tab.top, name, PHONE) for name in PAGES]
    wide = [words for _, some in found for words in some]
    assert len(wide) <= sum(blocks for blocks, _ in found) / 10, wide


def test_a_line_goes_on_further_in_than_it_began(tab):
    """And is copied as it was written."""
    sideways(tab.page, tab.top, "lrn.html", PHONE)
    hanging = tab.page.evaluate(HANGING)
    assert len(hanging) > 20
    assert [line for depth, line in hanging if depth < 15] == []
    copied = (
        "[...document.querySelectorAll('main pre > code')]"
        ".map(e => [e.innerText, e.textContent])"
    )
    for shown, written in tab.page.evaluate(copied):
        assert shown == written


def test_a_light_system_is_followed_too(browser, top):
    page = browser.new_page(color_scheme="light")
    page.goto(top)
    assert ground(page) == "light"
    page.close()


def test_an_address_that_does_not_exist_leads_back(tab):
    """In whatever folder.

    Styles, pictures and links of 404.html are found from there.
    """
    tab.faults.clear()
    tab.page.goto(f"{tab.top}evidence/no/such/page.html")
    assert [
        f
        for f in tab.faults
        if not f.startswith("console") and f != f"404: {tab.page.url}"
    ] == []  # only the page itself is missing
    assert (
        tab.page.evaluate(
            "getComputedStyle(document.querySelector('main h1')).borderBottomWidth"
        )
        == "3px"
    )
    tab.page.get_by_role("main").get_by_role("link", name="Start").click()
    expect(tab.page).to_have_url(f"{tab.top}index.html")


def test_ids_are_unique(seen):
    doubled = seen.page.evaluate("""() => {
      const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
      return ids.filter((id, i) => ids.indexOf(id) !== i);
    }""")
    assert doubled == []


def test_only_the_open_page_is_marked_as_such(seen):
    marked = seen.page.evaluate(
        "[...document.querySelectorAll('a[href][aria-current=page]')].map(a => a.href)"
    )
    assert [link for link in marked if link.partition("#")[0] != seen.page.url] == []


def test_every_heading_of_a_column_has_a_name(seen):
    """And every navigation has one of its own."""
    nameless = seen.page.evaluate(
        "[...document.querySelectorAll('main th')]"
        ".filter(e => !e.textContent.trim()).length"
    )
    assert nameless == 0
    names = seen.page.evaluate("""() => {
      const label = e => document.getElementById(e.getAttribute("aria-labelledby"));
      return [...document.querySelectorAll("nav")]
        .filter(e => e.getClientRects().length)
        .map(e => e.ariaLabel || label(e)?.textContent || "");
    }""")
    assert len(set(names)) == len(names)


def test_columns_of_words_are_wide_enough(seen):
    for size in (WIDE, LAPTOP, PHONE):
        seen.page.set_viewport_size(size)
        narrow = seen.page.evaluate("""() => {
          const words = e => e.textContent.trim().split(/\\s+/).length;
          return [...document.querySelectorAll("main td")]
            .filter(e => e.getClientRects().length)
            .filter(e => words(e) > 12 && e.getBoundingClientRect().width < 180)
            .map(e => e.textContent.slice(0, 60));
        }""")
        assert narrow == []


def test_buttons_that_copy_do_not_lie_on_code(seen):
    """They are shown where the mouse is."""
    seen.page.mouse.move(1, 1)
    shown = (
        "[...document.querySelectorAll('main button[title^=Copy]')]"
        ".filter(e => getComputedStyle(e).opacity > .1).length"
    )
    seen.page.wait_for_function(f"{shown} === 0")


def test_on_paper_nothing_is_cut_or_dim(seen):
    seen.page.set_viewport_size(WIDE)
    turn(seen.page, "dark")
    seen.page.set_viewport_size(dict(width=720, height=1000))
    seen.page.emulate_media(media="print")
    try:
        layout = seen.page.evaluate("""() => {
          const parts = "header nav, nav, button[title^=Copy]";
          return [...document.querySelectorAll(parts)]
            .filter(e => !e.closest("main") && e.getClientRects().length).length;
        }""")
        assert layout == 0
        cut = seen.page.evaluate("""
          [...document.querySelectorAll("main pre")]
            .filter(e => e.scrollWidth > e.clientWidth + 1)
            .map(e => e.textContent.slice(0, 60))""")
        assert cut == []
        dim = seen.page.evaluate("""
          [...document.querySelectorAll("main :is(p, li, td, pre, h2)")]
            .filter(e => e.getClientRects().length)
            .map(e => getComputedStyle(e).color)
            .filter(c => c !== "rgb(0, 0, 0)")""")
        assert dim == []
        assert seen.page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
    finally:
        seen.page.emulate_media(media="screen")


def test_a_phone_has_a_list_of_contents(seen):
    """In the text, for a page that has something to list.

    Where there is room for one beside it, not a second one.
    """
    page = seen.page
    inside = page.locator("main summary").get_by_text("On this page")
    heads = page.evaluate(
        "[...document.querySelectorAll('main h2')]"
        ".filter(h => !h.closest('.callout, [role=note]')).length"
    )
    page.set_viewport_size(WIDE)
    expect(inside.locator("visible=true")).to_have_count(0)
    page.set_viewport_size(PHONE)
    expect(inside.locator("visible=true")).to_have_count(int(heads > 2))
    if heads > 2:
        inside.evaluate(
            "e => e.closest('details').open = false"
        )  # an earlier test opened them all
        inside.click()
        links = inside.locator("xpath=..").get_by_role("link")
        assert links.count() == heads
        links.last.click()
        ends_in_sight(page)
