"""How many updates a fresh net stays at the loss of a guess.

    python plateau.py FOLDER RESULTS [minutes]

FOLDER: an image folder (train/CLASS/…, val/CLASS/…); RESULTS: a folder of results with
its protocol.md, results/plateau (a small net, CIFAR-10) or results/in_place (the whole
net, photographs).
"""

import math
import os
import sys
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import intervals
import numpy as np
import torch
from cifar import DEVICE, FAST, autocast_loss, lines, record, run
from scipy import optimize, stats

from alexnet_nb.augmentation import InputTransform, sample_augment_params
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.dropout import dropout_masks
from alexnet_nb.engine.loader import load_images
from alexnet_nb.learning import (
    learning_rates,
    make_optimizer,
    scale_width,
    set_learning_rates,
)
from alexnet_nb.model import AlexNet, initial_weights
from alexnet_nb.recipes import RECIPES, paper
from alexnet_nb.training import train_step

WINDOW, BATCH = 20, 128
packed = cache(load_dataset)


def updates(data, r, seed, most, under, precision):
    """Train until the mean loss over a window is under a threshold.

    Return the spread of the logits before the first update, and the loss of every one.
    """
    torch.set_num_threads(1)
    model, classes = AlexNet(r, len(data.names)), len(data.names)
    model.load_state_dict(initial_weights(r, classes, seed))
    optimizer, see = (
        make_optimizer(model.to(DEVICE), r),
        InputTransform(r, data.mean, data.cov, DEVICE),
    )
    set_learning_rates(optimizer, learning_rates(r, 0.0))
    losses, whole = [], len(data.train) - len(data.train) % BATCH
    with torch.no_grad():
        spread = (
            model.eval()(see.test_crops(load_images(data.train, slice(0, BATCH)), 1)[0])
            .std(0)
            .mean()
            .item()
        )
    model.train()
    for step in range(most):
        passed, first = divmod(step * BATCH, whole)
        if first == 0:
            draws = sample_augment_params(
                len(data.train), see.max_offset, r, seed, passed
            )
        rows = slice(first, first + BATCH)
        x, y = (
            see.train(load_images(data.train, rows), draws[rows]),
            torch.tensor(data.train.labels[rows], device=DEVICE),
        )
        masks = dropout_masks(r, len(x), seed, step, device=DEVICE)
        compute_loss = partial(autocast_loss, precision, masks=masks)
        loss, _ = train_step(model, optimizer, x, y, compute_loss)
        losses.append(round(loss.item(), 4))
        if not math.isfinite(losses[-1]):
            break
        if len(losses) >= WINDOW and sum(losses[-WINDOW:]) / WINDOW < under:
            break
    return dict(spread=spread, losses=[x if math.isfinite(x) else None for x in losses])


def length(losses, most, under):
    """Updates on the plateau, and whether the run left it."""
    left = None not in losses and sum(losses[-WINDOW:]) / WINDOW < under
    return (len(losses) if left else most), left


# a small net

FACTORS = dict(
    deviation=(0.01, 0.03),
    bias=(0.0, 0.1, 1.0),
    divide=(1.0, 58.0),
    lr=(0.005, 0.01, 0.02),
    seed=range(4),
)
SMALL = dict(most=500, under=math.log(10) - 0.3)


def recipe(deviation, bias, divide, lr):
    """Return the paper's net at an eighth of its width, with these settings."""
    whole = replace(
        paper,
        init_std=(0.01, 0.01, deviation, deviation, deviation, 0.01, 0.01, 0.01),
        scale=(divide,) * 3,
        init_bias=(0.0, bias, 0.0, bias, bias, bias, bias, 0.0),
        lr=lr,
        lr_bias=2 * lr,
    )
    return scale_width(whole, 1 / 8, 64)


def spells(results, **settings):
    """Return spread, updates on the plateau and whether it was left, of every run.

    Of those with these settings.
    """
    rows = [r for r in lines(results) if settings.items() <= r["job"].items()]
    return [(r["spread"], *length(r["losses"], **SMALL)) for r in rows]


def censored(runs):
    return stats.CensoredData(
        [n for _, n, left in runs if left], right=[n for _, n, left in runs if not left]
    )


def times(runs):
    """Return the updates on the plateau and whether it was left, of every run."""
    return [(n, left) for _, n, left in runs]


def updates_apart(one, other):
    """Return the difference of the mean updates of two groups, and its 95 % interval.

    One less other. A stopped run counts as the updates after which it was stopped.
    Where the group that stayed longer has such a run, the end of the interval that is
    further from 0 is NaN: only the stop has put it where it is.
    """
    gap, low, high = intervals.difference(
        [n for _, n, _ in one], [n for _, n, _ in other]
    )
    stopped = any(not left for *_, left in (one if gap > 0 else other))
    if stopped and gap > 0:
        high = math.nan
    if stopped and gap < 0:
        low = math.nan
    return gap, low, high


