"""Estimates with their intervals and tests, and the tables they are kept in."""

import csv
import itertools
import math

import numpy as np
from scipy import stats


def permuted(a, b):
    """Exact two-sided p of a difference of means.

    The share of all ways to deal the numbers into two arms that differ as much.
    """
    return float(
        stats.permutation_test(
            (a, b),
            lambda x, y, axis: x.mean(axis) - y.mean(axis),
            n_resamples=math.inf,
            vectorized=True,
        ).pvalue
    )


def difference(a, b, level=0.95):
    """Difference of means, a less b, and its interval by Welch's t."""
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(level)
    return float(np.mean(a) - np.mean(b)), float(low), float(high)


def mean(a):
    """Mean, and its 95 % interval by Student's t."""
    low, high = stats.ttest_1samp(a, 0.0).confidence_interval(0.95)
    return float(np.mean(a)), float(low), float(high)


def log_rank_scores(times, ended):
    """Return the log-rank score of every run.

    Whether it ended, less its cumulative hazard.

    The hazard is that of all runs together, where runs of equal length are tied. Summed
    over an arm, the scores are the ends observed in it less those expected, the
    numerator of the log-rank test.
    """
    times = np.asarray(times, float)
    ended = np.asarray(ended, bool)
    hazard = np.zeros(len(times))
    for time in np.unique(times[ended]):
        ends = np.sum(ended & (times == time))
        at_risk = np.sum(times >= time)
        hazard[times >= time] += ends / at_risk
    return ended - hazard


def dealt_sums(scores, size):
    """Return the sum of every choice of `size` of the scores.

    The arm's own choice, the first `size`, comes first.
    """
    return np.array([sum(chosen) for chosen in itertools.combinations(scores, size)])


def permuted_log_rank(*strata):
    """Return the exact two-sided p of the log-rank test.

    The share of all ways to deal the runs into the arms whose observed less expected
    ends are as far from 0.

    A stratum is a pair of arms, an arm a list of (time, ended); runs are dealt within
    their stratum. The ways of several strata are counted by two halves of them, of
    which every sum of one is met with every of the other.
    """
    halves = [np.zeros(1), np.zeros(1)]
    observed = 0.0
    for i, (one, other) in enumerate(strata):
        scores = log_rank_scores(*zip(*one, *other, strict=True))
        sums = dealt_sums(scores, len(one))
        observed += sums[0]
        halves[i % 2] = np.add.outer(halves[i % 2], sums).ravel()
    few, many = sorted(halves, key=len)
    many = np.sort(many)
    # sums of the same scores in another order differ in the last bits
    least = abs(observed) - 1e-9
    above = len(many) - np.searchsorted(many, least - few)
    below = np.searchsorted(many, -least - few, side="right")
    if least <= 0:
        return 1.0
    return float((above.sum() + below.sum()) / (len(few) * len(many)))


def ratio(a, b):
    """Return the ratio of geometric means, a over b, and its 95 % interval.

    By Welch's t on the logarithms.
    """
    return tuple(map(float, np.exp(difference(np.log(a), np.log(b)))))


def bootstrap_ratio(a, b, draws=10_000):
    """Ratio of geometric means, a over b, and its 95 % bootstrap interval.

    With few numbers a side too narrow.
    """
    a, b, g = np.log(a), np.log(b), np.random.default_rng(0)
    many = g.choice(a, (draws, len(a))).mean(1) - g.choice(b, (draws, len(b))).mean(1)
    return tuple(
        map(float, np.exp([a.mean() - b.mean(), *np.quantile(many, (0.025, 0.975))]))
    )


def holm(ps):
    """Holm's adjusted p values."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, ps[i] * (len(ps) - rank)))
        adjusted[i] = most
    return adjusted


FIELDS = ["what", "estimate", "low", "high", "n", "p", "p_holm"]


def row(what, estimate, low=math.nan, high=math.nan, n="", p=math.nan):
    """A line of a summary; numbers that were not asked for stay empty."""
    return dict(
        what=what, estimate=estimate, low=low, high=high, n=n, p=p, p_holm=math.nan
    )


def family(rows):
    """The rows of one family of tests, with Holm's p values."""
    adjusted = holm([r["p"] for r in rows])
    return [r | dict(p_holm=p) for r, p in zip(rows, adjusted, strict=True)]


def text(value):
    return (
        value if isinstance(value, str) else "" if math.isnan(value) else f"{value:.4g}"
    )


def write(path, rows):
    """Write summary.tsv."""
    with open(path, "w", newline="") as f:
        out = csv.DictWriter(f, FIELDS, delimiter="\t", lineterminator="\n")
        out.writeheader()
        out.writerows({k: text(v) for k, v in r.items()} for r in rows)


def summary(path):
    """What → its line, numbers as they stand."""
    with open(path) as f:
        return {r["what"]: r for r in csv.DictReader(f, delimiter="\t")}


def said(r, digits=2, percent=False):
    """An estimate with its interval, as a table shows it."""

    def f(v):
        return f"{float(v) * (100 if percent else 1):.{digits}f}"

    return f(r["estimate"]) + (
        f" ({f(r['low'])} to {f(r['high'])})" if r["low"] else ""
    )


def range_said(r, digits=0):
    """Return the interval of a row as a table shows it.

    Of one that has one end only, that end.
    """
    low, high = (
        f"{float(r[end]):.{digits}f}" if r[end] else "" for end in ("low", "high")
    )
    if low and high:
        return f"{low} to {high}"
    if low:
        return f"{low} or more"
    return f"{high} or less" if high else ""
