"""Packing is killed, or has too little of disk, memory or open files.

Then it goes on.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from alexnet_nb import preprocessing
from alexnet_nb.data import packing
from alexnet_nb.data.packed import verify
from alexnet_nb.data.packing import CHUNK
from helpers import PATIENCE
from helpers.images import QUIET, digest, jpegs, noise_images
from helpers.packing import pack_folder
from helpers.troubles import die

pytestmark = pytest.mark.slow

PACK = """
import sys
from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import list_images
pack(list_images(sys.argv[1]), sys.argv[2], 64, processes=int(sys.argv[3]))
"""


def test_killed_at_any_moment_it_goes_on(tmp_path):
    """What is there after a kill is nothing or a whole set.

    A second run makes the bytes of an undisturbed one.
    """
    jpegs(tmp_path / "in", 10 * CHUNK)
    whole = digest(pack_folder(tmp_path / "in", tmp_path / "whole", 64, **QUIET).path)
    rng, resumed = np.random.default_rng(), 0
    for trial in range(3):
        out = tmp_path / f"out{trial}"
        process = subprocess.Popen(
            [sys.executable, "-c", PACK, tmp_path / "in", out, str(trial % 2 * 2)],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        partial = out.with_name(f".{out.name}.partial")
        while not (partial / "plan.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists() or digest(out) == whole
        resumed += any(partial.glob("*/journal.jsonl"))
        assert digest(pack_folder(tmp_path / "in", out, 64, **QUIET).path) == whole
        assert sorted(
            p.name
            for p in tmp_path.iterdir()
            if p.name.startswith((out.name, f".{out.name}"))
        ) == [out.name]
    assert resumed  # at least one of them in the middle


def test_no_worker_outlives_a_killed_pack(tmp_path):
    jpegs(tmp_path / "in", 20 * CHUNK)
    process = subprocess.Popen(
        [sys.executable, "-c", PACK, tmp_path / "in", tmp_path / "out", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def group():
        return [
            p for p in os.listdir("/proc") if p.isdigit() and in_group(p, process.pid)
        ]

    deadline = time.monotonic() + 60
    while len(group()) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(group()) >= 3  # itself and two workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while group() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group()


def in_group(pid, group):
    try:
        return os.getpgid(int(pid)) == group
    except ProcessLookupError:
        return False


def test_two_at_once(tmp_path):
    jpegs(tmp_path / "in", 3 * CHUNK)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PACK, tmp_path / "in", tmp_path / "out", "0"]
        )
        for _ in range(2)
    ]
    assert [p.wait(120) for p in both] == [0, 0]
    verify(tmp_path / "out")


SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from alexnet_nb.data.packed import verify
from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import list_images
source, disk = list_images(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
filler = Path(disk, "filler")
def fill(line):  # after pack has looked how much is free
    filler.write_bytes(bytes(3_600_000))
try: pack(source, Path(disk, "out"), 64, processes=0, progress=fill)
except OSError as e: print(type(e).__name__, e.errno)
assert not Path(disk, "out").exists()
filler.unlink()
packed = pack(source, Path(disk, "out"), 64, processes=0, progress=lambda line: None)
verify(packed.path)
print("whole")
"""


def test_a_disk_that_fills_on_the_way(tmp_path):
    """On a tmpfs of 4 MB: an error, and the next run goes on."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no permission for a mount of its own")
    jpegs(tmp_path / "in", 5 * CHUNK)
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            sys.executable,
            "-c",
            SMALL_DISK,
            tmp_path / "in",
            tmp_path / "disk",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["OSError 28", "whole"], done.stderr


LARGE = """
import resource, subprocess, sys
from pathlib import Path
import numpy as np
from alexnet_nb.data.packed import verify
from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import ImageSource
from alexnet_nb.preprocessing import pixel_statistics

what, out = sys.argv[1:]
images = np.random.default_rng(0).integers(0, 256, (153_600, 8, 8, 3), np.uint8)
stored = images.transpose(0, 3, 1, 2)
if what == "statistics":
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"]
    subprocess.run(command, check=True)
    mean, cov = pixel_statistics(stored, 2)
    np.testing.assert_allclose(mean, stored.mean(0), rtol=1e-12)
    print("summed", len(stored))
    sys.exit()
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
splits = {"train": [(x, i % 2) for i, x in enumerate(images)], "val": [(images[0], 0)]}
source = ImageSource(splits, ("a", "b"), "generated")
packed = pack(source, out, 8, processes=2, progress=lambda line: None)
assert np.array_equal(packed.train.images, stored)
np.testing.assert_allclose(packed.mean, stored.mean(0), rtol=1e-12)
print("packed", len(packed.train))
"""


def run_large(*words):
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=PATIENCE
    )


def test_600_parts_are_packed_with_256_open_files(tmp_path):
    done = run_large(sys.executable, "-c", LARGE, "pack", tmp_path / "out")
    assert done.stdout == "packed 153600\n", done.stderr


def test_600_parts_are_summed_with_a_shared_memory_of_1_MB(tmp_path):
    namespace = ["unshare", "-rm"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no permission for a mount namespace")
    done = run_large(*namespace, sys.executable, "-c", LARGE, "statistics", tmp_path)
    assert done.stdout == "summed 153600\n", done.stderr


def test_a_worker_killed_mid_way_is_named_and_packing_goes_on(tmp_path, monkeypatch):
    """Of the two workers one is killed over a file.

    Without it the next run ends whole.
    """
    if sys.platform != "linux":
        pytest.skip("the workers inherit the fault by fork")
    noise_images(tmp_path / "in", 100)
    whole = pack_folder(tmp_path / "in", tmp_path / "whole", 16, **QUIET)
    read = preprocessing.load_image

    def deadly(source, size):
        if source.name == "77.png":
            die()
        return read(source, size)

    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda: context)
    monkeypatch.setattr(packing, "load_image", deadly)
    with pytest.raises(RuntimeError, match=r"got signal 9.*one of the files.*77\.png"):
        pack_folder(tmp_path / "in", tmp_path / "out", 16, processes=2, **QUIET)
    monkeypatch.setattr(packing, "load_image", read)
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 16, processes=2, **QUIET)
    assert packed.meta["sha256"] == whole.meta["sha256"]
