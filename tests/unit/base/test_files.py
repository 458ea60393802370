"""Files reach the disk before their name, under a name that nobody can guess."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_nb.base import files
from alexnet_nb.base.files import LockHeldError, atomic_write, file_lock, sync_folder
from helpers import PATIENCE, run_python
from helpers.locks import count_up


def test_files_reach_the_disk_before_their_name(tmp_path, monkeypatch):
    """Every file in a folder, the folder, then the new name.

    Then the folder with the name.
    """
    calls, fsync, replace = [], os.fsync, Path.replace

    def recorded_fsync(handle):
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def recorded_replace(path, target):
        calls.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    with atomic_write(tmp_path / "step-1") as temp:
        temp.mkdir()
        for name in ("a", "b"):
            (temp / name).write_text(name)
    assert sorted(calls[:2]) == ["a", "b"]
    assert calls[2].startswith(".step-1.")
    assert calls[3:] == ["replace", tmp_path.name]


def test_a_planted_temporary_name_is_not_used(tmp_path):
    """The name is drawn at random; that of the process could be guessed."""
    names = []
    for _ in range(2):
        with atomic_write(tmp_path / "config.json") as temp:
            names.append(temp.name)
            temp.write_text("{}")
    assert len(set(names)) == 2
    assert not any(str(os.getpid()) == name.rpartition(".")[2] for name in names)


HOLD = """
import sys
from alexnet_nb.base.files import file_lock
with file_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock `tmp_path/x.lock` until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "x.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_lock_that_another_process_holds_is_refused_by_name(tmp_path, holder):
    path = tmp_path / "x.lock"
    with pytest.raises(LockHeldError) as e, file_lock(path, wait=False):
        pass
    assert e.value.owner == f"process {holder.pid} on {os.uname().nodename}"
    assert str(e.value).startswith(f"{path}: got a lock that {e.value.owner} holds, ")
    assert holder.poll() is None
    assert e.value.owner in path.read_text()  # asking has not erased it


def test_a_lock_is_free_when_its_holder_has_ended(tmp_path, holder):
    holder.communicate("")
    with file_lock(tmp_path / "x.lock", wait=False):
        assert (tmp_path / "x.lock").read_text().startswith(f"process {os.getpid()} ")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_free_when_its_holder_was_killed(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "x.lock").exists()
    with file_lock(tmp_path / "x.lock", wait=False):
        pass


def test_the_next_owner_does_not_share_the_name_of_a_killed_one(tmp_path):
    """The name that was left is longer than the new one."""
    path = tmp_path / "x.lock"
    path.write_text("process 1 on " + 100 * "h")
    with file_lock(path):
        owner = path.read_text()
    assert owner == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_waiting_process_says_for_whom_and_then_gets_the_lock(tmp_path, holder):
    said = []

    def progress(line):
        said.append(line)
        holder.stdin.close()

    with file_lock(tmp_path / "x.lock", progress=progress):
        assert holder.wait(PATIENCE) == 0
    assert said == [
        f"waiting for process {holder.pid} on {os.uname().nodename}, which holds"
        f" {tmp_path}/x.lock"
    ]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes_exclude_each_other(tmp_path, method):
    path = tmp_path / "number"
    path.write_text("0")
    context = multiprocessing.get_context(method)
    both = [context.Process(target=count_up, args=(path, 30)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(PATIENCE)
    assert path.read_text() == "60"


READ_ONLY = """
import subprocess, sys
from alexnet_nb.base.files import file_lock
folder = sys.argv[1]
subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], check=True)
for path in (f"{folder}/x.lock", f"{folder}/new/x.lock"):
    try:
        with file_lock(path): pass
    except PermissionError as error: print(error)
"""


def test_a_lock_in_a_read_only_folder_is_one_sentence(tmp_path):
    namespace = ["unshare", "-rm"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no permission for a mount namespace")
    done = run_python(READ_ONLY, tmp_path, prefix=namespace)
    expected = (
        "got 'Read-only file system', expected a folder in which a lock file can be"
        " made; choose a folder that you can write to"
    )
    assert done.stdout.splitlines() == [
        f"{tmp_path}/{name}: {expected}" for name in ("x.lock", "new/x.lock")
    ], done.stderr


@pytest.mark.parametrize("plant", ["symlink", "hard link", "fifo"])
def test_what_is_planted_under_the_name_of_a_lock_does_no_harm(tmp_path, plant):
    mine, path = tmp_path / "mine", tmp_path / "x.lock"
    mine.write_text("my thesis")
    if plant == "symlink":
        path.symlink_to(mine)
    elif plant == "hard link":
        path.hardlink_to(mine)
    else:
        os.mkfifo(path)
    with file_lock(path, wait=False):
        assert path.read_text().startswith("process ")
    assert mine.read_text() == "my thesis"


ON_WINDOWS = """
import sys, warnings
sys.modules["fcntl"] = None
sys.modules["resource"] = None
import alexnet_nb.base.files, alexnet_nb.data.datasets
from alexnet_nb.base.files import file_lock
assert not hasattr(alexnet_nb.base.files, "fcntl")
with file_lock(sys.argv[1]):
    print("locked")
import alexnet_nb.engine.run_dir, alexnet_nb.engine.launch, alexnet_nb.engine.cli
import alexnet_nb.engine.report, alexnet_nb.predict
print("imported")
"""


def test_no_module_needs_what_windows_lacks_to_be_imported(tmp_path):
    """Neither fcntl nor resource."""
    done = run_python(ON_WINDOWS, tmp_path / "x.lock")
    assert done.stdout.split() == ["locked", "imported"], done.stderr


def write_half(path):
    with atomic_write(path) as temp:
        temp.write_text("half of the new")
        raise KeyError


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_system_that_opens_no_folder_syncs_none(tmp_path, monkeypatch):
    """Windows: there is no O_DIRECTORY, and `os.open` refuses a folder."""

    def refuse(*args):
        raise PermissionError("a folder")

    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(files.os, "open", refuse)
    sync_folder(tmp_path)