def compared(what, one, other, exact):
    """Return a line of a summary.

    The difference of the mean updates, and the p of the log-rank test, by counting or
    approximated.
    """
    if exact:
        p = intervals.permuted_log_rank((times(one), times(other)))
    else:
        p = stats.logrank(censored(one), censored(other)).pvalue
    return intervals.row(
        what, *updates_apart(one, other), f"{len(one)}, {len(other)}", p
    )


def within_pixels_and_bias(results, lr):
    """Return a line of a summary.

    The two deviations at one rate, compared among runs of the same pixels and biases.

    The log-rank test counts all ways to deal the runs, four a side in each of six
    strata. The difference is that of the means, without an interval: most strata have
    stopped runs.
    """
    strata = []
    for divide, bias in product(FACTORS["divide"], FACTORS["bias"]):
        strata.append(
            [
                spells(results, lr=lr, divide=divide, bias=bias, deviation=deviation)
                for deviation in (0.01, 0.03)
            ]
        )
    p = intervals.permuted_log_rank(
        *((times(one), times(other)) for one, other in strata)
    )
    arms = zip(*strata, strict=True)
    smaller, larger = ([n for runs in arm for _, n, _ in runs] for arm in arms)
    apart = float(np.mean(smaller) - np.mean(larger))
    what = (
        f"deviation 0.01 less 0.03 at the same pixels and biases, rate {lr:g}: updates"
    )
    return intervals.row(what, apart, n=f"{len(smaller)}, {len(larger)}", p=p)


def rank_correlation(groups, draws=1000):
    """Return Spearman's rho of spread and plateau, and its 95 % interval.

    Over the runs of all settings; the interval is from resampling settings.
    """

    def rho(groups):
        runs = [run for group in groups for run in group]
        spreads, updates = [s for s, _, _ in runs], [n for _, n, _ in runs]
        return stats.spearmanr(spreads, updates).statistic

    g = np.random.default_rng(0)
    many = [
        rho([groups[i] for i in g.integers(len(groups), size=len(groups))])
        for _ in range(draws)
    ]
    return rho(groups), *np.nanquantile(many, (0.025, 0.975))


def prediction(runs):
    """Fit a log-normal in which stopped runs are censored.

    Return the updates at a spread of 0.001, the power of the spread, and the deviation
    of the logarithm.
    """
    x, y, left = (
        np.log([s / 0.001 for s, _, _ in runs]),
        np.log([n for _, n, _ in runs]),
        np.array([left for *_, left in runs]),
    )

    def cost(theta):
        z = (y - theta[0] - theta[1] * x) / np.exp(theta[2])
        return -np.where(
            left, stats.norm.logpdf(z) - theta[2], stats.norm.logsf(z)
        ).sum()

    level, power, log_std = optimize.minimize(
        cost,
        [6.0, -0.3, -1.0],
        method="Nelder-Mead",
        options=dict(maxiter=4000, xatol=1e-8, fatol=1e-8),
    ).x
    return np.exp(level), power, np.exp(log_std)


def summarize_small(results):
    """Return the lines of the summary of the small net.

    Log-rank tests of deviations and of pixels at every rate, with the difference of
    mean updates; the deviations again among runs of the same pixels and biases; rank
    correlations by bias; the fit; what biases of 1 do.
    """
    tests = []
    for factor, (a, b), name in [
        ("deviation", (0.01, 0.03), "deviation 0.01 less 0.03"),
        ("divide", (58.0, 1.0), "divided pixels less raw"),
    ]:
        for lr in FACTORS["lr"]:
            one, other = (spells(results, lr=lr, **{factor: value}) for value in (a, b))
            tests.append(
                compared(f"{name}, rate {lr:g}: updates", one, other, exact=False)
            )
    alike = [within_pixels_and_bias(results, lr) for lr in FACTORS["lr"]]
    settings = [
        (f["bias"], spells(results, **f))
        for f in jobs({k: v for k, v in FACTORS.items() if k != "seed"})
    ]
    rhos = []
    for bias in (None, *FACTORS["bias"]):
        groups = [runs for b, runs in settings if bias in (None, b)]
        rhos.append(
            intervals.row(
                "spread and plateau" + (f", bias {bias:g}" if bias is not None else ""),
                *rank_correlation(groups),
                str(sum(map(len, groups))),
            )
        )
    with_biases, without = (spells(results, bias=b, divide=1.0) for b in (1.0, 0.0))
    count = f"{len(with_biases)}, {len(without)}"
    level, power, std = prediction(spells(results, lr=0.01))
    lines = [
        intervals.row(
            "spread of 0.001, rate 0.01: updates, 95 % of nets",
            level,
            level * math.exp(-1.96 * std),
            level * math.exp(1.96 * std),
            "48",
        ),
        intervals.row("power of the spread, rate 0.01", power),
    ]
    lines.append(
        intervals.row(
            "bias 1 less 0, raw pixels: updates",
            *updates_apart(with_biases, without),
            count,
        )
    )
    return intervals.family(tests) + intervals.family(alike) + rhos + lines


