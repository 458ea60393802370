"""The training step on a GPU by lever, its profile by kernel, and its memory."""

import contextlib
import statistics
from functools import partial
from unittest import mock

import torch
import torchvision
from gpu_data import make_trainer, settled
from gpu_timing import show, spread
from prototype import Prototype
from step import naive
from torch.nn import functional as F

from alexnet_nb.engine.capture import capture
from alexnet_nb.learning import make_optimizer
from alexnet_nb.model import AlexNet
from alexnet_nb.recipes import RECIPES
from alexnet_nb.training import train_step

LAST = torch.channels_last
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def plain_norms():
    """Have the package's normalization take the formula, not its kernels."""
    if hasattr(_module(), "can_fuse"):
        return mock.patch.object(_module(), "can_fuse", return_value=False)
    return contextlib.nullcontext()


def _module():
    import alexnet_nb.lrn

    return alexnet_nb.lrn


def ours(recipe, first="measured", columns="measured"):
    """The package's network with its convolutions in given forms, where it has them.

    The forms are "plain", "fast", and "measured", which is what the package chooses.
    """
    net = AlexNet(RECIPES[recipe])
    for module in net.modules():
        kind = type(module).__name__
        if kind in ("FirstConv2d", "ColumnConv2d"):
            module.form = first if kind == "FirstConv2d" else columns
    return net


# name → (makes the network, its fused norms are on, compiled, captured)
LADDER = {
    "ours, compiled, captured": (ours, True, True, True),
    "prototype, compiled, captured": (Prototype, True, True, True),
    "prototype, compiled": (Prototype, True, True, False),
    "ours, compiled": (ours, True, True, False),
    "torchvision": (None, True, False, False),
    "torchvision, captured": (None, True, False, True),
    "naive AlexNet": (naive, True, False, False),
    "ours: grouped convolutions": (
        partial(ours, first="plain", columns="plain"),
        False,
        False,
        False,
    ),
    "+ fused normalization": (
        partial(ours, first="plain", columns="plain"),
        True,
        False,
        False,
    ),
    "+ conv1 as blocks": (
        partial(ours, first="fast", columns="plain"),
        True,
        False,
        False,
    ),
    "+ one convolution a column": (
        partial(ours, first="fast", columns="fast"),
        True,
        False,
        False,
    ),
    "+ captured": (partial(ours, first="fast", columns="fast"), True, False, True),
    "prototype, captured": (Prototype, True, False, True),
    "dense conv2, conv4, conv5, captured": (
        partial(Prototype, dense=True),
        True,
        False,
        True,
    ),
    "torchvision, compiled": (None, True, True, False),
    "torchvision, compiled, captured": (None, True, True, True),
}


def make_net(make, recipe):
    """Build a network of the ladder; those with a recipe get it."""
    if make is None:
        return torchvision.models.alexnet()
    if make is naive:
        return naive()
    return make(recipe)


def stepper(bench, name, recipe, batch, precision="bfloat16"):
    """A training step of one line of the ladder, without arguments."""
    make, _, compiled, captured = LADDER[name]
    net = make_net(make, recipe).to(bench.device).to(memory_format=LAST).train()
    if isinstance(net, AlexNet):
        optimizer = make_optimizer(net, RECIPES[recipe])
    else:
        optimizer = torch.optim.SGD(
            net.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4, fused=True
        )
    dtype = HALF.get(precision, torch.float32)
    x = torch.randn(batch, 3, 224, 224, device=bench.device, dtype=dtype) * 60
    x = x.to(memory_format=LAST)
    y = torch.randint(1000, (batch,), device=bench.device)
    run = bench.compiled(net) if compiled else net

    def compute_loss(model, images, labels):
        with torch.autocast(bench.device, dtype, enabled=precision in HALF):
            logits = model(images)
        return F.cross_entropy(logits.float(), labels), logits

    def step():
        train_step(run, optimizer, x, y, compute_loss=compute_loss)

    if not captured or not bench.is_cuda:
        return step
    step()  # momentum and gradients exist before the capture
    return capture(step, [])


def repeats_of(batch):
    """Steps in a round."""
    return 20 if batch < 512 else 6


def measure(bench, name, recipe, batch, precision="bfloat16"):
    """Seconds of a step, with the precision's settings and the norms of its line."""
    torch._dynamo.reset()
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    fused = LADDER[name][1]
    with contextlib.nullcontext() if fused else plain_norms():
        step = stepper(bench, name, recipe, batch, precision)
        return bench.time(step, repeats_of(batch), rounds=3)


