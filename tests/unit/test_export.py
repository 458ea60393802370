"""Layers and networks give what they give in eager mode, however they are recorded.

Traced, scripted and exported, the network of every recipe, for images and batch sizes
other than the recorded ones.
"""

import copy
import io
import itertools

import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.models.feature_extraction import create_feature_extractor

from alexnet_nb.learning import scale_width
from alexnet_nb.lrn import LRN, SpatialNorm, lrn
from alexnet_nb.model import AlexNet
from alexnet_nb.recipes import LAYERS, RECIPES, no_communication, source2012
from helpers import LONG

# The exporters warn of themselves; a TracerWarning says that a graph may be wrong.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("error::torch.jit.TracerWarning"),
]


@pytest.fixture(autouse=True)
def same_numbers_in_any_order():
    """The inputs of a test do not depend on the tests before it."""
    torch.manual_seed(0)


# ---- the tools: each records a module with an example, and returns a function


def saved(script):
    """A TorchScript module after a way through a file."""
    file = io.BytesIO()
    torch.jit.save(script, file)
    file.seek(0)
    return torch.jit.load(file)


def by_trace(module, example):
    """Without torch's own check.

    It asks for 1e-5 of numbers that are nearly zero.
    """
    return saved(torch.jit.trace(module, example, check_trace=False))


def by_script(module, example):
    return saved(torch.jit.script(module))


def by_fx(module, example):
    return torch.fx.symbolic_trace(module)


def by_script_of_fx(module, example):
    return saved(torch.jit.script(torch.fx.symbolic_trace(module)))


def by_export(module, example, strict=False):
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(
        module, (example,), dynamic_shapes=shapes, strict=strict
    )
    return exported.module()


def by_strict_export(module, example):
    return by_export(module, example, strict=True)


def in_onnxruntime(graph):
    """The first output of an ONNX graph as a function of its first input."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(x):
        (result,) = session.run(None, {given.name: x.contiguous().numpy()})
        return torch.from_numpy(result)

    return run


def by_onnx_from_trace(module, example):
    file = io.BytesIO()
    torch.onnx.export(
        module,
        (example,),
        file,
        dynamo=False,
        input_names=["x"],
        output_names=["y"],
        dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
    )
    return in_onnxruntime(file.getvalue())


def by_onnx_from_export(module, example):
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        module, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    return in_onnxruntime(program.model_proto.SerializeToString())


def by_feature_extractor(module, example):
    features = create_feature_extractor(module, {"fc8": "logits"})
    return lambda x: features(x)["logits"]


ON_BOTH = [by_trace, by_fx, by_export, by_onnx_from_trace, by_onnx_from_export]
ON_LAYERS = [*ON_BOTH, by_script]
ON_NETWORKS = [*ON_BOTH, by_script_of_fx, by_feature_extractor]
if LONG:
    ON_LAYERS += [by_script_of_fx, by_strict_export]
    ON_NETWORKS += [by_strict_export]
ON_FULL_SIZE = ON_NETWORKS if LONG else [by_onnx_from_trace, by_onnx_from_export]
names = {"ids": lambda value: value.__name__}


def each_of(tools):
    """Tools as parameters; one of them takes about twenty times the others' time."""
    marks = {by_onnx_from_export: pytest.mark.slow}
    return [pytest.param(tool, marks=marks.get(tool, ())) for tool in tools]


# ---- layers

LAYERS_TO_RECORD = {
    "paper": LRN(),
    "source": LRN(alpha_over="mean", columns=2),
    "a window of one, k without a point": LRN(n=1, k=1, columns=3),
    "three, another power": LRN(n=3, alpha=1e-3, beta=0.6, columns=2),
    "nine, more than a column": LRN(n=9, beta=0.5, alpha_over="mean", columns=3),
    "spatial": SpatialNorm(),
}


def activities(batch, layout=torch.contiguous_format):
    """Activities of conv1's size, N × 12 × 5 × 4."""
    return (torch.randn(batch, 12, 5, 4) * 60).to(memory_format=layout)


