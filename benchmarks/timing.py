"""What both benchmarks share.

The allocator of the package's launcher, timing in turns, and the files under results/.
"""

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

from alexnet_nb.base.files import atomic_write
from alexnet_nb.engine.launch import ALLOCATOR

RESULTS = Path(__file__).resolve().parent.parent / "results/benchmarks"


def start():
    """Begin again with the allocator's environment, and with two threads.

    glibc reads that environment only when a process starts.
    """
    if not ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    torch.set_num_threads(2)


def in_turns(
    functions: dict,  # name → function
    rounds: int = 7,  # after one that does not count
    repeats: int = 1,
    done=lambda: None,  # waits for the device
) -> dict:  # name → seconds of every round
    """Time functions side by side.

    Each once a round, so that what disturbs the machine disturbs all.
    """
    seconds = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            done()
            begin = time.perf_counter()
            for _ in range(repeats):
                function()
            done()
            if turn:
                seconds[name].append((time.perf_counter() - begin) / repeats)
    return seconds


def processor():
    """The model of the processor, as Linux or the platform names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor()


def save(name: str, results: dict, table: str):
    """Write results/benchmarks/NAME.json, and the table that pages show as NAME.md."""
    machine = dict(
        processor=processor(), threads=torch.get_num_threads(), torch=torch.__version__
    )
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    for suffix, text in (
        ("json", json.dumps(dict(machine=machine) | results, indent=1)),
        ("md", table),
    ):
        with atomic_write(RESULTS / f"{name}.{suffix}") as temp:
            temp.write_text(text + "\n")
    print(table)


def spread(values: list, digits: int = 0) -> str:
    """Median, and in brackets the least and the most."""
    return (
        f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to"
        f" {max(values):.{digits}f})"
    )
