"""Response normalization on a GPU, beside torch's, compiled, and beside its floor."""

import statistics

import torch
from gpu_timing import show, spread
from torch.nn import functional as F

import alexnet_nb.lrn as package
from alexnet_nb.lrn import SpatialNorm, lrn

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SHAPES = (
    (128, 96, 55, 55),
    (1024, 96, 55, 55),
    (128, 256, 27, 27),
    (32, 96, 55, 55),
    (1, 96, 13, 13),
    (1, 3, 1, 1),
)
TINY_SHAPES = ((2, 8, 5, 5), (1, 3, 1, 1))
SMALL = 100_000  # elements; of these the microseconds beside torch's are of interest


def torchs(x):
    return F.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)


def spatial_formula(x):
    """The formula of SpatialNorm, with torch's own functions."""
    w = x.float()
    mean = F.avg_pool2d(w.square(), 5, stride=1, padding=2)
    return (w * (1 + 0.001 * mean) ** -0.75).to(x.dtype)


def kernels_alone(norm):
    """Forward and backward kernels without autograd; None where there are none."""
    try:
        from alexnet_nb import triton_kernels as kernels
    except ImportError:
        return None
    if norm == "lrn":
        settings = (5, 2.0, 1e-4, 0.75, 1)
        return lambda x, g: kernels.fused_lrn(x, g, *settings)
    return lambda x, g: kernels.fused_spatial_norm(x, g, package._SPATIAL_SCALE)


def both_ways(norm, x, g):
    """A forward and backward pass as a function without arguments."""
    return lambda: torch.autograd.grad(norm(x), x, g)


def copy_rate(bench):
    """Bytes read and written a second by a copy of 2 GB, beyond any cache."""
    count = bench.size(1 << 30, 1 << 20)
    a, b = (torch.zeros(count, dtype=torch.uint8, device=bench.device) for _ in "ab")
    seconds = bench.time(lambda: b.copy_(a), repeats=10)
    bench.add("copy", "bytes_per_second", 2 * count / statistics.median(seconds))
    return 2 * count / statistics.median(seconds)


def measure(bench, norm, shape, layout, dtype, rate):
    """Seconds of every form on one tensor, and the floor."""
    ours = dict(lrn=lrn, spatial=SpatialNorm())[norm]
    theirs = dict(lrn=torchs, spatial=spatial_formula)[norm]
    torch.manual_seed(0)
    x, g = (
        torch.randn(shape, device=bench.device, dtype=dtype)
        .mul_(scale)
        .contiguous(memory_format=LAYOUTS[layout])
        for scale in (30, 1)
    )
    x.requires_grad_()
    forms = {"torch": theirs, "ours": ours}
    first = shape == bench.size(SHAPES, TINY_SHAPES)[0] and norm == "lrn"
    if first and layout == "contiguous" and dtype != torch.float32:  # 20 s, so once
        torch._dynamo.reset()
        forms["torch compiled"] = bench.compiled(theirs)
        forms["ours compiled"] = bench.compiled(ours)
    seconds = {name: bench.time(both_ways(f, x, g)) for name, f in forms.items()}
    kernels = kernels_alone(norm)
    if kernels and bench.is_cuda:
        x = x.detach()
        seconds["forward kernel"] = bench.time(lambda: kernels(x, None))
        seconds["backward kernel"] = bench.time(lambda: kernels(x, g))
    return dict(
        norm=norm,
        shape=shape,
        layout=layout,
        dtype=str(dtype).removeprefix("torch."),
        floor_seconds=5 * x.nbytes / rate,
        seconds=seconds,
    )


def cases(bench):
    """Tensors in the order of their importance."""
    shapes = bench.size(SHAPES, TINY_SHAPES)
    # torch's own has no bfloat16 on a CPU
    half = torch.bfloat16 if bench.is_cuda else torch.float64
    for dtype in (half, torch.float32):
        for norm in ("lrn", "spatial"):
            for shape in shapes if norm == "lrn" else shapes[:1]:
                for layout in LAYOUTS:
                    yield norm, shape, layout, dtype


def run(bench):
    rate = bench.guard("copy", copy_rate)
    for norm, shape, layout, dtype in cases(bench):
        name = f"{norm} {'×'.join(map(str, shape))} {layout} {dtype}"
        result = bench.guard(name, measure, norm, shape, layout, dtype, rate)
        if result:
            bench.add("norms", name, result)
    rows = [table_row(r) for r in bench.results["parts"].get("norms", {}).values()]
    columns = ["tensor", "ours, ms", "torch's, ms", "torch's / ours", "compiled, ms"]
    show("Normalization", [*columns, "kernels, ms", "kernels / floor"], rows)


def table_row(r):
    """Write the line of one tensor."""
    seconds, shape = r["seconds"], "×".join(map(str, r["shape"]))
    ratio = statistics.median(seconds["torch"]) / statistics.median(seconds["ours"])
    cells = [
        f"{r['norm']} {shape}, {r['layout']}, {r['dtype']}",
        *(spread([1e3 * t for t in seconds[name]], 3) for name in ("ours", "torch")),
        f"{ratio:.1f}",
    ]
    compiled = seconds.get("torch compiled")
    cells.append(spread([1e3 * t for t in compiled], 3) if compiled else "")
    if "forward kernel" not in seconds:
        return (*cells, "", "")
    parts = [statistics.median(seconds[f"{way} kernel"]) for way in WAYS]
    return (*cells, f"{1e3 * sum(parts):.3f}", f"{sum(parts) / r['floor_seconds']:.1f}")


WAYS = ("forward", "backward")
