"""Record when the two processes of a training step compute, wait and exchange.

Recipe paper, a column and one thread in each of two CPU processes. Both read the same
clock of the operating system, so their times can be compared. Where it is allowed,
both raise their priority while they are timed. Writes
results/benchmarks/timeline.{json,md}.

    python benchmarks/timeline.py
"""

import contextlib
import json
import os
import sys
import time
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from columns import column_loss, launch
from timing import save, spread, start

from alexnet_nb import multigpu
from alexnet_nb.base.table import MarkdownTable
from alexnet_nb.dropout import dropout_masks
from alexnet_nb.engine.distributed import init_process_group
from alexnet_nb.learning import make_optimizer
from alexnet_nb.model import AlexNet
from alexnet_nb.recipes import paper
from alexnet_nb.training import train_step

BATCH, STEPS, ROUNDS = 32, 8, 3
EXCHANGES = (  # of a step, in order: into a layer, and the gradient back
    *(f"into {layer}" for layer in ("conv3", "fc6", "fc7", "fc8")),
    *(f"back from {layer}" for layer in ("fc8", "fc7", "fc6", "conv3")),
)


def recorded(intervals, name, function):
    """Make a function that appends the interval of every call to `intervals`."""

    def run(*args, **kw):
        begin = time.perf_counter()
        try:
            return function(*args, **kw)
        finally:
            intervals.append((name, begin, time.perf_counter()))

    return run


def train():
    """Take two steps that do not count, then STEPS that do; print them as JSON."""
    column = int(os.environ["RANK"])
    init_process_group(2, "gloo", timedelta(minutes=5))
    torch.manual_seed(0)
    net = AlexNet(paper, column=column)
    optimizer = make_optimizer(net, paper)
    x = torch.randn(BATCH, 3, 224, 224) * 60
    y = torch.randint(1000, (BATCH,))
    intervals = []
    exchange = multigpu.exchange_with_peer
    multigpu.exchange_with_peer = recorded(intervals, "exchange", exchange)
    dist.broadcast = recorded(intervals, "exchange", dist.broadcast)
    optimizer.step = recorded(intervals, "optimizer", optimizer.step)
    forward = recorded(intervals, "forward", column_loss)
    with contextlib.suppress(PermissionError):
        os.nice(-15)  # for a few seconds, so that other programs disturb less
    steps = []
    for number in range(STEPS + 2):
        masks = dropout_masks(paper, BATCH, 0, number, column)
        dist.barrier()
        intervals.clear()
        begin = time.perf_counter()
        train_step(net, optimizer, x, y, partial(forward, masks=masks))
        end = time.perf_counter()
        steps.append(dict(begin=begin, end=end, intervals=list(intervals)))
    print(json.dumps(dict(column=column, steps=steps[2:])) + "\n", end="", flush=True)
    os._exit(0)


def step_of(pair):
    """Return a step of both columns in ms since the first of them began.

    An exchange cannot begin before the second process is there: until then the first
    one waits.
    """
    zero = min(column["begin"] for column in pair)
    parts = []
    for column in pair:
        found = {"exchange": [], "forward": [], "optimizer": []}
        for name, begin, end in column["intervals"]:
            found[name].append((1e3 * (begin - zero), 1e3 * (end - zero)))
        parts.append(found)
    exchanges = []
    both = zip(*(found["exchange"] for found in parts), strict=True)
    for name, times in zip(EXCHANGES, both, strict=True):
        ready = max(begin for begin, _ in times)
        rows = [dict(begin=b, ready=max(b, ready), end=e) for b, e in times]
        exchanges.append(dict(name=name, columns=rows))
    return dict(
        begin=[1e3 * (column["begin"] - zero) for column in pair],
        forward_end=[found["forward"][0][1] for found in parts],
        optimizer=[found["optimizer"][0] for found in parts],
        end=[1e3 * (column["end"] - zero) for column in pair],
        exchanges=exchanges,
    )


def length(step):
    """Return the ms from the first process's beginning to the last one's end."""
    return max(step["end"])


def spent(step, column):
    """Return the ms of a step in which a column waits, and in which it exchanges."""
    rows = [exchange["columns"][column] for exchange in step["exchanges"]]
    waiting = sum(min(r["ready"], r["end"]) - r["begin"] for r in rows)
    exchanging = sum(max(0, r["end"] - r["ready"]) for r in rows)
    return waiting, exchanging


def table(results):
    """Write the medians of all steps as a table."""
    steps = results["steps"]

    def row(name, part):
        values = [[spent(step, column)[part] for step in steps] for column in (0, 1)]
        return (name, *(spread(v) for v in values))

    return MarkdownTable(
        ["ms of a step", "column 0", "column 1"],
        [
            ("whole step", *[spread([length(step) for step in steps])] * 2),
            row("waiting for the other column", 0),
            row("exchanging", 1),
        ],
        f"Two CPU processes of one thread each, batch {BATCH}, float32; medians of"
        f" {len(steps)} steps, in brackets the least and the most.",
    )


def run():
    """Measure, and save the times of all steps."""
    steps = []
    for _ in range(ROUNDS):
        columns = [column["steps"] for column in launch(__file__, 2)]
        steps += [step_of(pair) for pair in zip(*columns, strict=True)]
    load = round(os.getloadavg()[0], 1)
    results = dict(batch=BATCH, load=load, steps=rounded(steps))
    save("timeline", results, table(results))


def rounded(value):
    """Round all numbers to a hundredth of a millisecond."""
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


if __name__ == "__main__":
    if sys.argv[1:] == ["worker"]:
        train()
    start()
    run()
