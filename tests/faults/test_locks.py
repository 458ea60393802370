"""Locks that somebody planted or a disk does not know.

And a cache that cannot be written.
"""

import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from alexnet_nb.base.files import file_lock
from alexnet_nb.data.packed import verify
from helpers import PATIENCE
from helpers.images import QUIET, noise_images
from helpers.packing import pack_folder


def test_a_planted_lock_does_no_harm(tmp_path):
    """A link under the lock's name to a file of the user, or to none."""
    noise_images(tmp_path / "in")
    victim = tmp_path / "thesis"
    for i, target in enumerate((victim, tmp_path / "new")):
        victim.write_text("my thesis")
        (tmp_path / f".out{i}.lock").symlink_to(target)
        pack_folder(tmp_path / "in", tmp_path / f"out{i}", 16, **QUIET)
        assert victim.read_text() == "my thesis"
    (tmp_path / ".out2.lock").hardlink_to(victim)
    pack_folder(tmp_path / "in", tmp_path / "out2", 16, **QUIET)
    assert victim.read_text() == "my thesis"
    assert sorted(p.name for p in tmp_path.glob(".*")) == []
    assert not (tmp_path / "new").exists()


def test_one_packer_at_a_time_after_another_has_failed(tmp_path):
    """One waits for the lock that its owner removes, then a third comes."""
    inside, most = [], []
    held, waiting, entered, third_tries = (threading.Event() for _ in range(4))
    path = tmp_path / "out.lock"

    def first():
        with file_lock(path):
            held.set()
            waiting.wait(60)

    def second():
        held.wait(60)
        with file_lock(path, progress=lambda line: waiting.set()):
            inside.append(2)
            entered.set()
            third_tries.wait(60)  # a third that got a lock of its own comes inside
            most.append(len(inside))
            inside.remove(2)

    def third():
        entered.wait(60)
        with file_lock(path, progress=lambda line: third_tries.set()):
            inside.append(3)
            third_tries.set()
            most.append(len(inside))

    threads = [threading.Thread(target=f) for f in (first, second, third)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert waiting.is_set()
    assert most == [1, 1]


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EIO])
def test_a_disk_without_locks_is_tolerated(tmp_path, monkeypatch, code):
    """As a run does; another error of the disk is an error."""

    def flock(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    noise_images(tmp_path / "in")
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET)
    else:
        verify(pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET).path)
        assert not list(tmp_path.glob(".*"))


READ_ONLY = """
import subprocess, sys
from alexnet_nb.data.datasets import load_dataset
cache = sys.argv[2]
packed = load_dataset(sys.argv[1], 16, progress=lambda line: None)
subprocess.run(["mount", "--bind", "-o", "ro", cache, cache], check=True)
try:
    open(packed.path / "x", "w")
except OSError as e:
    print("errno", e.errno)
print(load_dataset(sys.argv[1], 16, progress=lambda line: None) .path == packed.path)
"""


def test_a_read_only_cache_with_the_packed_copy_in_it_works(tmp_path):
    namespace = ["unshare", "-rm"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no permission for a mount namespace")
    noise_images(tmp_path / "in")
    cache = tmp_path / "cache"
    cache.mkdir()
    done = subprocess.run(
        [*namespace, sys.executable, "-c", READ_ONLY, tmp_path / "in", cache],
        env=os.environ | {"ALEXNET_NB_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == ["errno", str(errno.EROFS), "True"], done.stderr
