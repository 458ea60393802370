"""The figures to play with, by mouse, finger or the keyboard alone.

And without JavaScript.
"""

import pytest

from helpers.play import PAGES, put, text, torch_size, value, values

pytestmark = pytest.mark.browser


def test_keyboard_alone(figure):
    for id in PAGES:
        root = figure(id)
        wanted = root.evaluate("""r =>
          [...r.querySelectorAll('form :is(input, button, [tabindex])')]
            .filter(e => e.tabIndex >= 0 && !(e.type === 'radio' && !e.checked))
            .length""")
        root.evaluate("""r => {
          const a = document.createElement('a');
          a.href = '#';
          r.before(a);
          a.focus();
        }""")
        for i in range(wanted):
            root.page.keyboard.press("Tab")
            assert root.evaluate("r => r.contains(document.activeElement)"), (
                f"{id}: {i} of {wanted} controls"
            )
            outline = root.evaluate("""() => {
              const e = document.activeElement;
              return getComputedStyle(e.closest('.slot') || e).outlineStyle;
            }""")
            assert outline != "none"
        root.page.keyboard.press("Tab")
        assert not root.evaluate("r => r.contains(document.activeElement)")

        def keys(name, *presses, root=root):
            return [root.locator(f"{name}").first.focus()] + [
                root.page.keyboard.press(key) for key in presses
            ]

        if id == "play-size":
            keys("[name=input]", "ArrowUp", "ArrowUp", "ArrowUp", "Tab", "ArrowDown")
            assert [
                root.locator(f"[name={n}]").input_value() for n in ("input", "kernel")
            ] == ["227", "10"]
            assert value(root, "count") == torch_size(227, 10, 4, 0, "ceil")
            keys("[name=round][value=ceil]", "ArrowLeft")
            assert value(root, "count") == torch_size(227, 10, 4, 0, "floor")
            keys("button:has-text('Caffe')", "Enter")
            assert value(root, "count") == 55
        if id == "play-lrn":
            keys("[name=a0]", "ArrowUp", "ArrowUp", "ArrowDown")
            assert value(root, "in0") == 51
            assert text(root, "channel") == "1"
            keys("[name=alpha]", *["ArrowRight"] * 7)
            assert value(root, "alpha") == 5e-4
        if id == "play-crop":
            keys(
                ".frame",
                "ArrowRight",
                "ArrowDown",
                "Shift+ArrowDown",
                "ArrowLeft",
                "ArrowLeft",
            )
            keys("[name=flip]", "Space")
            keys("[name=c1]", "ArrowRight")
            assert values(root)["place"] == "25,15,1"
            assert value(root, "c1") == pytest.approx(0.01)
            keys(".frame", *["Shift+ArrowUp"] * 5)
            assert values(root)["place"] == "0,15,1"


