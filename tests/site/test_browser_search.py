"""Search, links into a page, and the family tree, as a reader uses them."""

from importlib import import_module

import pytest

from helpers import require_playwright
from helpers.pages import LAPTOP, PHONE, WIDE, ends_in_sight

pytestmark = pytest.mark.browser

require_playwright()
expect = import_module("playwright.sync_api").expect


TARGETS = [
    "learning.html#check_signal",
    "evidence/lab.html#run-147",
    "lrn.html#lrn-equation",
    "lrn.html#lrn-class",
    "evidence/claims.html#the-commands",
    "guides/train.html#train-on-imagenet",
    "engine/launch.html#a-run",
    "evidence/pitfalls.html#stepping-into-them-on-purpose",
]


@pytest.mark.parametrize("size", [WIDE, LAPTOP, PHONE], ids=["wide", "laptop", "phone"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_link_ends_below_what_stays_at_the_top(browser, top, target, size):
    page = browser.new_page(viewport=size)
    page.goto(top + target, wait_until="networkidle")
    ends_in_sight(page)
    page.close()


def ask(page, words):
    """Type into the search as a reader would who knows its key.

    Returns when something is found.
    """
    links = (
        "[...document.querySelectorAll('a')]"
        ".filter(e => e.getClientRects().length).length"
    )
    before = page.evaluate(links)
    page.keyboard.press("/")
    page.wait_for_function("document.activeElement.matches('input')")
    page.keyboard.type(words)
    page.wait_for_function(f"{links} > {before}")
    page.wait_for_timeout(400)  # until the last letter has been looked for


@pytest.mark.parametrize("start", ["index.html", "evidence/experiments/plateau.html"])
@pytest.mark.parametrize("words", ["stuck at 6.9", "227"])
def test_search_finds(tab, start, words):
    page = tab.page
    page.set_viewport_size(WIDE)
    page.goto(tab.top + start)
    ask(page, words)
    page.keyboard.press("Enter")
    page.wait_for_url(
        lambda address: address.partition("?")[0].partition("#")[0] != tab.top + start
    )
    expect(page.get_by_role("main")).to_contain_text(words)
    if "#" in page.url:
        ends_in_sight(page)


# each with a page that must be the first found; no page has these words side by side
QUERIES = {
    "6.9 loss stuck": "guides/troubleshooting.html",
    "why is my loss nan": "guides/troubleshooting.html",
    "how do I train on imagenet": "guides/train.html",
    "color PCA noise": "augmentation.html",
    "scaling dropout": "dropout.html",
    "two GPUs column": "multigpu.html",
}


@pytest.mark.parametrize("words", QUERIES)
def test_search_finds_words_in_any_order(tab, words):
    tab.page.set_viewport_size(WIDE)
    tab.page.goto(tab.top + "evidence/survived.html")
    ask(tab.page, words)
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url(
        lambda address: (
            address.partition("?")[0].partition("#")[0] == tab.top + QUERIES[words]
        )
    )


def family(page, top, size=WIDE):
    """The page of the family tree, its drawing, and where its focus is.

    The drawing is the one that is shown at this width.
    """
    page.set_viewport_size(size)
    page.goto(f"{top}evidence/lab.html")
    return page.locator("#family svg:visible"), lambda: page.evaluate(
        "document.activeElement.getAttribute('href')?.slice(1)"
    )


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_family_marks_answer_keys(tab, size):
    page = tab.page
    drawing, focus = family(page, tab.top, size)
    detail, rows = page.locator("#family .detail"), page.locator("#runs tbody tr")
    marks = drawing.locator(".run")
    order = marks.evaluate_all("all => all.map(a => a.getAttribute('href').slice(1))")
    assert len(order) > 90
    assert set(order) <= set(rows.evaluate_all("all => all.map(r => r.id)"))
    assert (
        marks.evaluate_all("all => all.filter(a => a.tabIndex === 0).length") == 1
    )  # one stop for the whole drawing
    drawing.locator(".run[tabindex='0']").focus()
    at = order.index("run-145")
    assert focus() == "run-145"
    for key, to in (
        ("ArrowRight", order[at + 1]),
        ("ArrowLeft", "run-145"),
        ("ArrowLeft", order[at - 1]),
        ("ArrowRight", "run-145"),
        ("ArrowUp", "run-137"),
    ):
        page.keyboard.press(key)
        assert focus() == to
        expect(detail.locator(".head a")).to_have_text(
            page.locator(f"[id='{to}'] td").first.text_content().strip()
        )
        assert page.locator("#runs tr.chosen").get_attribute("id") == to
    page.keyboard.press("ArrowDown")
    assert page.locator(f"[id='{focus()}'] td").nth(1).text_content() == "137"
    page.keyboard.press("Enter")
    expect(page.locator(f"[id='{focus()}']")).to_be_in_viewport()


def test_family_marks_answer_the_mouse(tab):
    drawing, focus = family(tab.page, tab.top)
    mark = drawing.locator(".run[href='#run-148']")
    mark.click()
    assert focus() == "run-148"
    assert "chosen" in mark.get_attribute("class")
    expect(tab.page.locator("#family .detail")).to_contain_text("Changed from 145")


def test_family_table_is_sorted_and_searched(tab):
    family(tab.page, tab.top)
    first, shown = (
        tab.page.locator("#runs tbody tr:visible td").first,
        tab.page.locator("#runs tbody tr:visible"),
    )
    tab.page.locator("#runs input").fill("pooling overlap")
    assert 0 < shown.count() < 20
    assert f"{shown.count()} of" in tab.page.locator("#runs .count").text_content()
    tab.page.locator("#runs input").fill("")
    tab.page.get_by_role("button", name="began").click()
    began = [
        c
        for c in tab.page.locator("#runs tbody tr td:nth-child(3)").all_text_contents()
        if c
    ]
    assert began == sorted(began)
    assert len(began) > 80
    assert first.is_visible()


def test_family_tree_is_whole_without_scripts(browser, top):
    """Every mark is a link to its row, and the row is there."""
    context = browser.new_context(viewport=WIDE, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{top}evidence/lab.html")
    page.locator("#family svg.wide .run[href='#run-147']").click()
    assert page.url.endswith("#run-147")
    row = page.locator("[id='run-147']")
    expect(row).to_be_in_viewport()
    assert "overlap" in row.text_content()
    context.close()
