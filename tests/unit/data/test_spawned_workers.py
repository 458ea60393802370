"""Processes that are not forked open packed files by their path."""

import multiprocessing
import pickle
import subprocess
import sys

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from alexnet_nb.data.packed import ImageSplit, verify
from alexnet_nb.data.packing import pack
from alexnet_nb.data.workers import map_in_workers
from alexnet_nb.preprocessing import PixelSums
from helpers import PATIENCE
from helpers.packing import two_classes

METHODS = ["forkserver", "spawn"]  # of Python 3.14 on Linux; of macOS and Windows


@pytest.fixture(scope="module", params=[None, 90], ids=["pixels", "jpegs"])
def packed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "out"
    options = dict(quality=request.param, progress=lambda line: None)
    return pack(two_classes(600, 16), folder, 16, **options)


def test_only_the_path_of_a_mapped_file_is_pickled(packed):
    files = sum(path.stat().st_size for path in packed.path.glob("*/*.npy"))
    rest = pickle.dumps((packed.mean, packed.cov, packed.meta))  # not mapped
    split = len(pickle.dumps(packed.train))
    whole = len(pickle.dumps(packed)) - len(rest)
    assert split < 1000 < files / 100
    assert whole < 3000


def test_what_was_pickled_has_the_same_images(packed):
    copy = pickle.loads(pickle.dumps(packed))
    assert repr(copy) == repr(packed)
    assert copy.names == packed.names
    assert np.array_equal(copy.mean, packed.mean)
    for split in ("train", "val"):
        new, old = getattr(copy, split), getattr(packed, split)
        assert np.array_equal(new.images[:], old.images[:])
        assert np.array_equal(new.labels, old.labels)


def test_what_is_not_a_whole_mapped_file_is_pickled_as_numbers(packed):
    """A part of a file, and numbers in memory that were changed after reading."""
    part = ImageSplit(packed.train.images[5:8], packed.train.labels[5:8])
    copy = pickle.loads(pickle.dumps(part))
    assert np.array_equal(copy.images, packed.train.images[5:8])
    labels = np.load(packed.path / "train/labels.npy", mmap_mode="c")
    labels[0] = 7
    changed = ImageSplit(packed.train.images, labels)
    assert pickle.loads(pickle.dumps(changed)).labels[0] == 7


class Loaded(Dataset):
    """A data set as a user of DataLoader would write it."""

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        return np.array(self.split.images[i]), int(self.split.labels[i])


@pytest.mark.parametrize("method", METHODS)
def test_a_data_loader_reads_the_same_images(packed, method):
    loader = DataLoader(
        Loaded(packed.train), 200, num_workers=1, multiprocessing_context=method
    )
    batches = list(loader)
    images = np.concatenate([images.numpy() for images, _ in batches])
    labels = np.concatenate([labels.numpy() for _, labels in batches])
    assert np.array_equal(images, packed.train.images[:])
    assert np.array_equal(labels, packed.train.labels)


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


def test_checksums_name_files_in_the_same_way_everywhere(packed):
    """With slashes: a data set may be packed on Windows and verified on Linux."""
    names = set(packed.meta["sha256"])
    assert {"stats.npz", "train/labels.npy", "val/labels.npy"} <= names
    assert not any("\\" in name for name in names)
    verify(packed.path)