def small(folder, deviation, bias, divide, lr, seed):
    return updates(
        packed(folder, 72),
        recipe(deviation, bias, divide, lr),
        seed,
        **SMALL,
        precision="float32",
    )


# the whole net, in place

PLACES = dict(
    seed=range(8),
    recipe=("paper", "source2012", "caffe", "torchvision"),
    divided=(False, True),
)
WHOLE = dict(most=300, under=0.9 * math.log(5))
PARITY = [
    dict(recipe="source2012", divided=False, seed=s, precision=p, most=20)
    for s in (100, 101)
    for p in ("float32", "bfloat16")
]


def whole(name, divided):
    """Return a recipe's input, net and start, and one way of learning for all.

    Its pixels are as they are, or divided by about 58.
    """
    scale = RECIPES["torchvision"].scale if divided else (1.0,) * 3
    return replace(
        RECIPES[name],
        scale=scale,
        **{
            f: getattr(paper, f)
            for f in [
                "lr",
                "lr_bias",
                "momentum",
                "lr_inside",
                "decay",
                "decay_bias",
                "schedule",
            ]
        },
    )


def in_place(folder, recipe, divided, seed, precision=FAST, most=WHOLE["most"]):
    return updates(
        packed(folder, 256),
        whole(recipe, divided),
        seed,
        most,
        WHOLE["under"],
        precision,
    ) | dict(precision=precision)


def whole_runs(results, **settings):
    """The runs with these settings, by seed.

    Of a seed all or none, as the protocol has it.
    """
    runs = sorted(
        [r for r in lines(results) if "precision" not in r["job"]],
        key=lambda r: r["job"]["seed"],
    )
    count = Counter(r["job"]["seed"] for r in runs)
    return [
        r
        for r in runs
        if count[r["job"]["seed"]] == len(PLACES["recipe"]) * len(PLACES["divided"])
        and settings.items() <= r["job"].items()
    ]


def places(results, **settings):
    """Return spread, updates on the plateau and whether it was left, of every run.

    Of those with these settings.
    """
    return [
        (r["spread"], *length(r["losses"], **WHOLE))
        for r in whole_runs(results, **settings)
    ]


def summarize_in_place(results):
    """Return the lines of the summary of the whole nets.

    How many left, of every recipe and kind of pixels, with the exact interval of the
    share; what dividing does; what a recipe's start does.
    """
    shares, tests, pixels = [], [], {False: "raw", True: "divided"}
    for recipe, divided in product(PLACES["recipe"], pixels):
        runs = places(results, recipe=recipe, divided=divided)
        left = stats.binomtest(sum(left for *_, left in runs), len(runs))
        shares.append(
            intervals.row(
                f"{recipe}, {pixels[divided]}: share that left",
                left.statistic,
                *left.proportion_ci(),
                str(len(runs)),
            )
        )
        shares.append(
            intervals.row(
                f"{recipe}, {pixels[divided]}: median updates",
                float(np.median([n if left else np.inf for _, n, left in runs])),
                n=str(len(runs)),
            )
        )
    for recipe in PLACES["recipe"]:
        tests.append(
            compared(
                f"{recipe}, divided less raw: updates",
                places(results, recipe=recipe, divided=True),
                places(results, recipe=recipe, divided=False),
                exact=True,
            )
        )
    for recipe in PLACES["recipe"][1:]:
        tests.append(
            compared(
                f"{recipe} less paper, raw: updates",
                places(results, recipe=recipe, divided=False),
                places(results, recipe="paper", divided=False),
                exact=True,
            )
        )
    return shares + intervals.family(tests)


def jobs(factors):
    combinations = product(*factors.values())
    return [dict(zip(factors, values, strict=True)) for values in combinations]


EXPERIMENTS = dict(
    plateau=("cifar10", jobs(FACTORS), small, summarize_small),
    in_place=(
        "flowers5",
        (PARITY if FAST == "bfloat16" else []) + jobs(PLACES),
        in_place,
        summarize_in_place,
    ),
)


def main(folder, results, minutes=math.inf):
    """Run what has not been run yet, and write the summary once all is there."""
    data, todo, work, summarize = EXPERIMENTS[results.name]
    record(
        results,
        f"python nbs/evidence/experiments/plateau.py {data} results/{results.name}",
    )
    if run(todo, folder, results, minutes, work):
        intervals.write(results / "summary.tsv", summarize(results))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1], Path(sys.argv[2]), *map(float, sys.argv[3:]))
