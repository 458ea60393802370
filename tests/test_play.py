"""The figures to play with show the package's numbers, with a mouse, a finger or the keyboard alone, and a picture without JavaScript."""

import base64
import json
import random
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F

from alexnet_nb.augmentation import AugmentParams, InputTransform, color_axes
from alexnet_nb.lrn import lrn
from alexnet_nb.pooling import output_size
from alexnet_nb.preprocessing import pixel_statistics, resize_center_crop
from alexnet_nb.recipes import paper

PAGES = {"play-size": "model", "play-lrn": "lrn", "play-crop": "augmentation"}
NOTEBOOKS = {
    "play-size": "06_model",
    "play-lrn": "04_lrn",
    "play-crop": "07_augmentation",
}


@pytest.fixture
def figure(site, browser):
    """Opens the page of a figure; returns its root. Nothing may fail on the page, or be fetched from elsewhere."""
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
            f"let seed = {seed}; Math.random = () => (seed = (seed * 48271) % 2147483647) / 2147483647"
        )
        page.goto((site / f"{PAGES[id]}.html").as_uri())
        root = page.locator(f"#{id}")
        root.locator("form" if script else ".still").wait_for(timeout=10_000)
        return root

    yield start
    for context in contexts:
        context.close()
    assert faults == []


def put(root, **values):
    """Sets controls by name, as a reader would."""
    for name, value in values.items():
        control = root.locator(f"[name={name}]")
        if control.count() > 1:
            root.locator(f"[name={name}][value={value}]").check()
        elif control.get_attribute("type") == "checkbox":
            control.set_checked(value)
        else:
            control.fill(str(value))


def value(root, name):
    return float(root.locator(f'[data-out="{name}"]').get_attribute("data-value"))


def values(root, words="dataset.value"):
    """Every number of a figure by name, or every text."""
    return root.evaluate(
        f"r => Object.fromEntries([...r.querySelectorAll('[data-out]')].map(e => [e.dataset.out, e.{words}]))"
    )


def text(root, name):
    return root.locator(f'[data-out="{name}"]').text_content()


# --- output size


def torch_size(size, kernel, stride, pad, way):
    """How many windows torch counts; 0 where it refuses."""
    try:
        if way == "ceil":
            return F.max_pool1d(
                torch.zeros(1, 1, size), kernel, stride, pad, ceil_mode=True
            ).shape[-1]
        return F.conv1d(
            torch.zeros(1, 1, size),
            torch.zeros(1, 1, kernel),
            stride=stride,
            padding=pad,
        ).shape[-1]
    except RuntimeError:
        return 0


