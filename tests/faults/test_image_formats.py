"""Formats that are not opened, and pixels of another range than 0 to 255."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin, TiffTags
from sklearn.datasets import load_sample_image

from alexnet_nb.preprocessing import decode_jpeg, load_image, resize_center_crop
from helpers.images import QUIET, noise_images
from helpers.packing import pack_folder


def test_only_the_documented_formats_are_opened(tmp_path):
    """Whatever Pillow can write is tried under the name of a JPEG.

    And as a stored JPEG.
    """
    Image.init()
    opened = set()
    for name in sorted(set(Image.SAVE) & set(Image.OPEN)):
        for mode in ("RGB", "RGBA", "L", "P", "1", "F"):
            file = io.BytesIO()
            try:
                Image.new(mode, (32, 32)).save(file, name)
            except Exception:
                continue
            (tmp_path / "x.jpg").write_bytes(file.getvalue())
            try:
                load_image(tmp_path / "x.jpg", 16)
            except Exception:
                pass
            else:
                opened.add(name)
            if name not in ("JPEG", "MPO"):
                with pytest.raises(Exception, match=r"identify|JPEG|image file"):
                    decode_jpeg(file.getvalue())
            break
    assert opened <= {"JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF"}
    assert {"JPEG", "PNG", "BMP", "TIFF", "GIF"} <= opened


def test_ghostscript_is_not_started(tmp_path, monkeypatch):
    """By a file of an image folder, or by what stands for a JPEG in a packed set."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho called >> {tmp_path}/called\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\n%%EndComments\n"
    (tmp_path / "x.jpg").write_bytes(postscript)
    for read in (
        lambda: load_image(tmp_path / "x.jpg"),
        lambda: decode_jpeg(postscript),
    ):
        with pytest.raises(OSError, match="identify"):
            read()
    assert not (tmp_path / "called").exists()


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def tiff(tags=(), **options):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in dict(tags).items():
        info[tag] = value
        info.tagtype[tag] = TiffTags.DOUBLE
    return {"format": "TIFF", "tiffinfo": info, **options}


def twelve_bit_tiff(values):
    """A TIFF that says that it has 12 bits.

    Pillow reads these and cannot write them.
    """
    high, low = values.reshape(-1, 2).T
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], 1)
    data = packed.astype(np.uint8).tobytes()
    height, width = values.shape
    entries = [
        (256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8),
        (277, 1), (278, height), (279, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    for tag, value in entries:
        directory += struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


def ramp(scale, kind):
    values = RAMP * scale
    if np.issubdtype(kind, np.integer):
        values = values.round()
    return Image.fromarray(values.astype(kind))


KNOWN_RANGES = {
    "16-bit PNG": (ramp(65535, np.uint16), {"format": "PNG"}),
    "16-bit TIFF": (ramp(65535, np.uint16), tiff()),
    "12 bits, declared by its range": (
        ramp(4095, np.uint16),
        tiff({340: 0, 341: 4095}),
    ),
    "float, declared": (ramp(1, np.float32), tiff({340: 0.0, 341: 1.0})),
    "32-bit, declared": (ramp(2_000_000, np.int32), tiff({340: 0, 341: 2_000_000})),
}


def read_saved(tmp_path, image, format, **options):
    path = tmp_path / f"x.{format.lower()}"
    image.save(path, format, **options)
    return load_image(path, 64)


@pytest.mark.parametrize("name", KNOWN_RANGES)
def test_a_declared_range_becomes_0_to_255(tmp_path, name):
    image, options = KNOWN_RANGES[name]
    found = read_saved(tmp_path, image, **options)
    assert np.abs(found - RAMP * 255).max() <= 1


def test_12_declared_bits_become_0_to_255(tmp_path):
    file = twelve_bit_tiff((RAMP * 4095).round().astype(np.int64))
    (tmp_path / "x.tif").write_bytes(file)
    assert np.abs(load_image(tmp_path / "x.tif", 64) - RAMP * 255).max() <= 1


def rgb_ramp_png(scale):
    """A PNG with 16 bits a color, which Pillow reads and cannot write."""
    rows = (RAMP * scale).round().astype(">u2")
    raw = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        crc = zlib.crc32(kind + data)
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
    return file


def test_16_bits_a_color(tmp_path):
    """All of them, and 12 of them, which Pillow alone would make 0 to 15."""
    path = tmp_path / "x.png"
    path.write_bytes(rgb_ramp_png(65535))
    assert np.abs(load_image(path, 64) - RAMP * 255).max() <= 1
    path.write_bytes(rgb_ramp_png(4095))
    with pytest.raises(ValueError, match="got 16-bit pixels up to 4095, which are 12"):
        load_image(path, 64)


UNKNOWN_RANGES = {
    "12 bits in 16, PNG": (ramp(4095, np.uint16), {"format": "PNG"}),
    "12 bits in 16, TIFF": (ramp(4095, np.uint16), tiff()),
    "8 bits in 16": (ramp(255, np.uint16), {"format": "PNG"}),
    "float of 0 to 1": (ramp(1, np.float32), tiff()),
    "float of 0 to 255": (ramp(255, np.float32), tiff()),
    "32-bit integers": (ramp(255, np.int32), tiff()),
    "large 32-bit integers": (ramp(2**31 - 1, np.int32), tiff()),
    "more than declared": (ramp(255, np.float32), tiff({340: 0.0, 341: 1.0})),
    "not a number": (ramp(np.nan, np.float32), tiff({340: 0.0, 341: 1.0})),
    "an empty range": (ramp(1, np.float32), tiff({340: 1.0, 341: 1.0})),
}


@pytest.mark.parametrize("name", UNKNOWN_RANGES)
def test_an_unknown_range_is_left_out_by_name_and_never_black(tmp_path, name):
    image, options = UNKNOWN_RANGES[name]
    noise_images(tmp_path / "in")
    image.save(tmp_path / "in/a/odd.tif", **options)
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET)
    ((path, reason),) = packed.meta["unread"]
    assert path == "a/odd.tif"
    assert reason.startswith("ValueError: image: got ")
    assert "expected" in reason
    assert len(packed.train) + len(packed.val) == 24


def test_modes_with_an_a_in_their_name(tmp_path):
    """LAB has no transparency; La is LA with its gray multiplied by it."""
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((160, 120))
    expected = np.asarray(resize_center_crop(photo, 64)).astype(int)
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab = ImageCms.applyTransform(
        photo, ImageCms.buildTransform(*profiles, "RGB", "LAB")
    )
    found = read_saved(tmp_path, lab, "TIFF").transpose(1, 2, 0)
    assert np.abs(found - expected).mean() < 5
    gray = np.asarray(resize_center_crop(photo.convert("L"), 64)).astype(int)
    for mode in ("LA", "La"):
        found = np.asarray(resize_center_crop(photo.convert("LA").convert(mode), 64))
        assert np.abs(found - gray).mean() < 2
    for mode in ("PA", "RGBa"):
        found = resize_center_crop(
            photo.convert("RGBA").convert("P" if mode == "PA" else mode)
        )
        assert np.asarray(found).std() > 10
