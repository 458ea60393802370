"""Experiments keep to the protocol that was written before them.

Their summaries follow from their runs; test_redrawn.py draws their pages again.
"""

import functools
import hashlib
import importlib
import itertools
import json
import math
import re

import numpy as np
import pytest

from helpers import ROOT

BEGUN = sorted(
    p.parent.name
    for p in (ROOT / "results").glob("*/protocol.md")
    if (p.parent / "metrics.jsonl").exists()
)
SUMMARIES = dict(
    figure1=("cifar", "summarize"),
    analogues=("analogues", "summarize"),
    plateau=("plateau", "summarize_small"),
    in_place=("plateau", "summarize_in_place"),
    fine_tune=("fine_tune", "summarize"),
    overfitting=("overfitting", "summarize"),
)


@pytest.fixture
def experiment(monkeypatch):
    """A module of nbs/experiments, by name."""
    monkeypatch.syspath_prepend(ROOT / "nbs/evidence/experiments")
    return importlib.import_module


@pytest.fixture
def cifar(experiment):
    return experiment("cifar")


@pytest.mark.parametrize("name", BEGUN)
def test_recorded_protocol_is_the_one_that_was_followed(name):
    folder = ROOT / "results" / name
    assert (
        json.loads((folder / "env.json").read_text())["protocol"]
        == hashlib.sha256((folder / "protocol.md").read_bytes()).hexdigest()
    )


@pytest.mark.parametrize(
    "name", [n for n in BEGUN if (ROOT / "results" / n / "summary.tsv").exists()]
)
def test_summary_follows_from_the_runs(name, experiment, tmp_path):
    module, function = SUMMARIES[name]
    rows = getattr(experiment(module), function)(ROOT / "results" / name)
    experiment("intervals").write(tmp_path / "summary.tsv", rows)
    assert (tmp_path / "summary.tsv").read_text() == (
        ROOT / "results" / name / "summary.tsv"
    ).read_text()


def test_recorded_figure1_keeps_to_its_design(cifar):
    """Seeds of the arms were not used for the rates.

    The rate is the best of a grid that it lies inside; at most six runs an arm.
    """
    jobs = [job for job, _ in cifar.read(ROOT / "results/figure1")]
    assert len({json.dumps(j, sort_keys=True) for j in jobs}) == len(jobs)
    rates = cifar.best(ROOT / "results/figure1")
    for arm, lr in rates.items():
        grid = sorted(
            {
                j["lr"]
                for j in jobs
                if j["epochs"] == 3 and (j["activation"], j["start"]) == arm
            }
        )
        assert grid[0] < lr < grid[-1]
        assert all(
            b / a == pytest.approx(10**0.5, rel=0.06)
            for a, b in itertools.pairwise(grid)
        )
        main = [
            j
            for j in jobs
            if j["epochs"] == 60 and (j["activation"], j["start"]) == arm
        ]
        assert all(j["lr"] == lr for j in main)
        assert [j["seed"] for j in sorted(main, key=lambda j: j["seed"])] == sorted(
            {j["seed"] for j in main}
        )
        assert all(0 <= j["seed"] < 6 for j in main)


def test_crossing_is_interpolated(cifar):
    assert cifar.crossing([(1.0, 0.5), (2.0, 0.2)]) == pytest.approx(1 + 0.25 / 0.3)
    assert cifar.crossing([(1.0, 0.5), (2.0, 0.3)]) is None


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_calibrated_start_keeps_the_signal(cifar, activation):
    """Deviation times the root of the fan-in is the gain.

    In conv1 divided by the deviation of the pixels.
    """
    net = cifar.three_convolutions(activation, "gain", 0, 63.0)
    for p in net.parameters():
        if p.dim() > 1:
            gain = (
                p.std().item()
                * math.sqrt(p[0].numel())
                * (63 if p is net.features[0].weight else 1)
            )
            assert gain == pytest.approx(cifar.GAINS[activation], rel=0.05)


