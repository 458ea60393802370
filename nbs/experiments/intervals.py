"Estimates with their intervals and tests, and the tables they are kept in."
import csv
import math

import numpy as np
from scipy import stats


def permuted(a, b):
    "Exact two-sided p of a difference of means: the share of all ways to deal the numbers into two arms that differ as much."
    return float(stats.permutation_test((a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=math.inf, vectorized=True).pvalue)


def difference(a, b, level=0.95):
    "Difference of means, a less b, and its interval by Welch's t."
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(level)
    return float(np.mean(a) - np.mean(b)), float(low), float(high)


def mean(a):
    "Mean, and its 95 % interval by Student's t."
    low, high = stats.ttest_1samp(a, 0.0).confidence_interval(0.95)
    return float(np.mean(a)), float(low), float(high)


def ratio(a, b, draws=10_000):
    "Ratio of geometric means, a over b, and its 95 % bootstrap interval."
    a, b, g = np.log(a), np.log(b), np.random.default_rng(0)
    many = g.choice(a, (draws, len(a))).mean(1) - g.choice(b, (draws, len(b))).mean(1)
    return tuple(map(float, np.exp([a.mean() - b.mean(), *np.quantile(many, (0.025, 0.975))])))


def welch_ratio(a, b): return tuple(map(float, np.exp(difference(np.log(a), np.log(b)))))


def holm(ps):
    "Holm's adjusted p values."
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, ps[i] * (len(ps) - rank)))
        adjusted[i] = most
    return adjusted


FIELDS = "what estimate low high n p p_holm".split()


def row(what, estimate, low=math.nan, high=math.nan, n="", p=math.nan):
    "A line of a summary; numbers that were not asked for stay empty."
    return dict(what=what, estimate=estimate, low=low, high=high, n=n, p=p, p_holm=math.nan)


def family(rows):
    "The rows of one family of tests, with Holm's p values."
    return [r | dict(p_holm=p) for r, p in zip(rows, holm([r["p"] for r in rows]))]


def text(value): return value if isinstance(value, str) else "" if math.isnan(value) else f"{value:.4g}"


def write(path, rows):
    "Write summary.tsv."
    with open(path, "w", newline="") as f:
        out = csv.DictWriter(f, FIELDS, delimiter="\t", lineterminator="\n")
        out.writeheader()
        out.writerows({k: text(v) for k, v in r.items()} for r in rows)


def summary(path):
    "what → its line, numbers as they stand."
    with open(path) as f: return {r["what"]: r for r in csv.DictReader(f, delimiter="\t")}


def said(r, digits=2, percent=False):
    "An estimate with its interval, as a table shows it."
    f = lambda v: f"{float(v) * (100 if percent else 1):.{digits}f}"
    return f(r["estimate"]) + (f" ({f(r['low'])} to {f(r['high'])})" if r["low"] else "")
