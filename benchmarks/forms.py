"""Time the forms of the convolutions, forward and backward, in each precision.

They take turns. Writes results/benchmarks/forms-DEVICE.{json,md}.

    python benchmarks/forms.py [cpu | cuda]
"""

import statistics
import sys

import torch
from timing import in_turns, save, spread, start

from alexnet_nb.base.table import MarkdownTable
from alexnet_nb.kernels import ColumnConv2d, FirstConv2d

# name → (makes the layer, side of its input, pixels)
LAYERS = {
    "conv1, 96 of 11×11, stride 4": (
        lambda device: FirstConv2d(3, 96, 11, 4, edge=3, device=device),
        224,
    ),
    "conv2, 256 of 5×5, two columns": (
        lambda device: ColumnConv2d(96, 256, 5, padding=2, groups=2, device=device),
        27,
    ),
    "conv4, 384 of 3×3, two columns": (
        lambda device: ColumnConv2d(384, 384, 3, padding=1, groups=2, device=device),
        13,
    ),
    "conv5, 256 of 3×3, two columns": (
        lambda device: ColumnConv2d(384, 256, 3, padding=1, groups=2, device=device),
        13,
    ),
}


def stepper(layer, form, x, autocast):
    """A forward and backward pass; the image of conv1 needs no gradient."""

    def step():
        layer.form = form
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            y = layer(x)
        y.backward(torch.ones_like(y))
        layer.zero_grad()
        x.grad = None

    return step


def measure(name, device, batch, autocast):
    """Seconds of every round of both forms, in turn."""
    make, side = LAYERS[name]
    layer = make(device).to(memory_format=torch.channels_last)
    x = torch.randn(batch, layer.in_channels, side, side, device=device)
    x = x.to(memory_format=torch.channels_last)
    if isinstance(layer, ColumnConv2d):
        x = x.to(torch.bfloat16) if autocast else x
        x.requires_grad_()
    functions = {form: stepper(layer, form, x, autocast) for form in ("plain", "fast")}
    done = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = in_turns(functions, done=done)
    precision = "bfloat16" if autocast else "float32"
    return dict(layer=name, batch=batch, precision=precision, seconds=seconds)


def table(results):
    """Write a line for each layer and precision."""
    rows = []
    for r in results:
        plain, fast = ([1e3 * t for t in r["seconds"][f]] for f in ("plain", "fast"))
        ratio = statistics.median(plain) / statistics.median(fast)
        cells = (spread(plain, 1), spread(fast, 1), f"{ratio:.2f}")
        rows.append((r["layer"], r["precision"], *cells))
    heads = ["layer", "precision", "plain, ms", "other form, ms", "plain / other form"]
    note = (
        "The table gives the median, the least and the most, for batches of"
        f" {results[0]['batch']}."
    )
    return MarkdownTable(heads, rows, note)


if __name__ == "__main__":
    start()
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    batch = 32 if device == "cpu" else 1024
    results = []
    for autocast in (False, True):
        results += [measure(name, device, batch, autocast) for name in LAYERS]
    save(f"forms-{device}", dict(rounds=results), table(results))