def test_recorded_plateau_is_as_the_page_says(experiment):
    """What its prose says of the small net, beyond the tables that are drawn."""
    plateau, small = experiment("plateau"), ROOT / "results/plateau"

    def runs(**factors):
        return plateau.spells(small, **factors)

    assert all(left for *_, left in runs(divide=1.0, deviation=0.03))
    assert not any(left for *_, left in runs(divide=58.0, deviation=0.01))

    def mean(**factors):
        return sum(n for _, n, _ in runs(divide=1.0, **factors)) / 4

    for lr in plateau.FACTORS["lr"]:
        for bias in plateau.FACTORS["bias"]:
            assert mean(lr=lr, bias=bias, deviation=0.01) > mean(
                lr=lr, bias=bias, deviation=0.03
            )
        for deviation in (0.01, 0.03):
            assert mean(lr=lr, deviation=deviation, bias=0.0) > mean(
                lr=lr, deviation=deviation, bias=1.0
            )
    numbers = experiment("intervals").summary(small / "summary.tsv")

    def p(words):
        return [
            float(
                numbers[f"deviation 0.01 less 0.03{words}, rate {lr:g}: updates"][
                    "p_holm"
                ]
            )
            for lr in plateau.FACTORS["lr"]
        ]

    mixed, alike = p(""), p(" at the same pixels and biases")
    assert min(mixed[:2]) > 0.05 > mixed[2]
    assert max(alike) < 1e-5


def test_recorded_plateau_and_spread_are_as_the_page_says(experiment):
    """Among raw pixels at each rate a larger spread goes with a shorter plateau.

    At the same spread divided pixels take longer.
    """
    plateau, small = experiment("plateau"), ROOT / "results/plateau"

    def runs(**factors):
        return plateau.spells(small, **factors)

    for lr in plateau.FACTORS["lr"]:
        assert (
            plateau.stats.spearmanr(
                *zip(*[(s, n) for s, n, _ in runs(divide=1.0, lr=lr)], strict=True)
            ).statistic
            < -0.9
        )

        def near(divide, lr=lr):
            return [n for s, n, _ in runs(divide=divide, lr=lr) if 8e-4 < s < 1.3e-3]

        assert len(near(1.0)) >= 4
        assert len(near(58.0)) >= 4
        assert max(near(1.0)) < min(near(58.0))
    assert sum(not left for *_, left in runs(divide=1.0, bias=0.0)) == 5
    assert sum(not left for *_, left in runs(divide=1.0, bias=1.0)) == 0


def test_recorded_analogues_are_as_the_page_says(experiment):
    """What its prose says, beyond the tables that are drawn.

    Eight seeds an arm, at rates that lie inside their grids.
    """
    analogues, intervals, results = (
        experiment("analogues"),
        experiment("intervals"),
        ROOT / "results/analogues",
    )
    numbers = intervals.summary(results / "summary.tsv")

    def p(arm):
        return float(numbers[f"columns less {arm}: test error"]["p_holm"])

    assert p("apart") < 0.05
    assert p("half") < 0.05
    assert p("apart_wide") > 0.05
    assert p("dense") > 0.05
    for arm in analogues.ARMS:
        runs = analogues.final(results, arm)
        assert [r["job"]["seed"] for r in runs] == list(range(8))
        assert {r["job"]["lr"] for r in runs} == {analogues.best(results)[arm]}
        grid = {
            r["job"]["lr"]
            for r in analogues.cifar.lines(results)
            if r["job"]["arm"] == arm and r["job"]["epochs"] == 3
        }
        assert min(grid) < runs[0]["job"]["lr"] < max(grid)
    nets = {arm: analogues.splits(results, arm) for arm in analogues.COLORED_ARMS}
    assert all(net["p"] > 0.05 for of in nets.values() for net in of)
    together = {
        arm: float(numbers[f"{arm}: difference of the columns' color"]["p"])
        for arm in nets
    }
    assert together["columns"] < 0.05 < min(together["apart"], together["dense"])
    assert all(
        ten < one
        for ten, one in zip(
            analogues.ends(results, "crops", "ten"),
            analogues.ends(results, "crops"),
            strict=True,
        )
    )
    assert (
        sum(
            float(numbers[f"ten crops less one, seed {s}"]["p_holm"]) < 0.05
            for s in analogues.SEEDS
        )
        == 1
    )


def test_recorded_normalization_and_dropout_are_as_the_page_says(experiment):
    """With response normalization every net has more error and more training loss.

    Compared with the one without of the same seed. Dropout takes longer, but not twice
    as long, in every pair.
    """
    analogues, intervals, results = (
        experiment("analogues"),
        experiment("intervals"),
        ROOT / "results/analogues",
    )
    numbers = intervals.summary(results / "summary.tsv")
    for arm in ("lrn_source", "lrn_paper"):
        assert all(
            with_ > without
            for with_, without in zip(
                analogues.ends(results, arm),
                analogues.ends(results, "dense"),
                strict=True,
            )
        )
        assert all(
            with_ > without
            for with_, without in zip(
                analogues.ends(results, arm, "loss"),
                analogues.ends(results, "dense", "loss"),
                strict=True,
            )
        )
        assert float(numbers[f"{arm} less dense: test error"]["p_holm"]) < 0.05
    dropout, none = (analogues.until(results, arm) for arm in ("dropout", "no_dropout"))
    ratio = numbers["dropout over none: epochs to a loss of 0.5"]
    assert max(none) < min(dropout)
    assert max(dropout) < 30
    assert float(ratio["high"]) < 2
    assert float(ratio["p"]) < 0.05


