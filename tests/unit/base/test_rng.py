"""Numbers without state: equal wherever they are computed, and without a pattern."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from alexnet_nb.base import rng
from alexnet_nb.base.rng import at_least, integers, normals, random_bits, uniform

# ------------------------------------------------------------ the arithmetic itself


def mix(x):
    """Mix 32 bits in Python's integers, which do not overflow."""
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def row_key(key, counter, row, salt):
    folded = (0x243F6A88, 0x85A308D3)[salt]
    for part in key:
        for half in (part & 0xFFFFFFFF, part >> 32):
            folded = mix(folded ^ mix(half ^ 0x5BD1E995))
    step = (0x165667B1, 0xD6E8FEB9)[salt] * counter
    return mix(row * (0xC2B2AE3D, 0x27D4EB2F)[salt] + step + folded & 0xFFFFFFFF)


def one_number(key, counter, row, column):
    """Compute the bits of one place, without torch."""
    first = mix(column * 0x9E3779B9 + 0x3C6EF372 & 0xFFFFFFFF)
    second = mix(column * 0x9E3779B9 + 0xDAA66D2B & 0xFFFFFFFF) | 1
    x = (first ^ row_key(key, counter, row, 0)) * 0x9E3779B1 & 0xFFFFFFFF
    x ^= x >> 15
    x = (x + row_key(key, counter, row, 1) * second) * 0x85EBCA77 & 0xFFFFFFFF
    x ^= x >> 16
    return x - 2**32 if x >= 2**31 else x


