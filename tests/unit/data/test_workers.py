"""Processes that share the work of reading."""

import functools
import json
import multiprocessing
import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from alexnet_nb import preprocessing
from alexnet_nb.data.workers import map_in_workers, pickled_by_path
from alexnet_nb.preprocessing import PixelSums
from helpers import PATIENCE, ROOT
from helpers.images import QUIET, noise_images
from helpers.packing import pack_folder
from helpers.troubles import (
    Items,
    allocate_too_much,
    die,
    leave,
    leave_no_room_to_send,
    tangle,
)

TROUBLES = {
    die: "signal 9",
    leave: "exit code 7",
    allocate_too_much: "MemoryError",
    leave_no_room_to_send: "MemoryError",
    tangle: "pickle",
}
IN_TROUBLE = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from helpers import troubles
from alexnet_nb.data.workers import map_in_workers
for name in sys.argv[2:]:
    items = []
    try:
        for item in map_in_workers(troubles.Items(getattr(troubles, name)), 2):
            items.append(item)
        error = "none"
    except RuntimeError as raised:
        error = str(raised)
    print(json.dumps([name, items, error]), flush=True)
"""


@functools.cache
def in_trouble():
    """Meet every trouble, one after the other; name → items, error.

    In a process of its own: the fault that this looks for is to wait for ever.
    """
    names = [trouble.__name__ for trouble in TROUBLES]
    done = subprocess.run(
        [sys.executable, "-c", IN_TROUBLE, ROOT / "tests", *names],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (items, error) for name, items, error in rows}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_process_in_trouble_ends_the_work_with_a_sentence(trouble):
    items, error = in_trouble()[trouble.__name__]
    assert items == [0, 1, 2, 3, 4]
    assert "processes: got" in error
    assert TROUBLES[trouble] in error
    assert "that worked on item 5, expected an item; free memory" in error


class LargeItems(Items):
    """Items that no pipe holds, so that a process waits until one is asked for."""

    def __getitem__(self, i):
        return bytes(1 << 22)


def test_what_is_left_of_the_work_ends_its_processes():
    many = 1_000_000  # more than a pipe holds, so that nobody is done early
    items = map_in_workers(Items(int, many), 2)
    with closing(items):
        next(items)
        children = multiprocessing.active_children()
        assert len(children) == 2
    assert not any(child.is_alive() for child in children)


FORKSERVER = """
import multiprocessing, sys
if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["alexnet_nb.data.packing"])
    from alexnet_nb.data.packing import pack
    from alexnet_nb.data.sources import list_images
    source = list_images(sys.argv[1])
    for quality in (None, 90):
        out = f"{sys.argv[2]}-{quality}"
        packed = pack(source, out, 16, quality=quality, processes=2)
        print(packed.meta["sha256"]["stats.npz"])
"""


@pytest.mark.slow
def test_where_processes_are_not_forked_a_mapped_file_is_handed_over_by_its_path(
    tmp_path,
):
    """Python 3.14 on Linux starts a fork server, macOS and Windows spawn."""
    noise_images(tmp_path / "in", 300)
    expected = []
    for quality in (None, 90):
        out = tmp_path / f"forked-{quality}"
        packed = pack_folder(tmp_path / "in", out, 16, quality=quality, **QUIET)
        expected.append(packed.meta["sha256"]["stats.npz"])
        sums = preprocessing.PixelSums(packed.train.images)
        assert len(pickled_by_path(sums)) < 2000 < os.stat(out / "stats.npz").st_size
    done = subprocess.run(
        [sys.executable, "-c", FORKSERVER, tmp_path / "in", tmp_path / "served"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    found = [word for word in done.stdout.split() if word in expected]
    assert found == expected, done.stderr


METHODS = ["forkserver", "spawn"]  # of Python 3.14 on Linux; of macOS and Windows


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_workers_that_are_not_forked_send_the_same_items(packed, method, monkeypatch):
    sums = PixelSums(packed.train.images)
    expected = list(map_in_workers(sums, 0))
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(multiprocessing, "get_context", lambda: context)
    items = list(map_in_workers(sums, 2))
    assert len(items) == len(expected) > 1
    for item, other in zip(items, expected, strict=True):
        for array, wanted in zip(item, other, strict=True):
            assert np.array_equal(array, wanted)


UNGUARDED = """
import multiprocessing
multiprocessing.set_start_method("spawn", force=True)
from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import list_digits
pack(list_digits(8), {dest!r}, 8, processes=1)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_ends_with_a_sentence(tmp_path):
    """Its worker imports it, and would wait for the lock that the script holds."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(dest=str(tmp_path / "out")))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("RuntimeError: ")]
    assert "__main__: got a script that its own worker process runs again" in errors[0]
    assert "processes: got exit code 1" in errors[-1]