def test_recorded_overfitting_is_as_the_page_says(experiment):
    """Without augmentation and dropout the validation loss falls and then rises.

    With both, the two losses are closer at the end.
    """
    overfitting, results = experiment("overfitting"), ROOT / "results/overfitting"
    neither, both = (overfitting.curve(results, name) for name in overfitting.ARMS)
    assert neither[-1, 3] > 1.5 * neither[:, 3].min()
    assert neither[-1, 1] == neither[:, 1].min() < 0.1 * neither[-1, 3]
    assert both[-1, 3] - both[-1, 1] < neither[-1, 3] - neither[-1, 1]
    assert both[-1, 4] < neither[-1, 4]


@pytest.mark.parametrize("page", ["index.ipynb", "tour.ipynb"])
def test_pages_state_who_left_the_plateau(page, experiment, cells):
    """So many of 16 runs with the initialization of the paper or of the code."""
    plateau, folder = experiment("plateau"), ROOT / "results/in_place"
    left = {}
    for divided in (False, True):
        rows = []
        for recipe in ("paper", "source2012"):
            rows += plateau.places(folder, recipe=recipe, divided=divided)
        assert len(rows) == 16
        left[divided] = sum(has_left for *_, has_left in rows)
    text = re.sub(r'"\n\s+f?"', "", "".join("".join(c["source"]) for c in cells(page)))
    assert f"{left[False]} of 16 runs" in text
    assert left[True] == 0
    assert "none of 16 did" in text


def test_recorded_in_place_is_as_the_page_says(experiment):
    """The same seeds of each start and kind of pixels; who left the plateau.

    Every test is below 0.05; where biases are 1 the loss rises first, and comes back.
    """
    plateau, intervals, whole = (
        experiment("plateau"),
        experiment("intervals"),
        ROOT / "results/in_place",
    )
    runs = {
        (recipe, divided): plateau.whole_runs(whole, recipe=recipe, divided=divided)
        for recipe in plateau.PLACES["recipe"]
        for divided in (False, True)
    }
    assert all([r["job"]["seed"] for r in of] == list(range(8)) for of in runs.values())
    left = {
        key: sum(
            left for *_, left in plateau.places(whole, recipe=key[0], divided=key[1])
        )
        for key in runs
    }
    assert [left[recipe, True] for recipe in plateau.PLACES["recipe"]] == [0, 0, 8, 8]
    assert [left[recipe, False] for recipe in plateau.PLACES["recipe"]] == [7, 8, 8, 8]
    right = {False: [], True: []}  # whether runs without the wrong gradient left it
    for recipe, divided in [(r, d) for r in ("paper", "source2012") for d in right]:
        places = plateau.places(whole, recipe=recipe, divided=divided)
        for run, (*_, has_left) in zip(runs[recipe, divided], places, strict=True):
            if recipe == "paper" or run["device"] == "cpu":
                right[divided].append(has_left)
    assert (sum(right[False]), len(right[False])) == (9, 10)
    assert (sum(right[True]), len(right[True])) == (0, 10)
    assert all(
        float(r["p_holm"]) < 0.05
        for r in intervals.summary(whole / "summary.tsv").values()
        if r["p_holm"]
    )
    small = intervals.summary(ROOT / "results/plateau/summary.tsv")
    least, power = (
        float(small["spread of 0.001, rate 0.01: updates, 95 % of nets"]["low"]),
        float(small["power of the spread, rate 0.01"]["estimate"]),
    )
    sooner = [
        left and n < least * (spread / 0.001) ** power
        for recipe, divided in runs
        for spread, n, left in plateau.places(whole, recipe=recipe, divided=divided)
    ]
    assert sum(sooner) > len(sooner) / 2
    highest = {key: [max(r["losses"][:20]) for r in of] for key, of in runs.items()}
    assert (
        min(
            x
            for (recipe, _), of in highest.items()
            if recipe in ("paper", "source2012")
            for x in of
        )
        > 1.85
    )
    assert (
        max(x for (recipe, _), of in highest.items() if recipe == "caffe" for x in of)
        < 1.65
    )


