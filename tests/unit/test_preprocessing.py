"""Odd images become squares as PIL and torchvision would make them."""

import io
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms

from alexnet_nb import preprocessing
from alexnet_nb.preprocessing import (
    decode_jpeg,
    fast_jpeg_decoder,
    load_image,
    pixel_statistics,
    resize_center_crop,
)
from helpers.images import PHOTO, jpegs


def square(image):
    return np.asarray(resize_center_crop(image)).transpose(2, 0, 1).astype(int)


def saved(tmp_path, name, image, **options):
    image.save(tmp_path / name, **options)
    return load_image(tmp_path / name).astype(int)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    return exif


ODD = {
    "ycck.jpg": (PHOTO.convert("CMYK"), dict(keep_rgb=False)),
    "gray.jpg": (PHOTO.convert("L"), {}),
    "cmyk.jpg": (PHOTO.convert("CMYK"), {}),
    "progressive.jpg": (PHOTO, dict(progressive=True)),
    "444.jpg": (PHOTO, dict(subsampling=0)),
    "422.jpg": (PHOTO, dict(subsampling=1)),
    "palette.png": (PHOTO.quantize(256), {}),
    "photo.webp": (PHOTO, {}),
    "alpha.png": (PHOTO.convert("RGBA"), {}),
    "photo.tif": (PHOTO, {}),
    "photo.gif": (PHOTO.quantize(256), {}),
    "turned.jpg": (PHOTO.rotate(90, expand=True), dict(exif=rotated())),
    "16.png": (
        Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257),
        {},
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures(tmp_path, name):
    image, options = ODD[name]
    found, expected = (
        saved(tmp_path, name, image, **options),
        square(PHOTO.convert("L") if name in ("gray.jpg", "16.png") else PHOTO),
    )
    assert found.shape == (3, 256, 256)
    assert np.abs(found - expected).mean() < (
        9 if "CMYK" in image.mode or image.mode == "P" else 5
    )


def test_a_png_named_jpeg_and_transparency(tmp_path):
    PHOTO.save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo.JPEG")
    assert (load_image(tmp_path / "photo.JPEG") == square(PHOTO)).all()
    clear = PHOTO.convert("RGBA")
    clear.putalpha(0)
    assert (saved(tmp_path, "clear.png", clear) == 255).all()


@pytest.mark.parametrize("size", [(1, 300), (640, 1), (1, 1), (20_000, 30)])
def test_extreme_shapes(tmp_path, size):
    for name in ("x.png", "x.jpg"):
        assert saved(tmp_path, name, Image.new("RGB", size, (200, 100, 50))).shape == (
            3,
            256,
            256,
        )


@pytest.mark.parametrize("decoder", ["fast", "PIL"])
def test_fast_jpegs_equal_pil(tmp_path, monkeypatch, decoder):
    """To within 2 gray levels in any picture, 0.5 on average.

    Of PIL with torchvision's Resize and CenterCrop; without a fast decoder, too.
    """
    if decoder == "PIL":
        monkeypatch.setattr(preprocessing, "fast_jpeg_decoder", lambda: None)
    jpegs(tmp_path)
    usual, gaps = (
        transforms.Compose([transforms.Resize(256), transforms.CenterCrop(256)]),
        [],
    )
    for path in tmp_path.rglob("*.jpg"):
        with Image.open(path) as image:
            gaps.append(
                np.abs(
                    load_image(path).astype(int)
                    - np.asarray(usual(image.convert("RGB"))).transpose(2, 0, 1)
                )
            )
    assert max(g.max() for g in gaps) <= 2
    assert np.mean(gaps) <= 0.5


@pytest.fixture
def chosen(monkeypatch):
    """Which decoder is taken beside a version of torchvision."""

    def choose(version, torchcodec):
        monkeypatch.setattr("torchvision.__version__", version)
        module = None if torchcodec is None else SimpleNamespace(**torchcodec)
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
        return fast_jpeg_decoder.__wrapped__()

    return choose


def test_no_deprecated_decoder_is_taken(chosen):
    """Torchcodec's, torchvision's before 0.29, or none; so there is nothing to hide."""
    assert chosen("0.29.1+cu130", None) is None
    assert chosen("1.0.0", None) is None
    assert chosen("0.26.0", None).func is torchvision.io.decode_jpeg
    assert chosen("0.26.0", dict(decode_jpeg=len)).func is len
    # a torchcodec before 0.16 has no decoder of images
    assert chosen("0.29.1", {}) is None


def test_decoding_warns_of_nothing():
    raw = io.BytesIO()
    PHOTO.save(raw, "JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_jpeg(raw.getvalue())


@pytest.mark.skipif(fast_jpeg_decoder() is None, reason="no fast decoder of JPEGs")
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_decoders_agree_to_the_bit(monkeypatch, mode, progressive):
    """So what is packed does not depend on what is installed."""
    file = io.BytesIO()
    PHOTO.convert(mode).save(file, "JPEG", quality=90, progressive=progressive)
    fast = decode_jpeg(file.getvalue())
    monkeypatch.setattr(preprocessing, "fast_jpeg_decoder", lambda: None)
    assert torch.equal(fast, decode_jpeg(file.getvalue()))


def test_statistics_equal_two_passes():
    rng = np.random.default_rng()
    images = rng.integers(0, 256, (600, 3, 12, 12), np.uint8)
    for processes in (0, 2):
        mean, cov = pixel_statistics(images, processes)
        pixels = images.transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64)
        np.testing.assert_allclose(mean, images.mean(0, np.float64), rtol=1e-9)
        np.testing.assert_allclose(cov, np.cov(pixels, bias=True), rtol=1e-9)
