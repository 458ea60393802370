"""Breaks the package on purpose and sees whether a test notices.

Writes results/mutants/{traps,random}.tsv and their tables.

    python benchmarks/mutants.py [traps | random] [how many]

traps: the patches of tests/patches.tsv, each of which steps into a trap; that trap's
own test is to fail. random: constants, operators and comparisons of lrn, multigpu and
learning, changed one at a time, drawn with a fixed seed.
"""

import ast
import csv
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alexnet_nb.base.files import atomic_write
from alexnet_nb.base.table import MarkdownTable

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results/mutants"
SUITES = {  # tests of a module, the fast ones first
    "lrn": "tests/unit/test_lrn.py tests/evidence/test_traps*.py",
    "multigpu": (
        "tests/unit/test_multigpu.py tests/distributed/test_two_processes.py "
        "tests/faults/test_survival.py -k 'faults_are_caught or ten_steps or "
        "plain_grouped or one_step or takes_up'"
    ),
    "learning": (
        "tests/unit/test_learning.py tests/unit/test_recipes.py "
        "tests/unit/test_multigpu.py tests/unit/test_lab.py "
        "tests/evidence/test_claims.py tests/evidence/test_traps*.py "
        "tests/distributed/test_two_processes.py -k 'not digits and not "
        "one_step'"
    ),
}


def copy(folder):
    """The files of the repository, as they are in the index."""
    subprocess.run(
        ["git", "-C", ROOT, "checkout-index", "-a", f"--prefix={folder}/"], check=True
    )


def failing(folder, tests):
    """Names of the tests that fail first in a copy, or none."""
    command = (
        f"{sys.executable} -m pytest -x -q -o addopts= -p no:cacheprovider {tests}"
    )
    try:
        done = subprocess.run(
            command,
            shell=True,
            cwd=folder,
            env=os.environ | dict(PYTHONPATH=str(folder)),
            capture_output=True,
            text=True,
            timeout=400,
        )
    except subprocess.TimeoutExpired:
        return ["out of time"]
    return re.findall(r"^(?:FAILED|ERROR) \S+?::(\w+)", done.stdout, re.M) or (
        ["the tests ended early"] if done.returncode else []
    )


def patches():
    """The patches of tests/patches.tsv.

    Trap, module, what is found, what is put in its place.
    """
    with open(ROOT / "tests/patches.tsv") as f:
        return list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))


def patched(source, patch):
    """A module's source with its patch.

    The patch is written against the source as `ast.unparse` writes it, so that it does
    not depend on how lines are broken. Raises `ValueError` where it does not fit
    exactly once.
    """
    plain = ast.unparse(ast.parse(source))
    count = plain.count(patch["find"])
    if count != 1:
        raise ValueError(
            f"trap {patch['trap']}: got {patch['find']!r} {count} times in"
            f" {patch['module']}, expected it once"
        )
    return plain.replace(patch["find"], patch["put"] or "")


SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def places(tree):
    """Everything that can be changed, with what it becomes.

    Words of messages are left alone.
    """
    words = {
        id(n)
        for s in ast.walk(tree)
        if isinstance(s, (ast.Raise, ast.JoinedStr))
        for n in ast.walk(s)
    }
    for node in ast.walk(tree):
        if id(node) in words:
            continue
        if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
            yield node, "op", SWAPS[type(node.op)]()
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, "ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]]
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "value", node.value + 1
        if isinstance(node, ast.Constant) and type(node.value) is bool:
            yield node, "value", not node.value


def mutant(source, draw):
    """A module with one random change: its source, and the line before and after."""
    tree, before = ast.parse(source), ast.unparse(ast.parse(source))
    node, field, value = draw.choice(list(places(tree)))
    setattr(node, field, value)
    after = ast.unparse(tree)
    return after, *next(
        (a.strip(), b.strip())
        for a, b in zip(before.splitlines(), after.splitlines(), strict=False)
        if a != b
    )


def try_it(folder, module, source, tests):
    """Replace a module in the copy; return seconds, and the test that noticed."""
    path, begin = folder / f"alexnet_nb/{module}.py", time.monotonic()
    before = path.read_text()
    path.write_text(source)
    try:
        return failing(folder, tests), round(time.monotonic() - begin)
    finally:
        path.write_text(before)


def write(name, rows):
    with (
        atomic_write(RESULTS / f"{name}.tsv") as temp,
        open(temp, "w", newline="") as f,
    ):
        out = csv.DictWriter(f, rows[0], delimiter="\t", lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    with atomic_write(RESULTS / f"{name}.md") as temp:
        temp.write_text(f"{TABLES[name](rows)}\n")


def trap_table(rows):
    return MarkdownTable(
        ["trap", "module", "put in place of", "caught by"],
        [
            (
                r["trap"],
                r["module"],
                f"`{r['put'] or 'nothing'}` for `{r['find']}`".replace("|", "\\|"),
                f"`{r['caught by']}`" if r["caught by"] else "**nothing**",
            )
            for r in rows
        ],
        f"{sum(bool(r['caught by']) for r in rows)} of {len(rows)} patches were caught"
        " by the trap's own test.",
    )


def random_table(rows):
    return MarkdownTable(
        ["module", "before", "after", "caught by"],
        [
            (
                r["module"],
                f"`{r['before']}`".replace("|", "\\|"),
                f"`{r['after']}`".replace("|", "\\|"),
                f"`{r['caught by']}`" if r["caught by"] else "**nothing**",
            )
            for r in rows
        ],
        f"{sum(bool(r['caught by']) for r in rows)} of {len(rows)} random changes were"
        " caught.",
    )


TABLES = {"traps": trap_table, "random": random_table}


def main():
    what, most = (sys.argv[1:] or ["traps"])[0], int((sys.argv[2:] or [24])[0])
    rows, draw = [], random.Random(2012)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        copy(folder)

        def text(module):
            return (folder / f"alexnet_nb/{module}.py").read_text()

        for i in range(len(patches()) if what == "traps" else most):
            if what == "traps":
                row = patches()[i]
                caught, seconds = try_it(
                    folder,
                    row["module"],
                    patched(text(row["module"]), row),
                    f"tests/evidence/test_traps*.py -k test_trap_{int(row['trap']):02}",
                )
            else:
                module = list(SUITES)[i % 3]
                source, before, after = mutant(text(module), draw)
                row = dict(module=module, before=before, after=after)
                caught, seconds = try_it(folder, module, source, SUITES[module])
            rows.append(row | {"caught by": (caught or [""])[0], "seconds": seconds})
            print(rows[-1], flush=True)
            write(what, rows)


if __name__ == "__main__":
    main()