def test_what_it_costs(cifar, tmp_path):
    """Runs on a processor count by the core.

    Runs that share a GPU, eight at a time, by the minute of the GPU.
    """
    rows = [
        dict(seconds=1800),
        dict(seconds=1800, device="cpu"),
        dict(seconds=480, device="cuda"),
    ]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )
    assert cifar.cost(tmp_path) == "3 runs, 1.0 minutes of a GPU and 1.0 core-hours"


def test_a_split_is_found(experiment):
    """A net whose one column is colored and whose other is gray is beyond chance.

    One dealt at random is not; gray kernels have no color.
    """
    analogues, g = experiment("analogues"), np.random.default_rng()
    gray, colored = (
        np.repeat(g.normal(size=(16, 1, 25)), 3, 1),
        g.normal(size=(16, 3, 25)),
    )

    def encode(w):
        return analogues.base64.b64encode(w.astype(np.float16).tobytes()).decode()

    shares = analogues.color(encode(np.concatenate([gray, colored])))
    assert shares[:16] == pytest.approx(0, abs=1e-3)
    assert shares[16:].mean() == pytest.approx(2 / 3, abs=0.1)
    assert analogues.split(shares, 0)["p"] < 0.001
    assert (
        analogues.split(np.tile(shares.reshape(2, 16)[:, :8].ravel(), 2), 0)["p"] > 0.5
    )


def test_length_of_a_plateau(experiment):
    """The run ends with the window whose mean is under the threshold.

    A run that did not leave, or gave no number, counts as the most.
    """
    length = experiment("plateau").length
    assert length([2.3] * 80 + [1.5] * 20, 500, 2.0) == (100, True)
    assert length([2.3] * 500, 500, 2.0) == (500, False)
    assert length([2.3] * 30 + [None], 500, 2.0) == (500, False)


def test_intervals_against_scipy(experiment):
    """The exact permutation test counts all 12,870 ways.

    Holm's values for a case worked by hand; a ratio's interval holds the ratio.
    """
    intervals = experiment("intervals")
    a, b = [1.0, 2, 3, 4, 5, 6, 7, 8], [9.0, 10, 11, 12, 13, 14, 15, 16]
    assert intervals.permuted(a, b) == pytest.approx(2 / math.comb(16, 8))
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    estimate, low, high = intervals.ratio([20, 22, 18, 21], [4, 5, 6, 5])
    assert low < estimate < high
    assert estimate == pytest.approx((20 * 22 * 18 * 21 / (4 * 5 * 6 * 5)) ** 0.25)
    bootstrap = intervals.bootstrap_ratio([20, 22, 18, 21], [4, 5, 6, 5])
    assert bootstrap[0] == pytest.approx(estimate)
    assert low < bootstrap[1] < bootstrap[2] < high
    estimate, low, high = intervals.difference(a, b)
    assert estimate == -8
    assert low == pytest.approx(-8 - 2.144787 * 1.224745, abs=1e-4)
    assert high == pytest.approx(-16 - low)


def ends_above_expectation(runs, arm):
    """Observed less expected ends in an arm, counted time by time as in a textbook.

    An arm is places in the list of runs.
    """
    total = 0.0
    for time in sorted({time for time, ended in runs if ended}):
        at_risk = [i for i, (other, _) in enumerate(runs) if other >= time]
        ends = [i for i, (other, ended) in enumerate(runs) if other == time and ended]
        total += sum(i in arm for i in ends) - len(ends) * sum(
            i in arm for i in at_risk
        ) / len(at_risk)
    return total


def counted_log_rank(*strata):
    """The exact two-sided p of the log-rank test.

    By going through every way to deal the runs of every stratum.
    """
    ways = []
    for one, other in strata:
        dealt = itertools.combinations(range(len(one + other)), len(one))
        ways.append([ends_above_expectation([*one, *other], set(arm)) for arm in dealt])
    observed = abs(sum(way[0] for way in ways))
    sums = [abs(sum(way)) for way in itertools.product(*ways)]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


@pytest.mark.parametrize(
    "strata",
    [
        [([(5, True), (7, True), (9, False)], [(1, True), (5, True), (6, True)])],
        [
            ([(5, True), (9, False), (9, False)], [(1, True), (5, True)]),
            ([(3, True), (8, True)], [(2, True), (4, False), (6, True)]),
        ],
        [
            ([(9, False)] * 2, [(9, False)] * 3),
            ([(4, True), (5, True)], [(2, True), (3, True)]),
        ],
        [([(9, False)] * 2, [(9, False)] * 3)],
    ],
    ids=[
        "one stratum",
        "two strata, ties and stops",
        "a stratum where all were stopped",
        "all were stopped",
    ],
)
def test_exact_log_rank_against_every_way_to_deal(experiment, strata):
    assert experiment("intervals").permuted_log_rank(*strata) == pytest.approx(
        counted_log_rank(*strata), abs=1e-12
    )


