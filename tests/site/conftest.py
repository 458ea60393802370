"""Fixtures of the tests that look at the site."""

import functools
import http.server
import threading
from types import SimpleNamespace

import pytest

from helpers.pages import BASE, WIDE, Host
from helpers.play import PAGES


@pytest.fixture(scope="module")
def pages(site):
    """Every page's text by its name.

    What leads from an old address to a new one is none.
    """
    texts = {
        str(p.relative_to(site).with_suffix("")): p.read_text()
        for p in site.rglob("*.html")
    }
    return {k: text for k, text in texts.items() if 'http-equiv="refresh"' not in text}


@pytest.fixture(scope="module")
def top(site):
    """The address of the site, served while the tests of this file run."""
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Host, directory=str(site))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{BASE}/"
        server.shutdown()


@pytest.fixture(scope="module")
def tab(browser, top):
    """A tab of a reader whose system is dark, and who has never been here.

    What it asks for, and whatever it complains about.
    """
    context = browser.new_context(
        viewport=WIDE, color_scheme="dark", reduced_motion="reduce"
    )
    context.add_init_script("localStorage.clear()")
    page, asked, faults = context.new_page(), [], []
    page.on(
        "console",
        lambda m: faults.append(f"console: {m.text}") if m.type == "error" else None,
    )
    page.on("pageerror", lambda e: faults.append(f"error: {e}"))
    page.on("requestfailed", lambda r: faults.append(f"failed: {r.url}"))
    page.on(
        "response",
        lambda r: faults.append(f"{r.status}: {r.url}") if r.status >= 400 else None,
    )
    page.on("request", lambda r: asked.append(r.url))
    return SimpleNamespace(page=page, asked=asked, faults=faults, top=top)


@pytest.fixture
def figure(site, browser):
    """Opens the page of a figure; returns its root.

    Nothing may fail on the page, or be fetched from elsewhere.
    """
    contexts, faults = [], []

    def start(id, wide=1200, script=True, seed=1, **options):
        contexts.append(
            browser.new_context(
                viewport={"width": wide, "height": 900},
                java_script_enabled=script,
                **options,
            )
        )
        page = contexts[-1].new_page()
        page.on("pageerror", lambda e: faults.append(str(e)))
        page.on(
            "request",
            lambda r: (
                faults.append(r.url)
                if r.url.split(":")[0] not in ("file", "data")
                else None
            ),
        )
        page.add_init_script(
            f"let seed = {seed}; "
            "Math.random = () => (seed = (seed * 48271) % 2147483647) / 2147483647"
        )
        page.goto((site / f"{PAGES[id]}.html").as_uri())
        root = page.locator(f"#{id}")
        root.locator("form" if script else ".still").wait_for(timeout=10_000)
        return root

    yield start
    for context in contexts:
        context.close()
    assert faults == []