def test_output_size_is_torchs(figure):
    root, draw, seen = figure("play-size"), random.Random(0), []
    for i in range(64):
        size, kernel, stride, way = (
            draw.randint(1, draw.choice([6, 20, 300])),
            draw.randint(1, 12),
            draw.randint(1, 8),
            ("floor", "ceil")[i % 2],
        )
        pad = draw.randint(0, kernel // 2 if way == "ceil" else 8)
        put(root, input=size, kernel=kernel, stride=stride, pad=pad, round=way)
        settings, count = (
            (size, kernel, stride, pad, way),
            torch_size(size, kernel, stride, pad, way),
        )
        says = values(root, "textContent")
        assert value(root, "count") == count, settings
        assert says["count"].split()[0] == str(count), settings
        assert root.locator("svg").nth(4).locator(".window").count() == count, settings
        dropped = "torch does not count it" in says["last"]
        assert dropped == (
            way == "ceil"
            and count > 0
            and output_size(size, kernel, stride, pad, True) == count + 1
        ), settings
        if count and not dropped:
            assert output_size(size, kernel, stride, pad, way == "ceil") == count, (
                settings
            )
        if count:
            first, last = map(
                int,
                re.search(
                    r"pixels (\S+) to (\S+?)[ ,;]", says["last"].replace("−", "-")
                ).groups(),
            )
            assert (first, last) == (
                start := (count - 1) * stride - pad,
                start + kernel - 1,
            ), settings
            hangs = re.search(r"hangs (\d+)", says["last"])
            assert int(hangs[1] if hangs else 0) == max(0, last + 1 - size - pad), (
                settings
            )
            left = re.search(r"(\d+) pixels? at the end", says["last"])
            assert int(left[1] if left else 0) == max(0, size - last - 1), settings
        seen.append((count == 0, dropped, way))
    assert sum(s[0] for s in seen) >= 3
    assert sum(s[1] for s in seen) >= 3


def test_presets_of_the_output_size(figure):
    root = figure("play-size")
    for words, count in {
        "the source: 224, rounded up": 55,
        "rounded down": 54,
        "Caffe: 227": 55,
        "torchvision: pad 2": 55,
    }.items():
        button = root.get_by_role("button", name=words, exact=True)
        button.click()
        assert value(root, "count") == count
        assert root.locator('[aria-pressed="true"]').all_text_contents() == [words]
    root.get_by_role("button", name="input: one more").click()
    assert root.locator("[name=input]").input_value() == "225"
    assert root.locator('[aria-pressed="true"]').count() == 0


# --- response normalization


def test_normalized_values_are_lrns(figure):
    root, draw = figure("play-lrn"), random.Random(1)
    for _ in range(24):
        a, chosen = [draw.randint(0, 200) for _ in range(8)], draw.randrange(8)
        k, exponent, n, beta = (
            draw.randint(10, 40) / 10,
            draw.randint(-60, -20) / 10,
            draw.choice([1, 3, 5, 7]),
            draw.randint(0, 20) / 20,
        )
        put(
            root,
            **{f"a{i}": x for i, x in enumerate(a)},
            k=k,
            alpha=exponent,
            n=n,
            beta=beta,
        )
        root.locator(f"[name=a{chosen}]").focus()
        alpha, x = (
            float(f"{10**exponent:.1e}"),
            torch.tensor(a, dtype=torch.float64)[None],
        )
        assert value(root, "alpha") == alpha
        assert text(root, "channel") == str(chosen + 1)
        for over in ("sum", "mean"):
            put(root, over=over)
            wanted, found = lrn(x, n, k, alpha, beta, over)[0].tolist(), values(root)
            assert [float(found[f"out{i}"]) for i in range(8)] == pytest.approx(
                wanted, rel=1e-6
            ), (a, k, alpha, n, beta, over)
            shown = values(root, "textContent")
            assert [float(shown[f"out{i}"]) for i in range(8)] == pytest.approx(
                wanted, abs=0.0501
            )
            some = x.clamp(
                min=1e-9
            )  # a factor is output over input, and some inputs are 0
            factors = (lrn(some, n, k, alpha, beta, over) / some)[0].tolist()
            assert [float(found[f"factor{i}"]) for i in range(8)] == pytest.approx(
                factors, rel=1e-6
            )
            assert (
                float(found["factor"])
                == float(found[f"{over}-factor"])
                == pytest.approx(factors[chosen], rel=1e-6)
            )
            assert float(found[f"{over}-out"]) == pytest.approx(
                wanted[chosen], rel=1e-6
            )
            bars = root.locator(".slot").evaluate_all(
                "slots => slots.map(s => [+s.style.getPropertyValue('--out'), s.matches('.near')])"
            )
            assert [h for h, _ in bars] == pytest.approx(
                [w / 200 for w in wanted], rel=1e-6
            )
            assert [near for _, near in bars] == [
                abs(i - chosen) <= n // 2 for i in range(8)
            ]
        assert lrn(x, n, k, value(root, "same"), beta, "mean")[
            0
        ].tolist() == pytest.approx(lrn(x, n, k, alpha, beta)[0].tolist(), rel=1e-6)


def test_presets_of_the_normalization(figure):
    root = figure("play-lrn")
    x = torch.tensor([value(root, f"in{i}") for i in range(8)], dtype=torch.float64)[
        None, :, None
    ]
    layers = {
        "the paper": lrn,
        "the source": lambda x: lrn(x, alpha_over="mean"),
        "nn.LocalResponseNorm(5)": torch.nn.LocalResponseNorm(5),
    }
    for words, layer in layers.items():
        root.get_by_role("button", name=words, exact=True).click()
        assert [value(root, f"out{i}") for i in range(8)] == pytest.approx(
            layer(x).flatten().tolist(), rel=1e-6
        ), words


# --- crop, mirror, color

PIXELS = """async (e, source) => {
  let canvas = e;
  if (source) {
    const picture = new Image(); picture.src = e.getAttribute("href"); await picture.decode();
    canvas = Object.assign(document.createElement("canvas"), { width: 256, height: 256 });
    canvas.getContext("2d").drawImage(picture, 0, 0);
  }
  let bytes = "";
  for (const b of canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data) bytes += String.fromCharCode(b);
  return btoa(bytes);
}"""


def pixels(locator, source=False):
    """3 × side × side, of a canvas or of the embedded photograph."""
    flat = np.frombuffer(base64.b64decode(locator.evaluate(PIXELS, source)), np.uint8)
    side = round((len(flat) / 4) ** 0.5)
    return torch.from_numpy(
        flat.reshape(side, side, 4)[..., :3].transpose(2, 0, 1).copy()
    )


@pytest.fixture(scope="module")
def temple():
    """The photograph of the figure as the package prepares it, and its covariance."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photo = (
        np.asarray(resize_center_crop(Image.fromarray(load_sample_image("china.jpg"))))
        .transpose(2, 0, 1)
        .copy()
    )
    return torch.from_numpy(photo), pixel_statistics(photo[None])[1]


def as_trained(photo, cov, axes, top, left, flip, factors):
    """What the package makes of these choices, and the shift, before a mean is subtracted. An axis may point either way."""
    ours, see = (
        color_axes(cov),
        InputTransform(paper, np.zeros((3, 256, 256)), cov, dtype=torch.float64),
    )
    ways = (ours.flip(1) * axes).sum(0).sign()
    draws = AugmentParams(
        torch.tensor([[top, left]]),
        torch.tensor([flip]),
        (torch.tensor(factors, dtype=torch.float64) * ways).flip(0)[None],
    )
    return see.train(photo[None], draws)[0], ours @ draws.color[0]


def page_axes(root):
    return torch.tensor(
        json.loads(root.locator("form").get_attribute("data-axes")), dtype=torch.float64
    )


def agrees(root, photo, cov, axes, *choices):
    """Does the canvas hold these pixels, and do the words give this shift?"""
    wanted, shift = as_trained(photo, cov, axes, *choices)
    assert [value(root, c) for c in ("red", "green", "blue")] == pytest.approx(
        shift.tolist(), rel=1e-6, abs=1e-9
    ), choices
    shown = [float(text(root, c).replace("−", "-")) for c in ("red", "green", "blue")]
    assert shown == pytest.approx(shift.tolist(), abs=0.0501)
    found = pixels(root.locator("canvas").nth(1)).double()
    corners = (slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
    assert torch.equal(found[corners], wanted.clamp(0, 255).round()[corners]), choices
    assert torch.equal(found, wanted.clamp(0, 255).round()), choices


def test_crop_and_colors_are_the_packages(figure, temple):
    root, draw, (photo, cov) = figure("play-crop"), random.Random(2), temple
    shown = pixels(root.locator("image"), source=True)
    assert (shown.double() - photo).abs().mean() < 6  # the photograph, as JPEG
    axes = page_axes(root)
    torch.testing.assert_close(
        axes.abs(), color_axes(cov).flip(1).abs(), rtol=1e-6, atol=1e-6
    )
    assert float(root.locator("form").get_attribute("data-std")) == paper.color_std
    assert value(root, "crops") == 2178
    assert text(root, "crops") == "33 · 33 · 2 = 2,178"
    extremes = [
        (0, 0, False, -30, 30, 0),
        (32, 32, True, 30, 30, 30),
        (0, 32, True, 0, 0, 0),
    ]
    others = [
        (
            draw.randint(0, 32),
            draw.randint(0, 32),
            draw.random() < 0.5,
            *(draw.randint(-30, 30) for _ in range(3)),
        )
        for _ in range(11)
    ]
    for top, left, flip, *tenths in extremes + others:
        put(
            root,
            top=top,
            left=left,
            flip=flip,
            **{f"c{i}": t / 10 for i, t in enumerate(tenths, 1)},
        )
        agrees(
            root,
            shown,
            cov,
            axes,
            top,
            left,
            flip,
            [paper.color_std * t / 10 for t in tenths],
        )
        frame = root.locator(".frame").evaluate(
            "e => [e.offsetTop, e.offsetLeft, e.offsetWidth].map(x => x * 256 / e.parentNode.clientWidth)"
        )
        assert frame == pytest.approx([top, left, 224], abs=1)


def test_draw_one_draws_as_training_does(figure, temple):
    root, drawn = figure("play-crop"), []
    shown, axes = pixels(root.locator("image"), source=True), page_axes(root)
    for i in range(60):
        root.get_by_role("button", name="Draw one").click()
        found = values(root)
        top, left, flip = map(int, found["place"].split(","))
        drawn.append((top, left, flip, *(float(found[f"c{j}"]) for j in (1, 2, 3))))
        if i % 12 == 0:
            agrees(root, shown, temple[1], axes, top, left, bool(flip), drawn[-1][3:])
    places, flips, factors = (
        np.array(drawn)[:, :2],
        np.array(drawn)[:, 2],
        np.array(drawn)[:, 3:],
    )
    assert places.min() in range(0, 4)
    assert places.max() in range(29, 33)
    assert (places % 1 == 0).all()
    assert 15 < flips.sum() < 45
    assert factors.std() == pytest.approx(paper.color_std, rel=0.2)
    assert abs(factors.mean()) < 0.03
    assert (
        abs(factors * 100 - (factors * 100).round()).max() > 0.1
    )  # exact, not in the slider's steps
    root.get_by_role("button", name="Reset").click()
    assert values(root)["place"] == "16,16,0"
    assert [value(root, c) for c in ("red", "green", "blue")] == [0, 0, 0]


# --- hands


def test_keyboard_alone(figure):
    for id in PAGES:
        root = figure(id)
        wanted = root.evaluate("""r => [...r.querySelectorAll('form :is(input, button, [tabindex])')]
            .filter(e => e.tabIndex >= 0 && !(e.type === 'radio' && !e.checked)).length""")
        root.evaluate(
            "r => { const a = document.createElement('a'); a.href = '#'; r.before(a); a.focus() }"
        )
        for i in range(wanted):
            root.page.keyboard.press("Tab")
            assert root.evaluate("r => r.contains(document.activeElement)"), (
                f"{id}: {i} of {wanted} controls"
            )
            assert (
                root.evaluate(
                    "r => { const e = document.activeElement; return getComputedStyle(e.closest('.slot') || e).outlineStyle }"
                )
                != "none"
            )
        root.page.keyboard.press("Tab")
        assert not root.evaluate("r => r.contains(document.activeElement)")

        def keys(name, *presses):
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
        small = root.evaluate("""r => [...r.querySelectorAll('form :is(input, button)')]
            .map(e => [e, (e.matches('[type=radio], [type=checkbox]') ? e.labels[0] : e).getBoundingClientRect()])
            .filter(([e, b]) => b.width < 39.99 || b.height < 39.99).map(([e, b]) => `${e.name || e.textContent} ${b.width} ${b.height}`)""")
        assert small == []
        if id == "play-lrn":
            root.locator(".track").nth(2).tap(position={"x": 20, "y": 40})
            assert value(root, "in2") == pytest.approx(150, abs=3)
            put(root, alpha=-2, **{f"a{i}": 200 for i in range(8)})
            assert root.locator(".slot span").evaluate_all(
                "all => all.every(e => e.getBoundingClientRect().width <= e.parentNode.clientWidth)"
            )
        if id == "play-size":
            root.get_by_role("button", name="input: one less").tap()
            assert root.locator("[name=input]").input_value() == "223"


def test_every_control_has_a_name_and_the_numbers_are_announced(figure):
    for id in PAGES:
        root = figure(id)
        nameless = root.evaluate("""r => [...r.querySelectorAll('form :is(input, button, canvas:not(.stage *), [tabindex])')]
            .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)""")
        assert nameless == []
        assert root.locator("[aria-live=polite] [data-out]").count() >= 2
        assert (
            root.evaluate(
                "r => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id); return ids.length - new Set(ids).size }"
            )
            == 0
        )


# --- eyes

CONTRAST = """r => {
  const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const mix = layers => {
    for (const c of layers) { paint.fillStyle = c; paint.fillRect(0, 0, 1, 1); }
    return [...paint.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  };
  const linear = v => v <= 10 ? v / 3294.6 : ((v / 255 + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const paper = getComputedStyle(document.body).backgroundColor;
  const ratio = (ink, under) => {
    const [a, b] = [light(mix([...under, ink])), light(mix(under))].sort((x, y) => y - x);
    return (a + .05) / (b + .05);
  };
  const shown = [...r.querySelectorAll('form *')].filter(e => e.getClientRects().length);
  const words = shown.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(e => {
    const under = [paper];
    for (let p = e; p !== r; p = p.parentElement) if (p instanceof HTMLElement) under.splice(1, 0, getComputedStyle(p).backgroundColor);
    return [e.textContent.trim().slice(0, 20), ratio(e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color, under), 4.5];
  });
  const mark = part => e => [part, ratio(getComputedStyle(e)[part], [paper]), 3];
  const marks = [...r.querySelectorAll('.track i, .key')].map(mark('backgroundColor'))
    .concat([...r.querySelectorAll('form :is(.window, .last, .over, .edge)')].map(mark('stroke')));
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


@pytest.mark.parametrize("id", PAGES)
def test_pages_hold_the_script_and_the_styles(id):
    """A page embeds both files; run its notebook again after a change."""
    nb = json.loads((ROOT / f"nbs/{NOTEBOOKS[id]}.ipynb").read_text())
    outputs = [
        "".join(o.get("data", {}).get("text/html", ""))
        for c in nb["cells"]
        for o in c.get("outputs", [])
    ]
    (page,) = [o for o in outputs if f'id="{id}"' in o]
    for name in ("play.js", "play.css"):
        assert (ROOT / "nbs/assets" / name).read_text() in page, name
    if id == "play-crop":
        assert len(base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])) < 40_000
