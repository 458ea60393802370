"""Small-scale analogues on CIFAR-10.

Response normalization, two columns, ten views, dropout.

    python analogues.py FOLDER RESULTS [minutes]

FOLDER: an image folder of CIFAR-10 (train/CLASS/…, val/CLASS/…), or cifar10. RESULTS:
the folder with protocol.md.
"""

import base64
import math
import os
import sys
import time
from pathlib import Path

import cifar
import intervals
import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from alexnet_nb.base.rng import make_generator
from alexnet_nb.lrn import LRN

STD, FAN_IN = (1e-4, 0.01, 0.01, 0.01), (75, 800, 800, 1024)
SOURCE, PAPER = (
    dict(n=9, k=1.0, alpha=0.001, beta=0.75, alpha_over="mean"),
    dict(n=5, k=2.0, alpha=1e-4, beta=0.75),
)
DECAY = {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc": 3.0}


def net(seed, kernels=(32, 32, 64), groups=(1, 1), norm=None, size=32, hidden=0):
    """Build the net of layers-19pct.cfg, changed in one respect.

    It has these kernels, groups in conv2 and conv3, response normalization after conv1
    and conv2, or a hidden layer with dropout. Every layer keeps its deviation·√fan-in;
    a hidden layer starts as in layers-80sec.cfg.
    """
    a, b, c = kernels
    half = dict(kernel_size=3, stride=2, ceil_mode=True)

    def conv(i, o, g):
        return nn.Conv2d(i, o, 5, padding=2, groups=g)

    def norms(i):
        return {f"norm{i}": LRN(**norm)} if norm else {}

    out = c * math.ceil(size / 8) ** 2
    top = (
        dict(
            fc1=nn.Linear(out, hidden),
            relu4=nn.ReLU(),
            dropout=nn.Dropout(0.5),
            fc2=nn.Linear(hidden, 10),
        )
        if hidden
        else dict(fc=nn.Linear(out, 10))
    )
    layers = nn.Sequential()
    for name, layer in dict(
        conv1=conv(3, a, 1),
        pool1=nn.MaxPool2d(**half),
        relu1=nn.ReLU(),
        **norms(1),
        conv2=conv(a, b, groups[0]),
        relu2=nn.ReLU(),
        **norms(2),
        pool2=nn.AvgPool2d(**half),
        conv3=conv(b, c, groups[1]),
        relu3=nn.ReLU(),
        pool3=nn.AvgPool2d(**half),
        flat=nn.Flatten(),
        **top,
    ).items():
        layers.add_module(name, layer)
    g, std = (
        torch.Generator().manual_seed(seed),
        {f"conv{i + 1}": STD[i] * math.sqrt(FAN_IN[i]) for i in range(3)}
        | dict(fc=0.01 * 32, fc1=0.1 * 32, fc2=0.1 * 8),
    )
    for name, p in layers.named_parameters():
        nn.init.zeros_(p) if p.dim() == 1 else nn.init.normal_(
            p, 0, std[name.split(".")[0]] / math.sqrt(p[0].numel()), g
        )
    return layers.to(cifar.DEVICE, memory_format=torch.channels_last)


ARMS = dict(
    dense={},
    lrn_source=dict(norm=SOURCE),
    lrn_paper=dict(norm=PAPER),
    columns=dict(groups=(2, 1)),
    apart=dict(groups=(2, 2)),
    half=dict(kernels=(16, 16, 32)),
    apart_wide=dict(kernels=(32, 54, 64), groups=(2, 2)),
    crops=dict(size=24),
    dropout=dict(hidden=512),
    no_dropout=dict(hidden=512),
)


COLORED_ARMS = "columns", "apart", "dense"  # the arms that Figure 3 is about


def cropped(seed, size):
    """Make random crops and reflections, one for each image of a batch.

    They are drawn from (seed, epoch) for all images.
    """
    drawn = {}

    def see(x, epoch, places):
        if epoch not in drawn:
            drawn.clear()
            g = make_generator(seed, epoch, 1)
            drawn[epoch] = (
                torch.randint(33 - size, (50_000, 2), generator=g),
                torch.rand(50_000, generator=g) < 0.5,
            )
        corners, flips = (choice[places.cpu()].tolist() for choice in drawn[epoch])
        crops = []
        for image, (i, j), flip in zip(x, corners, flips, strict=True):
            crop = image[:, i : i + size, j : j + size]
            crops.append(crop.flip(-1) if flip else crop)
        return torch.stack(crops).contiguous(memory_format=torch.channels_last)

    return see


def views(x, size):
    """Five crops, corners and center, and their reflections.

    Ten batches, the center first (§4.1).
    """
    end = 32 - size
    parts = [
        x[:, :, i : i + size, j : j + size]
        for i, j in [(end // 2, end // 2), (0, 0), (0, end), (end, 0), (end, end)]
    ]
    return parts + [p.flip(-1) for p in parts]


def train(folder, arm, lr, seed, epochs, drop=None, tune=False, precision="bfloat16"):
    """Error at the end.

    On the last 5,000 training pictures, not trained on, where the rate is chosen, else
    on the test pictures. The arms with a hidden layer give (epoch, training loss)
    instead, until the loss is under 0.5 twice.
    """
    x, y = cifar.pixels(folder)
    settings = ARMS[arm]
    model, size = net(seed, **settings), settings.get("size", 32)
    if arm == "no_dropout":
        model.dropout.p = 0.0
    x_test, y_test = (x[45_000:], y[45_000:]) if tune else cifar.pixels(folder, "val")
    if tune:
        x, y = x[:45_000], y[:45_000]
    decay = (
        {}
        if "hidden" in settings
        else {f"{name}.weight": value for name, value in DECAY.items()}
    )
    see = cropped(seed, size) if size < 32 else (lambda x, epoch, places: x)
    rows = []
    for epoch, loss in cifar.steps(
        model, x, y, lr, seed, epochs, decay, drop, see, precision
    ):
        if not math.isfinite(loss):
            return dict(diverged=epoch)
        if "hidden" not in settings:
            continue
        rows.append(
            (
                epoch,
                round(
                    F.cross_entropy(
                        cifar.outputs(model, x[:10_000], precision), y[:10_000]
                    ).item(),
                    4,
                ),
            )
        )
        if sum(v < 0.5 for _, v in rows[-2:]) == 2:
            break
    result = dict(rows=rows) if rows else {}
    if size == 32:
        return (
            result
            | dict(
                error=cifar.error(cifar.outputs(model, x_test, precision), y_test),
                loss=round(loss, 4),
            )
            | kernels(model, arm)
        )
    one, *others = (cifar.outputs(model, v, precision) for v in views(x_test, size))
    ten = torch.stack([p.softmax(1) for p in (one, *others)]).mean(0)
    right = [logits.argmax(1) == y_test for logits in (one, ten)]
    return dict(
        error=cifar.error(one, y_test),
        ten=cifar.error(ten, y_test),
        only_one=(right[0] & ~right[1]).sum().item(),
        only_ten=(right[1] & ~right[0]).sum().item(),
    )


def kernels(model, arm):
    """Encode the kernels of the first layer, 32×3×5×5, in half precision.

    Only for the arms that Figure 3 is about.
    """
    if arm not in COLORED_ARMS:
        return {}
    return dict(
        kernels=base64.b64encode(
            model.conv1.weight.detach().contiguous().half().cpu().numpy().tobytes()
        ).decode()
    )


def sweep(grid):
    return [
        dict(arm=arm, lr=lr, seed=seed, epochs=3, drop=2, tune=True)
        for arm, rates in grid.items()
        for lr in rates
        for seed in (100, 101)
    ]


def best(results):
    """Return the best rate of every arm.

    It has the lowest mean, over two seeds, of the error on the slice, or of the
    training loss; a run that diverged loses.
    """
    final = {}
    for row in cifar.lines(results):
        job, score = (
            row["job"],
            math.inf
            if "diverged" in row
            else row["rows"][-1][1]
            if "rows" in row
            else row["error"],
        )
        if job["epochs"] == 3:
            final.setdefault(job["arm"], {}).setdefault(job["lr"], []).append(score)
    return {
        arm: min(rates, key=lambda lr: sum(rates[lr])) for arm, rates in final.items()
    }


def color(encoded):
    """Share of every first-layer kernel's energy that is off the gray axis."""
    w = (
        np.frombuffer(base64.b64decode(encoded), np.float16)
        .astype(float)
        .reshape(32, 3, -1)
    )
    return 1 - 3 * (w.mean(1) ** 2).sum(1) / (w**2).sum((1, 2))


def gap(shares):
    """Difference between the means of the two halves."""
    return np.abs(shares[..., :16].mean(-1) - shares[..., 16:].mean(-1))


def null(shares, seed, draws=10_000):
    """The differences when the kernels are dealt into halves at random."""
    return gap(
        np.random.default_rng(seed).permuted(np.tile(shares, (draws, 1)), axis=1)
    )


def split(shares, seed):
    """Difference of the halves, its p, and what chance makes of it.

    The mean, and what it exceeds in one case of twenty.
    """
    found, chance = gap(shares), null(shares, seed)
    return dict(
        gap=float(found),
        p=float((1 + (chance >= found - 1e-12).sum()) / (1 + len(chance))),
        chance=float(chance.mean()),
        limit=float(np.quantile(chance, 0.95)),
    )


def final(results, arm):
    """The runs of an arm from which conclusions are drawn, by seed.

    The first three in bfloat16, the others in float32 (see the protocol).
    """
    runs = [
        r
        for r in cifar.lines(results)
        if r["job"] == job(arm, r["job"]["lr"], r["job"]["seed"])
    ]
    return sorted(runs, key=lambda r: r["job"]["seed"])


def splits(results, arm):
    """What `split` says of the two columns, by seed.

    Of halves drawn at random for the dense net.
    """
    kernels = [color(r["kernels"]) for r in final(results, arm)]
    if arm == "dense":
        kernels = [
            np.random.default_rng(1000 + s).permutation(k)
            for s, k in enumerate(kernels)
        ]
    return [split(k, s) for s, k in enumerate(kernels)]


def ends(results, arm, of="error"):
    return [r[of] for r in final(results, arm)]


def until(results, arm):
    """Epochs until the training loss is under 0.5.

    A run that did not get there counts as 30.
    """
    return [
        cifar.crossing(r["rows"], 0.5, math.log(10)) or 30.0
        for r in final(results, arm)
    ]


def job(arm, lr, seed):
    length = dict(epochs=30) if "dropout" in arm else dict(epochs=8, drop=6)
    return (
        dict(arm=arm, lr=lr, seed=seed)
        | length
        | (dict(precision="float32") if seed > 2 else {})
    )


SEEDS = range(8)
PARTS = (
    ("dense", "columns", "apart", "half", "apart_wide", "crops"),
    ("lrn_source", "lrn_paper"),
    ("dropout", "no_dropout"),
)  # one after the other
FAMILIES = [
    [("columns", other) for other in ("apart", "dense", "half", "apart_wide")],
    [("lrn_source", "dense"), ("lrn_paper", "dense")],
]


def summarize(results):
    """Of what is whole.

    Every arm, the families of comparisons, ten views, the split of the colors, dropout.
    """
    whole = {arm for arm in ARMS if len(final(results, arm)) == len(SEEDS)}

    def n(*arms):
        return ", ".join([str(len(SEEDS))] * len(arms))

    rows = [
        intervals.row(f"{arm}: test error", *intervals.mean(ends(results, arm)), n(arm))
        for arm in ARMS
        if arm in whole and "dropout" not in arm
    ]
    for pairs in FAMILIES:
        if not whole.issuperset(arm for pair in pairs for arm in pair):
            continue
        errors = [
            (f"{a} less {b}: test error", ends(results, a), ends(results, b), n(a, b))
            for a, b in pairs
        ]
        rows += intervals.family(
            [
                intervals.row(
                    what, *intervals.difference(a, b), count, intervals.permuted(a, b)
                )
                for what, a, b, count in errors
            ]
        )
        rows += [
            intervals.row(f"{what}, 90 %", *intervals.difference(a, b, 0.9), count)
            for what, a, b, count in errors
        ]
    if "crops" in whole:
        rows += ten_views(results)
    for arm in COLORED_ARMS if whole.issuperset(COLORED_ARMS) else ():
        nets = {
            k: [net[k] for net in splits(results, arm)] for k in ("gap", "chance", "p")
        }
        rows.append(
            intervals.row(
                f"{arm}: difference of the columns' color",
                float(np.mean(nets["gap"])),
                n=n(arm),
                p=stats.combine_pvalues(nets["p"], "stouffer").pvalue,
            )
        )
        rows.append(
            intervals.row(
                f"{arm}: difference by chance", float(np.mean(nets["chance"])), n=n(arm)
            )
        )
    if whole >= {"dropout", "no_dropout"}:
        with_, without = until(results, "dropout"), until(results, "no_dropout")
        what, count = (
            "dropout over none: epochs to a loss of 0.5",
            n("dropout", "no_dropout"),
        )
        p = intervals.permuted(np.log(with_), np.log(without))
        rows.append(intervals.row(what, *intervals.ratio(with_, without), count, p))
        rows.append(
            intervals.row(
                f"{what}, bootstrap", *intervals.bootstrap_ratio(with_, without), count
            )
        )
    return rows


def ten_views(results):
    """Their gain, mean over nets, and McNemar's test for each net."""
    ten, one = ends(results, "crops", "ten"), ends(results, "crops")
    only_ten = ends(results, "crops", "only_ten")
    only_one = ends(results, "crops", "only_one")
    counts = zip(only_ten, only_one, strict=True)
    return [
        intervals.row(
            "ten crops less one: test error",
            *intervals.mean([a - b for a, b in zip(ten, one, strict=True)]),
            str(len(ten)),
        ),
        *intervals.family(
            [
                intervals.row(
                    f"ten crops less one, seed {s}",
                    (b - a) / 10000,
                    n="10000",
                    p=stats.binomtest(a, a + b).pvalue,
                )
                for s, (a, b) in enumerate(counts)
            ]
        ),
    ]


def analogues(folder, results, minutes):
    """All of them.

    Parity of the precisions, the sweep, then eight seeds an arm at its best rate.
    """
    cifar.record(
        results,
        "python nbs/evidence/experiments/analogues.py cifar10 results/analogues",
    )
    begin = time.monotonic()

    def go(jobs):
        return cifar.run(
            jobs, folder, results, minutes - (time.monotonic() - begin) / 60, train
        )

    parity = [
        dict(arm="lrn_source", lr=0.003, seed=seed, epochs=2, tune=True, precision=p)
        for seed in (200, 201)
        for p in ("float32", "bfloat16")
    ]
    rates = cifar.choose(
        dict.fromkeys(ARMS, (0.001, 0.003, 0.01)),
        lambda grid: parity + sweep(grid),
        lambda: best(results),
        go,
    )
    for part in PARTS:
        if not (
            rates and go([job(arm, rates[arm], seed) for seed in SEEDS for arm in part])
        ):
            break
        intervals.write(results / "summary.tsv", summarize(results))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    analogues(sys.argv[1], Path(sys.argv[2]), float((sys.argv[3:] or ["inf"])[0]))
