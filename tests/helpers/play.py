"""The figures to play with, as a reader uses them."""

import torch
from torch.nn import functional as F

PAGES = {"play-size": "model", "play-lrn": "lrn", "play-crop": "augmentation"}


NOTEBOOKS = {
    "play-size": "06_model",
    "play-lrn": "04_lrn",
    "play-crop": "07_augmentation",
}


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
        "r => Object.fromEntries([...r.querySelectorAll('[data-out]')]"
        f".map(e => [e.dataset.out, e.{words}]))"
    )


def text(root, name):
    return root.locator(f'[data-out="{name}"]').text_content()


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