def trainer_step(bench, recipe, batch, precision, compiled):
    """Seconds of the trainer's own step: input pass, dropout masks, errors and all."""
    torch._dynamo.reset()
    with settled(precision):
        trainer = make_trainer(bench, recipe, batch, precision, compiled)
        stored, n = trainer.stored_batch(), 0

        def step():
            nonlocal n
            trainer.take_step(stored)
            n += 1
            if n % 20 == 0:
                trainer.trainer.read_metrics()

        return bench.time(step, repeats_of(batch), rounds=3)


def lines(bench):
    """What is measured, in the order of its importance: function and arguments.

    A compiled line takes half a minute, and the others three seconds.
    """
    large, small = bench.size((1024, 128), (4, 2))
    names = list(LADDER)
    for recipe, batch in (("paper", large), ("paper", small), ("source2012", large)):
        yield trainer_step, "trainer's step", recipe, batch, "bfloat16", False
    for batch in (large, small):
        for name in names[:2]:
            yield measure, name, "paper", batch, "bfloat16"
    for batch in (large, small):
        for name in names[4:14]:
            yield measure, name, "paper", batch, "bfloat16"
    yield measure, "+ captured", "source2012", small, "bfloat16"
    for precision in ("tf32", "float32", "float16"):
        yield trainer_step, "trainer's step", "paper", small, precision, False
    yield trainer_step, "trainer's step, compiled", "paper", large, "bfloat16", True
    yield measure, names[15], "paper", large, "bfloat16"
    yield measure, names[0], "source2012", large, "bfloat16"
    for name in (names[14], *names[2:4]):
        yield measure, name, "paper", large, "bfloat16"


def run(bench):
    peaks = {}
    bench.guard("profile", profile)
    for function, name, recipe, batch, precision, *rest in lines(bench):
        if bench.tiny and not rest and batch == 2:
            continue  # the smoke test takes each line once
        key = f"{name} | {recipe} | {batch} | {precision}"
        if bench.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        given = (recipe, batch, precision, *rest) if rest else None
        given = given or (name, recipe, batch, precision)
        seconds = bench.guard(key, function, *given)
        if seconds is None:
            continue
        rates = [batch / s for s in seconds]
        result = dict(name=name, recipe=recipe, batch=batch, precision=precision)
        result |= dict(images_per_second=rates)
        steps = len(rates) * bench.size(repeats_of(batch), 1)
        bench.add("step", key, result | dict(measured_steps=steps))
        if bench.is_cuda:
            peaks[key] = torch.cuda.max_memory_allocated()
            bench.add("memory", key, peaks[key])
    show_table(bench)


def show_table(bench):
    rows = []
    for r in bench.results["parts"].get("step", {}).values():
        rates = r["images_per_second"]
        form = (r["name"], r["recipe"], r["batch"], r["precision"])
        rows.append((*form, spread(rates)))
    show("Step", ["form", "recipe", "batch", "precision", "images a second"], rows)
    ratios = bar_ratios(bench)
    if ratios:
        show("Beside the prototype", ["batch", "ours / prototype"], ratios)


def bar_ratios(bench):
    """The final step over the prototype in the same call, by batch."""
    step = bench.results["parts"].get("step", {})
    rows = []
    for batch in bench.size((1024, 128), (4, 2)):
        rates = []
        for name in list(LADDER)[:2]:
            r = step.get(f"{name} | paper | {batch} | bfloat16")
            rates += [statistics.median(r["images_per_second"])] if r else []
        if len(rates) == 2:
            rows.append((batch, f"{rates[0] / rates[1]:.2f}"))
    return rows


def profile(bench):
    """Seconds of the final step by kernel, the fifteen that take most."""
    batch = bench.size(1024, 2)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.is_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with settled("bfloat16"):
        trainer = make_trainer(bench, "paper", batch, "bfloat16", False)
        stored = trainer.stored_batch()
        for _ in range(3):
            trainer.take_step(stored)
        bench.synchronize()
        steps = bench.size(5, 1)
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(steps):
                trainer.take_step(stored)
            bench.synchronize()
    kind = "device" if bench.is_cuda else "cpu"
    times = {}
    for event in profiler.key_averages():
        if bench.is_cuda and event.device_type == torch.autograd.DeviceType.CPU:
            continue  # its kernel is an event of its own
        times[event.key[:100]] = getattr(event, f"self_{kind}_time_total") / steps
    total = sum(times.values())
    top = sorted(times, key=times.get, reverse=True)[:15]
    kernels = [dict(kernel=name, microseconds=times[name]) for name in top]
    found = dict(batch=batch, total_microseconds=total, kernels=kernels)
    bench.add("profile", f"paper | {batch}", found)
    rows = [(k["kernel"], f"{k['microseconds']:.0f}") for k in kernels]
    show(f"Profile of a step, {total:.0f} µs in all", ["kernel", "µs"], rows)