def test_mouse(figure):
    root = figure("play-lrn")
    bar, mouse = root.locator(".track").nth(6), root.page.mouse
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    mouse.move(box["x"] + 9, box["y"] + box["height"] * 0.75)
    mouse.down()
    assert value(root, "in6") == pytest.approx(50, abs=1)
    assert text(root, "channel") == "7"
    mouse.move(box["x"] + 90, box["y"] + box["height"] * 0.25)
    mouse.up()
    assert value(root, "in6") == pytest.approx(150, abs=1)
    mouse.move(box["x"], box["y"] + box["height"] * 0.5)
    assert value(root, "in6") == pytest.approx(150, abs=1)
    root = figure("play-crop", wide=390)  # the picture is drawn smaller than it is
    mouse, stage = root.page.mouse, root.locator(".stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    unit = box["width"] / 256
    mouse.move(box["x"] + 100 * unit, box["y"] + 100 * unit)
    mouse.down()
    mouse.move(box["x"] + 110 * unit, box["y"] + 93 * unit)
    mouse.up()
    assert values(root)["place"] == "9,26,0"


def test_on_a_phone(figure):
    """No sideways scrolling, targets of 40 pixels, and a finger moves things."""
    for id in PAGES:
        root = figure(id, wide=390, has_touch=True, is_mobile=True)
        assert root.evaluate("() => document.documentElement.scrollWidth") <= 390
        assert root.locator("svg, canvas, table, .slot").evaluate_all(
            "all => all.every(e => e.getBoundingClientRect().right <= 390)"
        )
        small = root.evaluate("""r => {
          const target = e =>
            e.matches('[type=radio], [type=checkbox]') ? e.labels[0] : e;
          return [...r.querySelectorAll('form :is(input, button)')]
            .map(e => [e, target(e).getBoundingClientRect()])
            .filter(([e, b]) => b.width < 39.99 || b.height < 39.99)
            .map(([e, b]) => `${e.name || e.textContent} ${b.width} ${b.height}`);
        }""")
        assert small == []
        if id == "play-lrn":
            root.locator(".track").nth(2).tap(position={"x": 20, "y": 40})
            assert value(root, "in2") == pytest.approx(150, abs=3)
            put(root, alpha=-2, **{f"a{i}": 200 for i in range(8)})
            assert root.locator(".slot span").evaluate_all(
                "all => all.every("
                "e => e.getBoundingClientRect().width <= e.parentNode.clientWidth)"
            )
        if id == "play-size":
            root.get_by_role("button", name="input: one less").tap()
            assert root.locator("[name=input]").input_value() == "223"


def test_every_control_has_a_name_and_the_numbers_are_announced(figure):
    for id in PAGES:
        root = figure(id)
        nameless = root.evaluate("""r => {
          const kinds = 'input, button, canvas:not(.stage *), [tabindex]';
          return [...r.querySelectorAll(`form :is(${kinds})`)]
            .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim()))
            .map(e => e.outerHTML);
        }""")
        assert nameless == []
        assert root.locator("[aria-live=polite] [data-out]").count() >= 2
        doubled = root.evaluate("""() => {
          const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
          return ids.length - new Set(ids).size;
        }""")
        assert doubled == 0


CONTRAST = """r => {
  const canvas = document.createElement('canvas');
  const paint = canvas.getContext('2d', { willReadFrequently: true });
  const mix = layers => {
    for (const c of layers) { paint.fillStyle = c; paint.fillRect(0, 0, 1, 1); }
    return [...paint.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const linear = v => v <= 10 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) =>
    .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const paper = getComputedStyle(document.body).backgroundColor;
  const ratio = (ink, under) => {
    const both = [light(mix([...under, ink])), light(mix(under))];
    const [a, b] = both.sort((x, y) => y - x);
    return (a + .05) / (b + .05);
  };
  const all = [...r.querySelectorAll('form *')];
  const shown = all.filter(e => e.getClientRects().length);
  const speaks = e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  const words = shown.filter(speaks).map(e => {
    const under = [paper];
    for (let p = e; p !== r; p = p.parentElement) {
      if (!(p instanceof HTMLElement)) continue;
      under.splice(1, 0, getComputedStyle(p).backgroundColor);
    }
    const { fill, color } = getComputedStyle(e);
    const ink = e instanceof SVGElement ? fill : color;
    return [e.textContent.trim().slice(0, 20), ratio(ink, under), 4.5];
  });
  const mark = part => e => [part, ratio(getComputedStyle(e)[part], [paper]), 3];
  const filled = [...r.querySelectorAll('.track i, .key')];
  const drawn = [...r.querySelectorAll('form :is(.window, .last, .over, .edge)')];
  const marks = filled.map(mark('backgroundColor')).concat(drawn.map(mark('stroke')));
  return words.concat(marks).filter(([, found, wanted]) => found < wanted);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_legible_in_light_and_dark(figure, scheme):
    for id in PAGES:
        assert figure(id, color_scheme=scheme).evaluate(CONTRAST) == []


def test_reduced_motion(figure):
    def seconds(**options):
        return (
            figure("play-lrn", **options)
            .locator(".track i")
            .first.evaluate("e => getComputedStyle(e).transitionDuration")
        )

    assert seconds(reduced_motion="reduce") == "0s"
    assert seconds(reduced_motion="no-preference") != "0s"


@pytest.mark.parametrize("id", PAGES)
def test_without_script_there_is_a_picture(figure, id):
    root = figure(id, script=False)
    assert root.locator(".still").is_visible()
    assert not root.locator("form").is_visible()
    pictures = root.locator(".still > svg, .still .panel svg")
    assert pictures.count() == (4 if id == "play-size" else 1)
    for picture in pictures.all():
        box = picture.bounding_box()
        assert picture.get_attribute("role") == "img"
        assert len(picture.get_attribute("aria-label")) > 30
        assert box["width"] > 200
        assert box["height"] > 80
    root = figure(id)
    assert not root.locator(".still").is_visible()
    assert root.locator("form").is_visible()
