"""Run the drills several times, and write results/drills/drills.{tsv,md}.

They are tests of tests/faults/test_survival.py and test_packing_stopped.py.

    python benchmarks/drills.py [passes]
"""

import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from alexnet_nb.base.files import atomic_write
from alexnet_nb.base.table import MarkdownTable

ROOT = Path(__file__).resolve().parent.parent
DRILLS = {  # part of the test's name: what happens
    "killed_at_any_step": (
        "SIGKILL at a random step, then resumed: weights and metrics bit for bit;"
        " processes:"
    ),
    "takes_up": (
        "an error at a random step, resumed on another number of processes, float64:"
    ),
    "failing_process": "a run of two processes, at a random step process",
    "killed_notebook": "both processes hang and the kernel is killed",
    "a_kernel_is": "both processes hang and the kernel is",
    "papermill_is_stopped": "papermill is stopped with a second run beside it:",
    "hangs": "a process hangs at a random step",
    "not_a_number": "the loss is no number",
    "full_disk": "the disk is full",
    "killed_at_any_moment": "packing is killed at a random moment, then begun again",
    "killed_pack": "packing with several processes is killed",
    "fills_on_the_way": "the disk is full while packing",
}


def named(test):
    """A test as the drill it is, with its case."""
    words = next(words for part, words in DRILLS.items() if part in test)
    return f"{words} {test.partition('[')[2].rstrip(']').replace('-', ' to ')}".strip()


def left_behind():
    """Processes of runs that are still there."""
    found = subprocess.run(
        [
            "pgrep",
            "-fc",
            "alexnet_nb.engine.launch|torch.distributed.run|packing import pack",
        ],
        capture_output=True,
        text=True,
    )
    return int(found.stdout)


def run(number, folder):
    """One pass over the drills: rows of the table of outcomes."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests",
        "-k",
        " or ".join(DRILLS),
        f"--junitxml={folder}/{number}.xml",
        "-o",
        "addopts=-q",
    ]
    subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | dict(ALEXNET_NB_LONG="1"),
        stdout=subprocess.DEVNULL,
    )
    left = left_behind()
    for case in ElementTree.parse(f"{folder}/{number}.xml").iter("testcase"):
        outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}.get(
            case[0].tag if len(case) else "", "survived"
        )
        yield {
            "pass": number,
            "drill": named(case.get("name")),
            "outcome": outcome,
            "seconds": f"{float(case.get('time')):.1f}",
            "left behind": left,
        }


def table(rows):
    """Drill × outcome × seconds, from the rows of drills.tsv."""
    lines = []
    for name in dict.fromkeys(r["drill"] for r in rows):
        tries = [r for r in rows if r["drill"] == name]
        seconds = sorted(float(r["seconds"]) for r in tries)
        lines.append(
            (
                name,
                f"{sum(r['outcome'] == 'survived' for r in tries)} of {len(tries)}",
                f"{seconds[0]:.0f} to {seconds[-1]:.0f}",
            )
        )
    left = {r["pass"]: int(r["left behind"]) for r in rows}
    note = (
        f"{sum(r['outcome'] == 'survived' for r in rows)} of {len(rows)} drills in"
        f" {len(left)} passes; processes left behind: {sum(left.values())}. "
        "A drill passes when the run ends within 30 s and says why, nothing of it"
        " stays behind after 10 s, and where it is resumed nothing beyond the last"
        " checkpoint is lost."
    )
    return MarkdownTable(["drill", "survived", "seconds"], lines, note)


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, int((sys.argv[1:] or [5])[0]) + 1):
            rows += run(number, folder)
            with (
                atomic_write(ROOT / "results/drills/drills.tsv") as temp,
                open(temp, "w", newline="") as f,
            ):
                out = csv.DictWriter(f, rows[0], delimiter="\t", lineterminator="\n")
                out.writeheader()
                out.writerows(rows)
            with atomic_write(ROOT / "results/drills/drills.md") as temp:
                temp.write_text(f"{table(rows)}\n")
            print(
                f"pass {number}: {sum(r['outcome'] == 'survived' for r in rows)} of"
                f" {len(rows)} so far, {rows[-1]['left behind']} processes left behind",
                flush=True,
            )
    print(table(rows))


if __name__ == "__main__":
    main()