PLACES = [
    ((0,), 0, 0, 0),
    ((2**32 - 1, 3, 1), 900_000, 1_023, 4_095),
    ((2**40 + 7, 0), 2**31 + 5, 1_281_166, 9_215),
    ((1, 2), 3, 2**31 + 1, 5),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("on_device", [False, True])
def test_a_number_is_that_of_integers_without_overflow(place, on_device):
    key, counter, row, column = place
    count = torch.tensor(counter) if on_device else counter
    columns = range(max(0, column - 3), column + 1)
    bits = random_bits(key, count, torch.arange(max(0, row - 2), row + 1), columns)
    assert bits.dtype == torch.int32
    assert bits[-1, -1].item() == one_number(*place)
    assert bits[0, 0].item() == one_number(key, counter, max(0, row - 2), columns[0])


def test_rows_and_columns_are_the_same_whichever_are_asked_for():
    whole = random_bits((3, 1), 7, torch.arange(300), range(500))
    some = random_bits((3, 1), 7, torch.tensor([290, 4, 4]), range(60, 90))
    assert torch.equal(some, whole[[290, 4, 4], 60:90])
    for rows, columns in ((0, 5), (5, 0)):
        empty = random_bits((3, 1), 7, torch.arange(rows), range(columns))
        assert empty.shape == (rows, columns)


@pytest.mark.parametrize("numbers", [1, 70, 1000, 2**15 - 1])
def test_the_size_of_a_block_changes_nothing(monkeypatch, numbers):
    """A block is a part of a row, some rows, or the whole table."""
    monkeypatch.setattr(rng, "_BLOCK", numbers)
    bits = random_bits((3, 1), 7, torch.arange(5, 28), range(3, 73))
    for row, column in ((0, 0), (1, 1), (13, 69), (14, 0), (22, 69)):
        expected = one_number((3, 1), 7, row + 5, column + 3)
        assert bits[row, column].item() == expected


@pytest.mark.slow
def test_compiled_they_are_the_same():
    """As one graph, which is for any number of rows and every step."""
    backend = CompileCounterWithBackend("inductor")
    compiled = torch.compile(random_bits, fullgraph=True, backend=backend)
    for count, step in ((33, 7), (33, 8), (200, 2**31 + 9)):
        rows = torch.arange(count)
        torch._dynamo.mark_dynamic(rows, 0)
        arguments = ((3, 1), torch.tensor(step), rows, range(60, 700))
        assert torch.equal(compiled(*arguments), random_bits(*arguments))
    assert backend.frame_count == 1


def test_compiled_for_one_seed_and_called_with_another():
    """The second time, torch.compile would make a symbol of it, and hash that."""

    def bits_of(seed, rows):
        return random_bits((seed, 1), 7, rows, range(5))

    compiled = torch.compile(bits_of, fullgraph=True, backend="eager")
    for seed in (3, 4, 2**40 + 7, 3):
        rows = torch.arange(9)
        assert torch.equal(compiled(seed, rows), bits_of(seed, rows))


def test_tensors_without_numbers_leave_no_trace():
    """A tool that follows shapes alone, as an estimate of memory does."""
    arguments = ((3, 1), 7, torch.arange(9), range(17, 52))
    with FakeTensorMode() as mode:
        random_bits(*arguments[:2], mode.from_tensor(arguments[2]), arguments[3])
    assert random_bits(*arguments)[0, 0].item() == one_number((3, 1), 7, 0, 17)


# ------------------------------------------------------------ what is made of them


def test_the_ends_of_the_range():
    ends = torch.tensor([-(2**31), -1, 0, 2**31 - 1], dtype=torch.int32)
    assert uniform(ends).tolist() == [0, 0.5 - 2**-24, 0.5, 1 - 2**-24]
    assert integers(ends, 33).tolist() == [0, 16, 16, 32]
    assert integers(ends, 2**31).tolist() == [0, 2**30 - 1, 2**30, 2**31 - 1]
    extremes = normals(torch.cartesian_prod(ends, ends))
    assert extremes.isfinite().all()
    assert 6.6 < extremes.abs().max() < 6.8


@pytest.mark.parametrize("threshold", [0, 0.2, 0.5, 1 / 3, 1 - 2**-24, 1])
def test_at_least_is_what_the_fraction_says(threshold):
    bits = random_bits((1,), 0, torch.arange(500), range(100))
    bits[0, :2] = torch.tensor([-(2**31), 2**31 - 1])
    expected = uniform(bits).double() >= threshold
    assert torch.equal(at_least(bits, threshold), expected)


def test_integers_are_exact():
    bits = random_bits((2,), 0, torch.arange(50), range(40))
    for high in (1, 2, 33, 1_000_003, 2**31):
        unsigned = bits.numpy().astype(object) + 2**31
        assert np.array_equal(integers(bits, high).numpy(), unsigned * high // 2**32)


def test_gaussians_are_those_of_box_and_muller():
    """The first half of a row are radii, the second angles; float32 at the end."""
    bits = random_bits((5,), 0, torch.arange(500), range(6))
    unsigned = bits.long() + 2**31
    for row, drawn in zip(unsigned.tolist(), normals(bits), strict=True):
        for i in range(3):
            radius = math.sqrt(-2 * math.log((row[i] + 0.5) / 2**32))
            expected = radius * math.cos(2 * math.pi * (row[i + 3] + 0.5) / 2**32)
            within_an_ulp = dict(rel=2**-23, abs=1e-14)  # a cosine near 0 is rounded
            assert drawn[i].item() == pytest.approx(expected, **within_an_ulp)


def test_gaussians_are_gaussian():
    bits = random_bits((5,), 0, torch.arange(100_000), range(6))
    drawn = normals(bits)
    assert drawn.dtype == torch.float32
    assert kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-4
    covariance = np.cov(drawn.T.numpy())
    assert np.abs(covariance - np.eye(3)).max() < 0.02


# ------------------------------------------------------------ how random they are

N, UNITS = 1024, 4096
ALL = dict(key=(0, 3, 0), counter=5, rows=N, columns=UNITS)
OTHERS = {
    "next step": dict(counter=6),
    "next seed": dict(key=(1, 3, 0)),
    "next layer": dict(key=(0, 3, 1)),
    "seed with one high bit": dict(key=(2**31, 3, 0)),
    "far step": dict(counter=5 + 2**20),
}


def table(**changes):
    """Compute a table of bits as unsigned numbers."""
    asked = ALL | changes
    rows = torch.arange(asked["rows"])
    bits = random_bits(asked["key"], asked["counter"], rows, range(asked["columns"]))
    return bits.numpy().view(np.uint32)


def signs(bits, place):
    """Return one bit of every number as 1 or -1."""
    return 1 - 2 * (bits >> place & 1).astype(np.int8)


def deviations(products):
    """Return a sum of signs in units of its standard deviation."""
    return abs(products.sum(dtype=np.int64)) / math.sqrt(products.size)


def check_neighbors(bits):
    """Return the largest deviation of a bit, and of products of neighboring bits."""
    worst = {}
    for place in range(32):
        s = signs(bits, place)
        products = {
            "balance": s,
            "rows": s[1:] * s[:-1],
            "columns": s[:, 1:] * s[:, :-1],
            "rectangle": s[1:, 1:] * s[1:, :-1] * s[:-1, 1:] * s[:-1, :-1],
            "far rectangle": s[512:, 2048:]
            * s[512:, :2048]
            * s[:512, 2048:]
            * s[:512, :2048],
        }
        for name, product in products.items():
            worst[name] = max(worst.get(name, 0), deviations(product))
    return worst


LIMIT = 5  # standard deviations; chance would exceed it once in 1.7 million counts


def test_neighbors_have_nothing_in_common():
    worst = check_neighbors(table())
    assert max(worst.values()) < LIMIT, worst


@pytest.mark.parametrize("other", OTHERS)
def test_other_keys(other):
    first, second = table(), table(**OTHERS[other])
    for place in range(32):
        together = deviations(signs(first, place) * signs(second, place))
        assert together < LIMIT, place
    assert np.mean(first == second) < 1e-5


def test_every_byte_comes_up_as_often():
    bits = table()
    for shift in range(0, 32, 8):
        counts = np.bincount((bits >> shift & 255).ravel(), minlength=256)
        expected = bits.size / 256
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert 1e-6 < chi2.sf(statistic, 255) < 1 - 1e-6, shift


def test_no_row_and_no_column_has_more_than_its_share():
    """Their sums spread as those of independent bits, neither more nor less."""
    bits = table()
    for place in range(32):
        s = signs(bits, place).astype(np.int64)
        for sums, length in ((s.sum(1), UNITS), (s.sum(0), N)):
            ratio = sums.var() / length
            assert abs(ratio - 1) < 6 * math.sqrt(2 / len(sums)), place


def test_no_two_rows_are_alike():
    """Of 100 steps of 128 images; and not in one bit of every unit, either."""
    rows = [table(counter=step, rows=128, columns=64) for step in range(100)]
    masks = np.packbits(np.concatenate(rows) >> 31, axis=1, bitorder="little")
    assert len(np.unique(masks, axis=0)) == 12_800


# ------------------------------------------------------------ those with similar keys


def closest(keys, count=100):
    """Return the pairs of keys that have the most of their low bits in common.

    A multiplication carries bits upward only, so those are the hardest to tell apart.
    """
    low_first = np.unpackbits(keys.numpy()[:, None].view(np.uint8), 1, None, "little")
    reversed_keys = np.packbits(low_first, axis=1).view(">u4")[:, 0].astype(np.int64)
    order = reversed_keys.argsort()
    in_common = (reversed_keys[order[1:]] ^ reversed_keys[order[:-1]]).argsort()[:count]
    return torch.from_numpy(np.stack((order[in_common], order[in_common + 1]), 1))


def check_similar(of_rows, of_columns):
    """Return the largest deviation of a bit that two similar rows have in common."""
    worst = 0
    for pair in closest(of_rows[0]):
        rows = [keys[pair] for keys in of_rows]
        bits = rng._combine(*rows, *of_columns).numpy().view(np.uint32)
        for place in (31, 30, 28, 25, 16, 0):
            s = signs(bits, place)
            worst = max(worst, deviations(s[0] * s[1]))
    return worst


def check_similar_units(rows=2**18, units=13_312):
    """Do so for the inputs of fc6 and fc7, whose keys are those of every step."""
    of_rows = [rng._row_keys((0, 3), 5, torch.arange(rows), salt) for salt in (0, 1)]
    of_columns = rng._column_keys(range(units), torch.device("cpu"))
    return check_similar(of_columns, of_rows)


def check_similar_images(rows=2**17, units=13_312):
    """Do so for the images of a thousand batches."""
    of_rows = [rng._row_keys((0, 3), 5, torch.arange(rows), salt) for salt in (0, 1)]
    of_columns = rng._column_keys(range(units), torch.device("cpu"))
    return check_similar(of_rows, of_columns)


def test_similar_keys_make_different_numbers():
    assert check_similar_units() < LIMIT
    assert check_similar_images() < LIMIT


def one_key(of_table):
    """Return a function for keys that has no second key, or always the same."""

    def keys(*asked):
        found = of_table(*asked)
        if isinstance(found, tuple):
            return found[0], torch.ones_like(found[1])
        return torch.zeros_like(found) if asked[-1] == 1 else found

    return keys


WEAKENED = {
    "rows without a key": {"_ROW_STEPS": (0, 0)},
    "steps without a key": {"_COUNTER_STEPS": (0, 0)},
    "rows with one key": {"_row_keys": one_key(rng._row_keys)},
    "columns with one key": {"_column_keys": one_key(rng._column_keys)},
    "one multiplication less": {
        "_column_keys": one_key(rng._column_keys),
        "_MULTIPLIERS": (rng._MULTIPLIERS[0], 1),
    },
    "a multiplier with low zeros": {"_MULTIPLIERS": (1, 2**24)},
}
FOUND_OUT_BY = [
    ("rows without a key", test_neighbors_have_nothing_in_common),
    ("rows without a key", test_no_row_and_no_column_has_more_than_its_share),
    ("rows without a key", test_no_two_rows_are_alike),
    ("steps without a key", lambda: test_other_keys("next step")),
    ("rows with one key", test_similar_keys_make_different_numbers),
    ("columns with one key", test_similar_keys_make_different_numbers),
    ("one multiplication less", test_neighbors_have_nothing_in_common),
    ("one multiplication less", test_similar_keys_make_different_numbers),
    ("a multiplier with low zeros", test_every_byte_comes_up_as_often),
]


@pytest.mark.parametrize(("how", "test"), FOUND_OUT_BY)
def test_a_weaker_hash_is_found_out(monkeypatch, how, test):
    for name, value in WEAKENED[how].items():
        monkeypatch.setattr(rng, name, value)
    with pytest.raises(AssertionError):
        test()
