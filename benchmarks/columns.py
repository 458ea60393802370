"""Time the training step of recipe paper in two processes and in one, in turn.

The two have one column and one thread each, the one has two threads. Writes
results/benchmarks/columns.{json,md}.

    python benchmarks/columns.py
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from timing import save, spread, start

from alexnet_nb import multigpu
from alexnet_nb.base.table import MarkdownTable
from alexnet_nb.dropout import dropout_masks
from alexnet_nb.engine.distributed import init_process_group, plan_placement
from alexnet_nb.engine.launch import torchrun_command, worker_environment
from alexnet_nb.learning import make_optimizer
from alexnet_nb.model import AlexNet
from alexnet_nb.recipes import paper
from alexnet_nb.training import classification_loss, train_step

BATCH, STEPS, ROUNDS = 32, 6, 3


def timed(seconds, name, function):
    """Make a function that adds the time of every call to `seconds[name]`."""

    def run(*args, **kw):
        begin = time.perf_counter()
        try:
            return function(*args, **kw)
        finally:
            seconds[name] += time.perf_counter() - begin

    return run


def peak():
    """Return the peak memory of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def column_loss(model, images, labels, masks):
    """Return the loss and the logits; column 1 has none, and its sum is its loss."""
    if model.column == 1:
        logits = model(images, masks)
        return logits.sum(), logits
    return classification_loss(model, images, labels, masks)


def count_kept_bytes(model, function):
    """Call a function; return the bytes it keeps for the backward pass."""
    own = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(kept.values())


def train():
    """Take a step that does not count, then STEPS that do; print them as JSON.

    The backward pass is what forward pass and update leave of a step.
    """
    column = int(os.environ["RANK"]) if os.environ["WORLD_SIZE"] == "2" else None
    if column is not None:
        init_process_group(2, "gloo", timedelta(minutes=5))
    torch.manual_seed(0)
    torch.optim.SGD([torch.zeros(1)])  # imports what torch's optimizers need
    baseline = peak()
    net = AlexNet(paper, column=column)
    optimizer = make_optimizer(net, paper)
    x = torch.randn(BATCH, 3, 224, 224) * 60
    y = torch.randint(1000, (BATCH,))
    seconds = defaultdict(float)
    if column is not None:
        exchange = multigpu.exchange_with_peer
        multigpu.exchange_with_peer = timed(seconds, "exchange", exchange)
        dist.broadcast = timed(seconds, "exchange", dist.broadcast)
    optimizer.step = timed(seconds, "update", optimizer.step)
    forward = timed(seconds, "forward", column_loss)

    def step(number):
        masks = dropout_masks(paper, BATCH, 0, number, column)
        train_step(net, optimizer, x, y, partial(forward, masks=masks))

    kept_bytes = count_kept_bytes(net, partial(step, 0))
    rows = []
    sent_before = multigpu.bytes_sent.total()
    for number in range(STEPS):
        seconds.clear()
        begin = time.perf_counter()
        step(number)
        seconds["step"] = time.perf_counter() - begin
        rest = seconds["step"] - seconds["forward"] - seconds["update"]
        rows.append(dict(seconds) | {"backward": rest})
    result = dict(
        column=column,
        steps=rows,
        parameters=sum(p.numel() for p in net.parameters()),
        kept_bytes=kept_bytes,
        sent_bytes=(multigpu.bytes_sent.total() - sent_before) // STEPS,
        start_bytes=baseline,
        peak_bytes=peak(),
    )
    print(json.dumps(result) + "\n", end="", flush=True)
    os._exit(0)


def launch(script, processes):
    """Run `script worker` on two threads in all; return what each process printed."""
    with tempfile.TemporaryDirectory() as store:
        command = [*torchrun_command(processes, store), script, "worker"]
        environment = worker_environment(
            plan_placement(processes, num_devices=0), store
        )
        environment |= dict(OMP_NUM_THREADS=str(2 // processes))
        del environment["PYTHONSAFEPATH"]  # this script imports its neighbors
        out = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
    return sorted(
        (json.loads(line) for line in out.splitlines() if line.startswith("{")),
        key=lambda r: r["column"] or 0,
    )


def table(results):
    def median(runs, what):
        return statistics.median(s.get(what, 0) for r in runs for s in r["steps"])

    def highest(runs):
        return max(r["peak_bytes"] - r["start_bytes"] for r in runs)

    runs = [
        [one for (one,) in results["one"]],
        *([two[c] for two in results["two"]] for c in (0, 1)),
    ]
    whole = runs[0]

    def row(name, show):
        return (name, *map(show, runs))

    def part_row(part):
        return row(f"{part}, ms", lambda r: f"{1e3 * median(r, part):.0f}")

    rows = [
        row("parameters", lambda r: r[0]["parameters"]),
        row(
            "kept for the backward pass, MB",
            lambda r: f"{r[0]['kept_bytes'] / 1e6:.0f}",
        ),
        row("Python and torch, MB", lambda r: f"{r[0]['start_bytes'] / 1e6:.0f}"),
        row(
            "net and training at most, MB (of one process)",
            lambda r: f"{highest(r) / 1e6:,.0f} ({highest(r) / highest(whole):.2f})",
        ),
        row("sent, MB", lambda r: f"{r[0]['sent_bytes'] / 1e6:.2f}"),
        row(
            "step, ms",
            lambda r: spread([1e3 * s["step"] for q in r for s in q["steps"]]),
        ),
        row(
            "step, of one process",
            lambda r: f"{median(r, 'step') / median(whole, 'step'):.2f}",
        ),
        *map(part_row, ("forward", "backward", "update")),
        row(
            "exchange and waiting, ms (of the step)",
            lambda r: (
                f"{1e3 * median(r, 'exchange'):.0f}"
                f" ({median(r, 'exchange') / median(r, 'step'):.1%})"
            ),
        ),
    ]
    return MarkdownTable(
        ["", "one process", "column 0", "column 1"],
        rows,
        f"Batch {BATCH}, 224 pixels, the whole network, float32; medians of"
        f" {ROUNDS * STEPS} steps, "
        "in brackets the least and the most. Forward and backward include the"
        " exchange.",
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        train()
    start()
    results = dict(one=[], two=[])
    for _ in range(ROUNDS):
        for name, processes in (("one", 1), ("two", 2)):
            results[name].append(launch(__file__, processes))
    save("columns", results, table(results))
