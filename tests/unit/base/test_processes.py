"""A process ends with the one that started it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from alexnet_nb.base.processes import available_cores

ORPHAN = """
import os, sys, time
from alexnet_nb.base.processes import exit_when_orphaned
child = os.fork()
if child == 0:
    exit_when_orphaned()
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(600)
"""
LISTENER = """
from alexnet_nb.base.processes import exit_when_stdin_closes
print("listens", flush=True)
exit_when_stdin_closes()
"""


def start(code):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def exists(pid):
    """Is there such a process that is not yet done?"""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity")
def test_only_the_cores_of_this_process_are_counted():
    everything = os.sched_getaffinity(0)
    assert available_cores() == len(everything)
    os.sched_setaffinity(0, {min(everything)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, everything)


def test_an_orphan_ends_by_itself():
    parent = start(ORPHAN)
    orphan = int(parent.stdout.readline())
    assert exists(orphan)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while exists(orphan) and time.monotonic() < deadline:
        time.sleep(0.05)
    alone = exists(orphan)
    if alone:
        os.kill(orphan, signal.SIGKILL)
    assert not alone


def test_who_listens_to_a_notebook_ends_with_it():
    listener = start(LISTENER)
    assert listener.stdout.readline() == "listens\n"
    assert listener.poll() is None
    listener.stdin.close()
    assert listener.wait(60) == 1


def test_a_system_that_counts_no_cores_of_a_process(monkeypatch):
    """MacOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert available_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
