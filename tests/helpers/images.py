"""Folders of images to pack, and what is packed of them."""

import hashlib
import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

QUIET = {"progress": lambda line: None}


def noise_images(folder, count=12, num_classes=("a", "b"), size=20):
    """Write random PNG files into the folders of some classes."""
    rng = np.random.default_rng(0)
    for name in num_classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


PHOTO = Image.fromarray(load_sample_image("china.jpg"))


def jpegs(folder, n=12, num_classes=2):
    rng = np.random.default_rng(0)
    for i in range(n):
        left, top = rng.integers(0, 140), rng.integers(0, 52)
        (folder / f"class{i % num_classes}").mkdir(parents=True, exist_ok=True)
        PHOTO.crop((left, top, left + 500, top + 375)).save(
            folder / f"class{i % num_classes}/{i}.jpg",
            quality=int(rng.integers(70, 96)),
        )


def jpeg_strings(images, quality=90):
    """Return PIL images as the bytes of JPEG files."""
    strings = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        strings.append(file.getvalue())
    return strings


def digest(folder):
    return {
        p.name if p.parent == folder else f"{p.parent.name}/{p.name}": hashlib.sha256(
            p.read_bytes()
        ).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