def test_exact_log_rank_of_the_runs_in_place(experiment):
    """Eight runs a side cannot give less than 2 of 12,870 ways.

    The summary prints no smaller p; one pair is counted again by going through all
    ways.
    """
    plateau, intervals, whole = (
        experiment("plateau"),
        experiment("intervals"),
        ROOT / "results/in_place",
    )

    def arm(recipe, divided):
        return plateau.times(plateau.places(whole, recipe=recipe, divided=divided))

    numbers = intervals.summary(whole / "summary.tsv")
    p = {what: float(r["p"]) for what, r in numbers.items() if r["p"]}
    assert len(p) == 7
    assert min(p.values()) == pytest.approx(2 / math.comb(16, 8), rel=1e-3)
    counted = counted_log_rank((arm("source2012", False), arm("paper", False)))
    assert p["source2012 less paper, raw: updates"] == pytest.approx(counted, rel=1e-3)
    assert max(p.values()) == pytest.approx(counted, rel=1e-3)
    corrected = [float(r["p_holm"]) for r in numbers.values() if r["p_holm"]]
    assert (round(min(corrected), 4), round(max(corrected), 4)) == (0.0011, 0.0028)


def test_an_end_that_a_stop_has_put_there_is_not_given(experiment):
    """Of an interval only the end nearer to 0 is left.

    Where the group that stayed longer has stopped runs.
    """
    plateau, intervals = experiment("plateau"), experiment("intervals")
    quick, slow, stopped = (
        [(0.1, n, left) for n in (a, a + 2, a + 4)]
        for a, left in ((10, True), (50, True), (90, False))
    )
    assert not any(math.isnan(x) for x in plateau.updates_apart(slow, quick))
    gap, low, high = plateau.updates_apart(stopped, quick)
    assert gap == 80
    assert 0 < low < gap
    assert math.isnan(high)
    gap, low, high = plateau.updates_apart(quick, stopped)
    assert gap == -80
    assert math.isnan(low)
    assert gap < high < 0
    r = dict(low="1.5", high="")
    assert (
        intervals.range_said(r),
        intervals.range_said(r | dict(high="3")),
        intervals.range_said(dict(low="", high="-3")),
    ) == ("2 or more", "2 to 3", "-3 or less")
    for name, arms in (
        (
            "in_place",
            [f"{r}, divided less raw: updates" for r in ("paper", "source2012")],
        ),
        ("plateau", ["divided pixels less raw, rate 0.01: updates"]),
    ):
        numbers = intervals.summary(ROOT / "results" / name / "summary.tsv")
        assert all(numbers[arm]["low"] and not numbers[arm]["high"] for arm in arms)


def test_check_signal_quotes_the_experiment(experiment):
    """Its constants are those of the fit, rounded."""
    from alexnet_nb.learning import PLATEAU

    plateau, intervals = experiment("plateau"), experiment("intervals")
    level, power, std = plateau.prediction(
        plateau.spells(ROOT / "results/plateau", lr=0.01)
    )
    assert (round(level), round(power, 2), round(math.exp(1.96 * std), 2)) == tuple(
        PLATEAU.values()
    )
    numbers = intervals.summary(ROOT / "results/plateau/summary.tsv")
    assert float(
        numbers["power of the spread, rate 0.01"]["estimate"]
    ) == pytest.approx(power, rel=1e-3)


def test_recorded_fine_tuning_keeps_to_its_design(experiment):
    """Five seeds of each condition, each run once and to its last epoch."""
    module = experiment("fine_tune")
    results = ROOT / "results/fine_tune"
    rows = module.lines(results)
    key = functools.partial(json.dumps, sort_keys=True)
    assert sorted(key(row["job"]) for row in rows) == sorted(map(key, module.jobs()))
    assert all(len(row["errors"]) == row["job"]["epochs"] for row in rows)
    weights = json.loads((results / "weights/config.json").read_text())
    settings = dict(width_mult=0.25, crop_size=64, batch_size=64, epochs=6, seed=0)
    assert settings.items() <= weights.items()


def test_differences_of_pairs_are_by_hand(experiment):
    """Student's t of the differences: 4.303 is its quantile for three pairs."""
    estimate, low, high = experiment("fine_tune").paired([3, 5, 10], [2, 3, 4])
    spread = 4.303 * np.std([1, 2, 6], ddof=1) / 3**0.5
    assert (estimate, low, high) == pytest.approx((3, 3 - spread, 3 + spread), rel=1e-3)
