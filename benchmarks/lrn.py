"""Time response normalization, forward and backward, beside torch's.

Writes results/benchmarks/lrn.{json,md}.

    python benchmarks/lrn.py
"""

import statistics
import subprocess
import sys

import torch
from timing import in_turns, save, spread, start
from torch.nn import functional as F

from alexnet_nb.base.table import MarkdownTable
from alexnet_nb.lrn import lrn

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SHAPES = [(32, 96, 55, 55), (1, 96, 55, 55), (128, 96, 55, 55), (128, 128, 27, 27)]


def torchs(x):
    return F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)


def measure(shape, layout, busy=False, compiled=True):
    """Seconds of a forward and backward pass of each, in turn.

    The floor is what has to be read and written, at the rate of a copy.
    """
    x, g = (
        torch.randn(shape).contiguous(memory_format=LAYOUTS[layout]) * s
        for s in (30, 1)
    )
    x.requires_grad_()
    kinds = {"ours": lrn, "torch's": torchs}
    if compiled:
        torch._dynamo.reset()
        kinds |= {
            f"{name}, compiled": torch.compile(f, dynamic=False)
            for name, f in kinds.items()
        }
    functions = {
        name: lambda f=f: torch.autograd.grad(f(x), x, g) for name, f in kinds.items()
    }
    a, b = (torch.zeros(1 << 26) for _ in range(2))  # 256 MB, beyond any cache
    other = (
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    )
    try:
        seconds = in_turns(functions | {"copy": lambda: b.copy_(a)}, rounds=9)
    finally:
        other and other.kill()
    rate = 2 * a.nbytes / statistics.median(seconds["copy"])
    return dict(
        shape=shape,
        layout=layout,
        busy=busy,
        copy_bytes_per_second=rate,
        floor_seconds=5 * x.nbytes / rate,
        seconds=seconds,
    )


def ratio(seconds, over, under):
    """Write one median over another, or nothing where one was not measured."""
    if over not in seconds or under not in seconds:
        return ""
    quotient = statistics.median(seconds[over]) / statistics.median(seconds[under])
    return f"{quotient:.1f}"


def table_row(result):
    """Write the line of one tensor."""
    seconds = result["seconds"]
    tensor = f"{'×'.join(map(str, result['shape']))}, {result['layout']}"
    if result["busy"]:
        tensor += ", one core busy"
    floors = statistics.median(seconds["ours"]) / result["floor_seconds"]
    return (
        tensor,
        spread([1e3 * t for t in seconds["ours"]]),
        spread([1e3 * t for t in seconds["torch's"]]),
        ratio(seconds, "torch's", "ours"),
        ratio(seconds, "torch's", "ours, compiled"),
        ratio(seconds, "torch's, compiled", "ours, compiled"),
        f"{floors:.1f}",
    )


def table(results):
    rows = [table_row(r) for r in results]
    note = (
        "The table has forward and backward pass together, in float32. The floor is"
        " the time to read the input twice and the gradient once, and to write both"
        " results, at the speed of a copy of 256 MB"
        f" ({results[0]['copy_bytes_per_second'] / 1e9:.0f} GB/s, read and written)."
    )
    return MarkdownTable(
        [
            "tensor",
            "ours, ms",
            "torch's, ms",
            "torch's / ours",
            "torch's / ours compiled",
            "the same, both compiled",
            "ours / floor",
        ],
        rows,
        note,
    )


if __name__ == "__main__":
    start()
    results = [
        measure(shape, layout, compiled=shape == SHAPES[0])
        for shape in SHAPES
        for layout in LAYOUTS
    ]
    results += [
        measure(SHAPES[0], layout, busy=True, compiled=False) for layout in LAYOUTS
    ]
    save("lrn", dict(rounds=results), table(results))
