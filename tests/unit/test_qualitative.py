"""Figures 3 and 4: the first kernels, the best guesses, the nearest images."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from alexnet_nb.augmentation import InputTransform
from alexnet_nb.model import AlexNet
from alexnet_nb.qualitative import (
    draw_predictions,
    hidden_features,
    kernel_sheet,
    nearest,
)
from alexnet_nb.recipes import paper
from helpers.nets import small


@pytest.mark.parametrize("count", [8, 10])
def test_every_kernel_has_its_place_on_the_sheet(count):
    """Ten kernels of two columns leave gaps in rows of four."""
    weight = torch.randn(count, 3, 5, 5)
    sheet = kernel_sheet(weight, columns=2, across=4)
    rows = -(-count // 2 // 4)
    for number, kernel in enumerate(weight):
        column, place = divmod(number, count // 2)
        top = 7 * (rows * column + place // 4) + 3 * column + 1
        left = 7 * (place % 4) + 1
        scaled = (kernel - kernel.min()) / (kernel.max() - kernel.min())
        found = sheet[top : top + 5, left : left + 5].permute(2, 0, 1)
        torch.testing.assert_close(found, scaled)
    assert sheet.shape == (2 * 7 * rows + 3, 4 * 7, 3)


def test_bars_are_the_five_best_and_the_label_is_colored():
    p = torch.tensor([[0.02, 0.1, 0.5, 0.08, 0.25, 0.05]])
    figure = draw_predictions(np.zeros((1, 4, 4, 3)), [4], p, "abcdef")
    top, bars = figure.axes
    assert top.get_title() == "e"
    assert [text.get_text() for text in bars.texts] == list("cebdf")
    widths = [bar.get_width() for bar in bars.patches]
    assert widths == pytest.approx([0.5, 0.25, 0.1, 0.08, 0.05])
    colors = [bar.get_facecolor() for bar in bars.patches]
    assert [color == colors[1] for color in colors] == [False, True, *[False] * 3]
    plt.close(figure)


def test_hidden_features_do_not_depend_on_the_batch():
    recipe = small(paper)
    images = np.random.default_rng().integers(0, 256, (5, 3, 80, 80), np.uint8)
    transform = InputTransform(recipe, np.full((3, 80, 80), 128.0), np.eye(3))
    model = AlexNet(recipe, 10)
    found = hidden_features(model, transform, images, batch=2)
    central = transform.test_crops(torch.tensor(images), 1)[0]
    with torch.no_grad():
        expected = model.eval().forward_features(central)
    torch.testing.assert_close(found, expected)


def test_nearest_equals_a_plain_search():
    features = torch.randn(40, 6)
    for query, found in zip(
        features[:4], nearest(features[:4], features, k=5), strict=True
    ):
        distances = [(query - other).norm().item() for other in features]
        assert found.tolist() == sorted(range(40), key=distances.__getitem__)[:5]
