"""Run one group of parts; gpu.py starts this in a process of its own."""

import contextlib
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from gpu_timing import Bench, show

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "lrn": "gpu_kernels",
    "step": "gpu_step",
    "trainer": "gpu_trainer",
    "pipeline": "gpu_pipeline",
    "precision": "gpu_precision",
}
TESTS = "tests/gpu"


def run_tests(bench):
    """Run tests/gpu with pytest; keep its counts, and the names of what failed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        TESTS,
        "-v",
        "-rfE",
        "--color=no",
        "--tb=short",
    ]
    command += ["-m", "gpu"] if bench.is_cuda else []  # the rest runs everywhere
    if bench.tiny:  # they have been run by whoever runs the smoke test
        command.append("--collect-only")
    log, status = bench.scratch / "pytest.txt", "cut"
    with open(log, "w") as file, contextlib.suppress(subprocess.TimeoutExpired):
        limit = max(1, bench.left())
        status = subprocess.run(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=limit
        ).returncode
    text = log.read_text()
    print(text[-4000:], flush=True)
    counts = {}
    words = "passed|failed|skipped|errors?|tests? collected"
    for count, word in re.findall(rf"(\d+) ({words})", text):
        counts[word] = int(count)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    found = dict(file=TESTS, status=status, counts=counts, failed=failed)
    bench.add("tests", "pytest", found)
    if status != 0:
        bench.fail("tests", f"pytest ended with {status}: {failed or text[-300:]}")
    show("Tests", ["outcome", "tests"], list(counts.items()))


def main():
    group, settings = sys.argv[1], json.loads(sys.argv[2])
    if settings["device"] == "cuda" and not torch.cuda.is_available():
        sys.exit("device: got cuda, expected a CUDA device; use --device cpu --tiny")
    bench = Bench(group, settings)
    bench.save()
    if group == "tests":
        bench.guard("tests", run_tests)
    else:
        bench.guard(group, importlib.import_module(MODULES[group]).run)
    return 1 if bench.results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
