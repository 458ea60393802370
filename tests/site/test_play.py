"""The figures to play with show the package's numbers."""

import base64
import json
import random
import re

import numpy as np
import pytest
import torch

from alexnet_nb.augmentation import AugmentParams, InputTransform, color_axes
from alexnet_nb.lrn import lrn
from alexnet_nb.pooling import output_size
from alexnet_nb.preprocessing import pixel_statistics, resize_center_crop
from alexnet_nb.recipes import paper
from helpers.play import put, text, torch_size, value, values

pytestmark = pytest.mark.browser


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
        "released code: 224, rounded up": 55,
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
                "slots => slots.map("
                "s => [+s.style.getPropertyValue('--out'), s.matches('.near')])"
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
        "the released code": lambda x: lrn(x, alpha_over="mean"),
        "nn.LocalResponseNorm(5)": torch.nn.LocalResponseNorm(5),
    }
    for words, layer in layers.items():
        root.get_by_role("button", name=words, exact=True).click()
        assert [value(root, f"out{i}") for i in range(8)] == pytest.approx(
            layer(x).flatten().tolist(), rel=1e-6
        ), words


PIXELS = """async (e, source) => {
  let canvas = e;
  if (source) {
    const picture = new Image();
    picture.src = e.getAttribute("href");
    await picture.decode();
    canvas = document.createElement("canvas");
    Object.assign(canvas, { width: 256, height: 256 });
    canvas.getContext("2d").drawImage(picture, 0, 0);
  }
  const context = canvas.getContext("2d");
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let bytes = "";
  for (const b of data) bytes += String.fromCharCode(b);
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
    """What the package makes of these choices, and the shift.

    Before a mean is subtracted. An axis may point either way.
    """
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
            "e => [e.offsetTop, e.offsetLeft, e.offsetWidth]"
            ".map(x => x * 256 / e.parentNode.clientWidth)"
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
