"""Measure what a GPU does with this package, in one command and at most nine minutes.

It runs tests/gpu and the tables of the page Performance, prints them, and writes
results/benchmarks/gpu-*.json. Each group of parts is a process of its own, which saves
whatever it has measured, so that a group that fails or is cut keeps what it has and
the others go on; the exit status is then 1. It needs nothing but torch, torchvision,
numpy, safetensors and Pillow, generates its images, and finds the package by itself.

    python benchmarks/gpu.py [--data FOLDER] [--parts step,trainer] [--minutes 9]
    python benchmarks/gpu.py --device cpu --tiny --out FOLDER
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# name → its weight, seconds: a group may take that share of the time that is left to
# it and to those after it, so that what one does not need goes to the next
GROUPS = {
    "lrn": 60,
    "step": 260,
    "trainer": 170,
    "pipeline": 60,
    "precision": 60,
    "tests": 150,
}
LEAST = 20  # seconds that are left; a group does not begin with less


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", help="a packed data set of 256×256; else images are generated")
    add("--device", default="cuda", choices=("cuda", "cpu"))
    add("--tiny", action="store_true", help="every part with the smallest sizes")
    add("--minutes", type=float, default=9, help="for everything")
    add("--parts", default=",".join(GROUPS), help="groups, comma-separated")
    add("--out", default=str(ROOT / "results/benchmarks"), help="folder of the files")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    unknown = sorted(set(options.parts) - set(GROUPS))
    if unknown:
        parser.error(f"--parts: got {unknown}, expected some of {', '.join(GROUPS)}")
    if options.tiny and Path(options.out) == ROOT / "results/benchmarks":
        parser.error("--out: --tiny measures nothing worth keeping; name a folder")
    return options


def run_group(group, options, scratch, seconds):
    """Run the parts of a group in a process; return what went wrong, or nothing."""
    settings = vars(options) | dict(scratch=scratch, deadline=time.time() + seconds)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths))
    }
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as in a run
    script = Path(__file__).with_name("gpu_parts.py")
    process = subprocess.Popen(
        [sys.executable, script, group, json.dumps(settings)],
        env=environment,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        code = process.wait(seconds + LEAST)
    except subprocess.TimeoutExpired:
        return f"{group}: cut after {seconds + LEAST:.0f} s"
    finally:
        end_session(process)
    return "" if code == 0 else f"{group}: exit status {code}"


def end_session(process):
    """End a group's process and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main():
    options = arguments()
    end = time.monotonic() + 60 * options.minutes
    failures = []
    with tempfile.TemporaryDirectory() as scratch:
        for i, group in enumerate(options.parts):
            left = end - time.monotonic() - LEAST
            weights = [GROUPS[name] for name in options.parts[i:]]
            seconds = left * weights[0] / sum(weights)
            if left < LEAST:
                failures.append(f"{group}: no time was left")
                continue
            print(f"\n# {group} (at most {seconds:.0f} s)", flush=True)
            begin = time.monotonic()
            failures.append(run_group(group, options, scratch, seconds))
            print(f"{group}: {time.monotonic() - begin:.0f} s", flush=True)
    failures = [failure for failure in failures if failure]
    print("\n".join(["", *failures]) or "all parts were measured", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
