"""Images of textures: a small network tells them apart, shrunk pixels do not."""

import numpy as np
from PIL import Image

NAMES = ("checked", "diagonal", "horizontal", "plain", "vertical")


def texture(name, size, rng):
    """Draw one image; colors, contrast, place and noise are random."""
    y, x = np.mgrid[:size, :size] * (2 * np.pi / 8)
    a, b = rng.uniform(0, 2 * np.pi, 2)
    waves = {
        "checked": np.sign(np.sin(x + a) * np.sin(y + b)),
        "diagonal": np.sign(np.sin(x + y + a)),
        "horizontal": np.sign(np.sin(y + a)),
        "plain": np.zeros((size, size)),
        "vertical": np.sign(np.sin(x + a)),
    }
    wave = rng.uniform(50, 90) * waves[name]
    noise = rng.normal(0, 10, (size, size, 3))
    pixels = rng.integers(100, 156, 3) + wave[..., None] + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def texture_folder(folder, names=NAMES, count=40, size=72, seed=0):
    """Write `count` images a class to a folder of each name; names repeat textures."""
    rng = np.random.default_rng(seed)
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            image = texture(NAMES[i % len(NAMES)], size, rng)
            image.save(folder / name / f"{j}.png")
    return folder
