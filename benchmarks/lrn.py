"""Times response normalization, forward and backward, beside torch's, and writes results/benchmarks/lrn.{json,md}.

python benchmarks/lrn.py
"""

import statistics
import subprocess
import sys

import torch
from timing import in_turns, save, spread, start
from torch.nn import functional as F

from alexnet_nb.lrn import lrn
from alexnet_nb.recipes import MarkdownTable

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


def table(results):
    rows = []
    for r in results:
        median = {name: 1e3 * statistics.median(s) for name, s in r["seconds"].items()}

        def ratio(over, under):
            return (
                f"{median[over] / median[under]:.1f}"
                if over in median and under in median
                else ""
            )

        rows.append(
            (
                f"{'×'.join(map(str, r['shape']))}, {r['layout']}"
                + ", one core busy" * r["busy"],
                *(
                    spread([1e3 * t for t in r["seconds"][n]])
                    for n in ("ours", "torch's")
                ),
                ratio("torch's", "ours"),
                ratio("torch's", "ours, compiled"),
                ratio("torch's, compiled", "ours, compiled"),
                f"{median['ours'] / 1e3 / r['floor_seconds']:.1f}",
            )
        )
    note = (
        "Forward and backward, float32. The floor: the input is read twice, the"
        " gradient once, output and gradient are written once, at the rate "
        f"of a copy of 256 MB ({results[0]['copy_bytes_per_second'] / 1e9:.0f} GB/s,"
        " read and written)."
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
