"""The class reads as the paper does.

The order of its layers, their names, their sizes.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

from alexnet_nb.kernels import ColumnConv2d, FirstConv2d
from alexnet_nb.lab import get_recipe
from alexnet_nb.learning import scale_width
from alexnet_nb.model import AlexNet, draw_network, layer_specs
from alexnet_nb.recipes import LAYERS, RECIPES, paper

STAGES = [
    "conv1",
    "norm1",
    "pool1",
    "conv2",
    "norm2",
    "pool2",
    "conv3",
    "conv4",
    "conv5",
    "pool5",
    "fc6",
    "fc7",
    "fc8",
]


def small(recipe):
    return scale_width(recipe, 1 / 16, 80)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_layers_are_listed_in_the_order_of_the_paper(recipe):
    net = AlexNet(small(recipe), 10)
    assert [name for name, _ in net.named_children()] == [*STAGES, "act"]
    printed = [line.split(")")[0] for line in str(net).splitlines()]
    assert [f"  ({name}" for name in STAGES] == [p for p in printed if p[3:] in STAGES]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_layers_run_in_the_order_of_the_paper(recipe):
    net, ran = AlexNet(small(recipe), 10), []
    for name in STAGES:
        net.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: ran.append(name)
        )
    net(torch.zeros(1, 3, 80, 80))
    assert ran == STAGES


def test_a_normalization_of_the_notes_stands_before_its_pooling():
    names = [name for name, _ in AlexNet(small(get_recipe("lab-149"))).named_children()]
    assert names[names.index("conv5") :][:3] == ["conv5", "norm5", "pool5"]


@pytest.mark.parametrize("column", [None, 0, 1])
def test_names_of_the_weights_are_those_of_the_layers(column):
    layers = LAYERS if column != 1 else LAYERS[:-1]
    expected = [f"{name}.{part}" for name in layers for part in ("weight", "bias")]
    assert list(AlexNet(small(paper), 10, column).state_dict()) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [("kernels", (95, 256, 384, 384, 256)), ("hidden", (4096, 4095))],
)
def test_unequal_columns_are_refused_by_name(field, value):
    with pytest.raises(
        ValueError, match=rf"^{field}: got .*, expected multiples of 2; "
    ):
        layer_specs(replace(paper, **{field: value}))


def test_the_drawing_has_a_line_for_all_that_is_read():
    for recipe in RECIPES.values():
        specs = layer_specs(recipe)
        blocks = [1 if spec.name == "fc8" else recipe.columns for spec in specs]
        lines = 0
        for i, spec in enumerate(specs[1:]):
            pairs = blocks[i] * blocks[i + 1]
            lines += pairs if spec.groups == 1 else blocks[i]
        assert draw_network(recipe).count("<path") == lines
        assert draw_network(recipe).count("<rect") == sum(blocks)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_form_of_the_convolutions_is_the_same_network(recipe):
    """Logits and the gradient of every weight, in float64."""
    net = AlexNet(small(recipe), 10).double().eval()
    torch.manual_seed(0)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, 0, weight[0].numel() ** -0.5)
    x = torch.randn(2, 3, 80, 80, dtype=torch.float64) * 60 / recipe.scale[0]
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    kinds = (FirstConv2d, ColumnConv2d)
    assert isinstance(net.conv1, FirstConv2d)
    assert any(m.groups > 1 for m in convolutions) == (recipe.columns > 1)
    assert all(isinstance(m, kinds) for m in convolutions if m.groups > 1)
    results = []
    for form in ("plain", "fast"):
        for module in net.modules():
            if isinstance(module, kinds):
                module.form = form
        logits = net(x)
        logits.square().sum().backward()
        results.append([logits, *(p.grad.clone() for p in net.parameters())])
        net.zero_grad()
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    assert results[0][0].std(0).max() > 1e-6  # it depends on the images
