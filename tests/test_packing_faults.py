"What stands in the way of packing: little memory, few open files, power cuts, odd files."
import os
import resource
import signal
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from alexnet_nb import preprocessing
from alexnet_nb.preprocessing import in_processes, pack, pickled_by_path

QUIET = {"progress": lambda line: None}
PATIENCE = 300  # seconds after which a process that should have ended is called hung


def noise_images(folder, count=12, classes=("a", "b"), size=20):
    "Write random PNG files into the folders of some classes."
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


# ---------------------------------------------------------------- large data sets

LARGE = """
import resource, subprocess, sys
from pathlib import Path
import numpy as np
from alexnet_nb.preprocessing import Source, check, pack, pixel_statistics

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
source = Source(splits, ("a", "b"), "generated")
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


class Items:
    "Ten items, the sixth of which brings its process into trouble."

    def __init__(self, trouble):
        self.trouble = trouble

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return self.trouble() if i == 5 else i

    def describe(self, i):
        return f"item {i}"


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(7)


def limit_memory(more):
    with open("/proc/self/statm") as f:
        pages = int(f.read().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def allocate_too_much():
    limit_memory(20 << 20)
    return bytearray(1 << 30)


def leave_no_room_to_send():
    item = bytearray(200 << 20)
    limit_memory(20 << 20)
    return item


def tangle():
    return lambda: "what cannot be pickled"


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (die, "signal 9"),
        (leave, "exit code 7"),
        (allocate_too_much, "MemoryError"),
        (leave_no_room_to_send, "MemoryError"),
        (tangle, "pickle"),
    ],
)
def test_a_process_in_trouble_ends_the_work_with_a_sentence(trouble, reason):
    "In a process of its own: the fault that this looks for is to wait for ever."
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_packing_faults as faults\n"
        "from alexnet_nb.preprocessing import in_processes\n"
        "for item in in_processes(faults.Items(getattr(faults, sys.argv[2])), 2):\n"
        "    print(item)\n"
    )
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-c", code, here, trouble.__name__],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.split() == list("01234")
    error, = [l for l in done.stderr.splitlines() if l.startswith("RuntimeError:")]
    assert "processes: got" in error and reason in error
    assert "that worked on item 5, expected an item; free memory" in error


def test_a_worker_killed_mid_way_is_named_and_packing_goes_on(tmp_path, monkeypatch):
    "Of the two workers one is killed over a file; without it the next run ends whole."
    if sys.platform != "linux":
        pytest.skip("the workers inherit the fault by fork")
    noise_images(tmp_path / "in", 100)
    whole = pack(tmp_path / "in", tmp_path / "whole", 16, **QUIET)
    read = preprocessing.read_square

    def deadly(source, size):
        if source.name == "77.png":
            die()
        return read(source, size)

    context = preprocessing.multiprocessing.get_context("fork")
    monkeypatch.setattr(preprocessing.multiprocessing, "get_context", lambda: context)
    monkeypatch.setattr(preprocessing, "read_square", deadly)
    with pytest.raises(RuntimeError, match=r"got signal 9.*one of the files.*77\.png"):
        pack(tmp_path / "in", tmp_path / "out", 16, processes=2, **QUIET)
    monkeypatch.setattr(preprocessing, "read_square", read)
    packed = pack(tmp_path / "in", tmp_path / "out", 16, processes=2, **QUIET)
    assert packed.meta["sha256"] == whole.meta["sha256"]


def test_what_is_left_of_the_work_ends_its_processes():
    items = in_processes(Items(int), 2)
    with closing(items):
        assert next(items) == 0
        children = preprocessing.multiprocessing.active_children()
        assert len(children) == 2
    assert not any(child.is_alive() for child in children)


FORKSERVER = """
import multiprocessing, sys
if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["alexnet_nb.preprocessing"])
    from alexnet_nb.preprocessing import pack
    for quality in (None, 90):
        out = f"{sys.argv[2]}-{quality}"
        packed = pack(sys.argv[1], out, 16, quality=quality, processes=2)
        print(packed.meta["sha256"]["stats.npz"])
"""


def test_where_processes_are_not_forked_a_mapped_file_is_handed_over_by_its_path(
    tmp_path,
):
    "Python 3.14 on Linux starts a fork server, macOS and Windows spawn."
    noise_images(tmp_path / "in", 300)
    expected = []
    for quality in (None, 90):
        out = tmp_path / f"forked-{quality}"
        packed = pack(tmp_path / "in", out, 16, quality=quality, **QUIET)
        expected.append(packed.meta["sha256"]["stats.npz"])
        sums = preprocessing.Sums(packed.train.images)
        assert len(pickled_by_path(sums)) < 2000 < os.stat(out / "stats.npz").st_size
    done = subprocess.run(
        [sys.executable, "-c", FORKSERVER, tmp_path / "in", tmp_path / "served"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert [l for l in done.stdout.split() if l in expected] == expected, done.stderr
