"""What the parts of gpu.py share: a record on disk, a clock, and timing on a device."""

import json
import os
import platform
import statistics
import time
import traceback
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torchvision

from alexnet_nb.base.files import atomic_write
from alexnet_nb.base.processes import available_cores
from alexnet_nb.base.table import MarkdownTable


class Bench:
    """Options of a run, the file of its results, and how much time is left."""

    def __init__(self, group, settings):
        self.group = group
        self.device = settings["device"]
        self.tiny = settings["tiny"]
        self.data = settings["data"]
        self.scratch = Path(settings["scratch"])
        self.deadline = settings["deadline"]
        self.path = Path(settings["out"]) / f"gpu-{group}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.results = dict(machine=machine(self), parts={}, failures={})

    @property
    def is_cuda(self):
        return self.device == "cuda"

    def left(self):
        """Seconds until the group should end."""
        return self.deadline - time.time()

    def size(self, usual, tiny):
        return tiny if self.tiny else usual

    def save(self):
        with atomic_write(self.path) as temp:
            temp.write_text(json.dumps(self.results, indent=1) + "\n")

    def add(self, part, key, value):
        """Keep one measurement, on disk at once."""
        self.results["parts"].setdefault(part, {})[key] = value
        self.save()

    def guard(self, part, function, *arguments):
        """Call a function; a failure is recorded, and what follows goes on."""
        if self.left() < 0:
            self.fail(part, "no time was left")
            return None
        try:
            return function(self, *arguments)
        except Exception as error:
            traceback.print_exc()
            self.fail(part, f"{type(error).__name__}: {error}"[:500])
            return None
        finally:
            if self.is_cuda:
                torch.cuda.empty_cache()

    def fail(self, part, reason):
        print(f"FAILED {part}: {reason}", flush=True)
        self.results["failures"][part] = reason
        self.save()

    def synchronize(self):
        if self.is_cuda:
            torch.cuda.synchronize()

    def time(self, function, repeats=20, rounds=5, warmups=5):
        """Seconds of a call, one number a round; a GPU's own clock, where there is one.

        A round ends early where time is short, and two rounds are always measured.
        """
        repeats, rounds = self.size(repeats, 1), self.size(rounds, 1)
        for _ in range(self.size(warmups, 0)):
            function()
        seconds = []
        for turn in range(rounds):
            if turn >= 2 and self.left() < 0:
                break
            seconds.append(self._round(function, repeats))
        return seconds

    def _round(self, function, repeats):
        if not self.is_cuda:
            begin = time.perf_counter()
            for _ in range(repeats):
                function()
            return (time.perf_counter() - begin) / repeats
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        for _ in range(repeats):
            function()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3 / repeats

    def wall(self, function, rounds=3):
        """Seconds of a call on the wall's clock, one number a round after the first."""
        function()
        seconds = []
        for _ in range(self.size(rounds, 1)):
            self.synchronize()
            begin = time.perf_counter()
            function()
            self.synchronize()
            seconds.append(time.perf_counter() - begin)
        return seconds

    def compiled(self, function):
        """Compile a function or a module; the smoke test leaves code generation out."""
        backend = self.size("inductor", "eager")
        return torch.compile(function, dynamic=False, backend=backend)


def machine(bench):
    """What was measured on, with which versions, and how."""
    found = dict(
        device=bench.device,
        gpu=torch.cuda.get_device_name() if bench.is_cuda else None,
        cores=available_cores(),
        processor=platform.processor(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        tiny=bench.tiny,
        images=bench.data or "generated",
        command=" ".join(["python", "benchmarks/gpu.py"]),
        commit=commit(),
    )
    if find_spec("triton"):
        found["triton"] = version("triton")
    return found


def commit():
    """The commit that is checked out, read from the files of git; None without them."""
    folder = Path(__file__).resolve().parent.parent / ".git"
    head = folder / "HEAD"
    if not head.exists():
        return os.environ.get("ALEXNET_NB_COMMIT")
    text = head.read_text().strip()
    if not text.startswith("ref: "):
        return text
    branch = folder / text.removeprefix("ref: ")
    return branch.read_text().strip() if branch.exists() else None


def spread(values, digits=0):
    """Median, and in brackets the least and the most."""
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"


def show(title, columns, rows):
    print(f"\n{title}\n{MarkdownTable(columns, rows)}", flush=True)