@pytest.mark.parametrize("layer", LAYERS_TO_RECORD.values(), ids=LAYERS_TO_RECORD)
@pytest.mark.parametrize("tool", each_of(ON_LAYERS), **names)
@torch.no_grad()
def test_layer_under_every_tool(tool, layer):
    recorded = tool(layer, activities(2))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = activities(3, layout)
        torch.testing.assert_close(recorded(x), layer(x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("tool", [by_trace, by_script, by_fx, by_export], **names)
@torch.no_grad()
def test_layer_recorded_with_channels_last(tool):
    recorded = tool(LRN(columns=2), activities(2, torch.channels_last))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = activities(3, layout)
        torch.testing.assert_close(recorded(x), LRN(columns=2)(x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("tool", [by_trace, by_fx, by_onnx_from_trace], **names)
@torch.no_grad()
def test_layer_inside_a_network_of_ones_own(tool):
    net = nn.Sequential(
        nn.Conv2d(12, 6, 3), nn.ReLU(), LRN(columns=2), nn.Conv2d(6, 4, 1)
    )
    recorded, x = tool(net, activities(2)), activities(3)
    torch.testing.assert_close(recorded(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 12), (3, 12, 5), (3, 12, 2, 3, 2)])
@pytest.mark.parametrize("tool", [by_trace, by_script, by_fx], **names)
def test_layer_on_other_shapes(tool, shape):
    x = torch.randn(shape) * 60
    recorded = tool(LRN(columns=2), torch.randn(2, *shape[1:]))
    torch.testing.assert_close(recorded(x), LRN(columns=2)(x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("tool", [by_trace, by_script, by_fx], **names)
def test_half_precision_is_recorded_as_float32(tool):
    """300² is beyond float16."""
    recorded = tool(LRN(), activities(2).half())
    x = torch.full((3, 12, 5, 4), 300.0, dtype=torch.float16)
    torch.testing.assert_close(recorded(x), LRN()(x))


@pytest.mark.parametrize("tool", [by_trace, by_script, by_fx, by_export], **names)
def test_gradient_of_a_recorded_layer(tool):
    recorded = tool(LRN(columns=2), activities(2))
    x = activities(3).requires_grad_()
    found, wanted = (
        torch.autograd.grad(f(x).square().sum(), x)[0]
        for f in (recorded, LRN(columns=2))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_operations_recorded_by_a_dispatch_mode():
    """With symbolic shapes, the graph of `make_fx` takes batches of any size."""
    layer = LRN(columns=2)

    def gradient(x):
        return torch.autograd.grad(layer(x).square().sum(), x)[0]

    for function in (layer, gradient):
        example = activities(2).requires_grad_()
        graph = make_fx(function, tracing_mode="symbolic")(example)
        x = activities(3).requires_grad_()
        torch.testing.assert_close(graph(x), function(x), rtol=1e-4, atol=1e-4)


def test_function_imported_by_name():
    """A caller's own `lrn` is recorded as one call, too."""

    class Normalized(nn.Module):
        def forward(self, x):
            return lrn(x.relu(), columns=2)

    graph, x = torch.fx.symbolic_trace(Normalized()), activities(3)
    calls = [n for n in graph.graph.nodes if n.op == "call_function"]
    assert len(calls) == 1
    assert torch.equal(graph(x), Normalized()(x))
    assert torch.equal(copy.deepcopy(graph)(x), Normalized()(x))


def test_settings_are_checked_in_script():
    scripted, x = torch.jit.script(lrn), activities(1)
    with pytest.raises(torch.jit.Error, match="n: got 4"):
        scripted(x, n=4)
    with pytest.raises(torch.jit.Error, match="alpha_over: got 'max'"):
        scripted(x, alpha_over="max")


@pytest.mark.parametrize("tool", [by_trace, by_script, by_fx, by_export], **names)
def test_recorded_layer_refuses_channels_that_cannot_be_cut(tool):
    recorded = tool(LRN(columns=2), activities(2))
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        recorded(torch.zeros(2, 7, 5, 4))


@pytest.mark.parametrize(
    ("alpha", "layer"), [(5e-4, LRN()), (1e-4, LRN(alpha_over="mean"))]
)
def test_onnx_node_has_the_settings_of_the_page(alpha, layer):
    """The row for ONNX in the table of 04_lrn."""
    kind = onnx.TensorProto.FLOAT
    x, y = (
        onnx.helper.make_tensor_value_info(name, kind, ["batch", 12, 5, 4])
        for name in ("x", "y")
    )
    node = onnx.helper.make_node(
        "LRN", ["x"], ["y"], size=5, bias=2.0, alpha=alpha, beta=0.75
    )
    graph = onnx.helper.make_graph([node], "lrn", [x], [y])
    opset = onnx.helper.make_opsetid("", 13)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    found, images = in_onnxruntime(model.SerializeToString()), activities(3)
    torch.testing.assert_close(found(images), layer(images), rtol=1e-5, atol=0)


# ---- networks


def images(recipe, batch):
    """Noise on the scale of a recipe's pixels."""
    return torch.randn(batch, 3, recipe.crop, recipe.crop) * 60 / recipe.scale[0]


@torch.no_grad()
def sensitive(recipe, num_classes=10):
    """A net with weights that pass on the differences between images."""
    net = AlexNet(recipe, num_classes).eval()
    for layer in LAYERS:
        module = getattr(net, layer)
        module.weight.normal_(0, 1.5 * module.weight[0].numel() ** -0.5)
        module.bias.normal_(0, 0.1)
    return net


@torch.no_grad()
def compare(net, recorded, x):
    """Logits agree to 1e-5 of the largest, and tell the images apart."""
    wanted, found = net(x), recorded(x)
    tolerance = 1e-5 * wanted.abs().max().item()
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance
    for one, another in itertools.pairwise(found):
        assert (one - another).abs().max() > 100 * tolerance


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("tool", each_of(ON_NETWORKS), **names)
def test_network_of_every_recipe(tool, recipe):
    small = scale_width(recipe, 1 / 16, 68)
    net = sensitive(small)
    recorded = tool(net, images(small, 2))
    assert not net.training
    for batch in (1, 3):
        compare(net, recorded, images(small, batch))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES.values() if LONG else [source2012], ids=str)
@pytest.mark.parametrize("tool", ON_FULL_SIZE, **names)
def test_network_of_full_size(tool, recipe):
    """The net of the paper's numbers; other recipes and tools behind the flag."""
    net = sensitive(recipe, 1000)
    compare(net, tool(net, images(recipe, 2)), images(recipe, 3))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_features_are_those_of_the_hooks(recipe):
    small = scale_width(recipe, 1 / 16, 68)
    net, x, hooked = sensitive(small), images(small, 3), {}
    nodes = ["conv1", "norm1", "pool1", "conv5", "pool5", "fc6", "fc7", "fc8"]
    hooks = []
    for name in nodes:

        def keep(module, given, result, name=name):
            hooked[name] = result

        hooks.append(net.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        net(x)
        for hook in hooks:
            hook.remove()
        found = create_feature_extractor(net, nodes)(x)
    assert list(found) == nodes
    for name in nodes:
        torch.testing.assert_close(found[name], hooked[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tool", each_of(ON_NETWORKS), **names)
def test_recorded_network_refuses_images_of_another_size(tool):
    """69 pixels would pass every layer of this net, and mean something else."""
    small = scale_width(source2012, 1 / 16, 68)
    net = sensitive(small)
    recorded = tool(net, images(small, 2))
    for side in (67, 69):
        wrong = torch.zeros(2, 3, side, side)
        with pytest.raises(ValueError, match="expected N × 3 × 68 × 68"):
            net(wrong)
        with pytest.raises(Exception, match="68"):
            recorded(wrong)


@pytest.mark.parametrize("record", [by_fx, by_script_of_fx], **names)
def test_recorded_training_pass_draws_its_masks(record):
    small = scale_width(no_communication, 1 / 16, 68)
    net, x = sensitive(small).train(), images(small, 3)
    recorded = record(net, x)
    assert not torch.equal(recorded(x), recorded(x))
    sizes = {"fc6": net.fc6.out_features, "fc7": net.fc7.out_features}
    masks = {name: torch.rand(3, size) < 0.5 for name, size in sizes.items()}
    wanted, found = net(x, masks), recorded(x, masks)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("column", [0, 1])
def test_one_column_cannot_be_recorded(column):
    """A tracer would miss what the other process sends."""
    small = scale_width(source2012, 1 / 16, 68)
    net = AlexNet(small, 10, column=column).eval()
    for record in (by_trace, by_fx):
        with pytest.raises(RuntimeError, match="column: got one of two columns"):
            record(net, images(small, 2))
