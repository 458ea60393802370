"""Runs the drills of tests/test_survival.py and of tests/test_train_notebook.py several times and writes results/drills/drills.{tsv,md}.

    python benchmarks/drills.py [repeats]
"""
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

from alexnet_nb.recipes import Table
from alexnet_nb.training import written

ROOT = Path(__file__).resolve().parent.parent
DRILLS = "killed_at_any_step or takes_up or not_a_number or hangs or papermill_is_stopped or full_disk or fills_on_the_way or failing_process or killed_notebook or killed_pack or killed_at_any_moment"


def left_behind():
    "Processes of runs that are still there."
    found = subprocess.run(["pgrep", "-fc", "alexnet_nb.training|torch.distributed.run|preprocessing import pack"], capture_output=True, text=True)
    return int(found.stdout)


def run(number, folder):
    "One pass over the drills: (name, outcome, seconds) …"
    command = [sys.executable, "-m", "pytest", "tests", "-k", DRILLS, f"--junitxml={folder}/{number}.xml", "-o", "addopts=-q"]
    subprocess.run(command, cwd=ROOT, env=os.environ | dict(ALEXNET_NB_LONG="1"), stdout=subprocess.DEVNULL)
    for case in ElementTree.parse(f"{folder}/{number}.xml").iter("testcase"):
        outcome = {"failure": "failed", "error": "failed", "skipped": "skipped"}.get(case[0].tag if len(case) else "", "survived")
        yield case.get("name").removeprefix("test_").replace("_", " "), outcome, float(case.get("time"))


def main():
    repeats, seen = int((sys.argv[1:] or [5])[0]), defaultdict(list)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, repeats + 1):
            for name, outcome, seconds in run(number, folder):
                rows.append((number, name, outcome, f"{seconds:.1f}"))
                seen[name].append((outcome, seconds))
            print(f"pass {number}: {sum(r[2] == 'survived' for r in rows)} of {len(rows)} so far, {left_behind()} processes left behind", flush=True)
            table = Table(["drill", "survived", "seconds"], [
                (name, f"{sum(o == 'survived' for o, _ in tries)} of {len(tries)}", f"{min(s for _, s in tries):.0f} to {max(s for _, s in tries):.0f}") for name, tries in seen.items()],
                f"{sum(o == 'survived' for t in seen.values() for o, _ in t)} of {sum(map(len, seen.values()))} drills in {number} passes; processes left behind: {left_behind()}. "
                "A drill passes when the run ends as it should, nothing of it stays behind, and where it is resumed nothing beyond the last checkpoint is lost.")
            for suffix, text in (("tsv", "\n".join("\t".join(map(str, r)) for r in [("pass", "drill", "outcome", "seconds"), *rows])), ("md", table)):
                with written(ROOT / f"results/drills/drills.{suffix}") as temp: temp.write_text(text + "\n")
    print(table)


if __name__ == "__main__": main()
