"""The package is broken on purpose, and a test notices.

Every trap about code has a patch that steps into it.
"""

import csv
import random
from pathlib import Path

import pytest

from helpers import LONG, ROOT


@pytest.fixture
def mutants(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import mutants

    return mutants


def test_every_trap_with_a_test_has_a_patch_that_fits(mutants):
    with open(ROOT / "nbs/evidence/traps.tsv") as f:
        tested = {t["number"] for t in csv.DictReader(f, delimiter="\t") if t["test"]}
    assert {p["trap"] for p in mutants.patches()} == tested
    for patch in mutants.patches():
        mutants.patched((ROOT / f"alexnet_nb/{patch['module']}.py").read_text(), patch)


@pytest.mark.slow
def test_a_sample_of_the_patches_is_caught(mutants, tmp_path):
    """By the trap's own test; all of them behind the flag."""
    mutants.copy(tmp_path)
    every = mutants.patches()
    for patch in every if LONG else random.SystemRandom().sample(every, 2):
        source = (ROOT / f"alexnet_nb/{patch['module']}.py").read_text()
        caught, _ = mutants.try_it(
            tmp_path,
            patch["module"],
            mutants.patched(source, patch),
            f"tests/evidence/test_traps*.py -k test_trap_{int(patch['trap']):02}",
        )
        assert caught, patch
        assert caught[0].startswith(f"test_trap_{int(patch['trap']):02}"), patch


@pytest.mark.parametrize("name", ["traps", "random"])
def test_tables_are_made_from_the_outcomes(mutants, name):
    with open(ROOT / f"results/mutants/{name}.tsv") as f:
        rows = list(csv.DictReader(f, delimiter="\t"))
    assert (
        Path(ROOT / f"results/mutants/{name}.md").read_text()
        == f"{mutants.TABLES[name](rows)}\n"
    )
    if name == "traps":
        assert all(row["caught by"] for row in rows)
        assert [r["trap"] for r in rows] == [p["trap"] for p in mutants.patches()]
    else:
        assert len(rows) >= 20
