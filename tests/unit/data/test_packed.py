"""Packed data are opened and verified, or refused by name."""

import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from alexnet_nb.data import packed as module
from alexnet_nb.data.packed import (
    ImageSplit,
    JpegArray,
    decoding_threads,
    open_packed,
    verify,
)
from alexnet_nb.preprocessing import decode_jpeg
from helpers import PATIENCE
from helpers.images import PHOTO, QUIET, jpeg_strings, jpegs, noise_images
from helpers.packing import Loaded, pack_folder


def test_check_names_what_is_wrong(tmp_path):
    jpegs(tmp_path / "in")
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 32, **QUIET)
    verify(packed.path)
    np.save(packed.path / "val/labels.npy", np.array([7] * 9))
    with pytest.raises(
        ValueError,
        match=r"val/labels.npy is not what was written.*9 labels.*labels from 7 to 7",
    ):
        verify(packed.path)


@pytest.mark.parametrize("meta", ["[1]", "{}"])
def test_a_damaged_meta_json_is_named(tmp_path, meta):
    noise_images(tmp_path / "in")
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET)
    (packed.path / "meta.json").write_text(meta)
    with pytest.raises(
        ValueError, match="expected None, the number of classes in meta"
    ):
        open_packed(packed.path)


@pytest.mark.parametrize("text", ["a\n", "a\nb\nc\n", "a\n\nb\n", ""])
def test_as_many_names_as_classes(tmp_path, text):
    noise_images(tmp_path / "in")
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET)
    (packed.path / "names.txt").write_text(text)
    for opened in (open_packed, verify):
        with pytest.raises(ValueError, match=r"names.txt: got \d names, expected 2"):
            opened(packed.path)


def test_names_are_utf8_whatever_the_locale(tmp_path):
    noise_images(tmp_path / "in", num_classes=("日本", "é"))
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET)
    assert (packed.path / "names.txt").read_bytes() == "é\n日本\n".encode()
    code = (
        "import sys; from alexnet_nb.data.packed import open_packed\n"
        "print(ascii(open_packed(sys.argv[1]).names))"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, packed.path],
        env=os.environ | locale,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.strip() == ascii(("é", "日本")), done.stderr


METHODS = ["forkserver", "spawn"]  # of Python 3.14 on Linux; of macOS and Windows


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


@pytest.mark.slow
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


def test_checksums_name_files_in_the_same_way_everywhere(packed):
    """With slashes: a data set may be packed on Windows and verified on Linux."""
    names = set(packed.meta["sha256"])
    assert {"stats.npz", "train/labels.npy", "val/labels.npy"} <= names
    assert not any("\\" in name for name in names)
    verify(packed.path)


@pytest.fixture(params=[1, 3, 8])
def threads(request, monkeypatch):
    """Let so many threads decode, whatever the machine has."""
    monkeypatch.setattr(module, "decoding_threads", lambda: request.param)
    return request.param


@pytest.fixture
def files():
    """Twenty different JPEGs of 32×32, as bytes."""
    corners = [(7 * i, 5 * i, 7 * i + 32, 5 * i + 32) for i in range(20)]
    return jpeg_strings([PHOTO.crop(corner) for corner in corners])


def jpeg_array(files, size=32):
    offsets = np.cumsum([0, *map(len, files)])
    return JpegArray(np.frombuffer(b"".join(files), np.uint8), offsets, size)


def test_a_batch_is_decoded_in_order(files, threads):
    """Whichever rows are asked for, and by as many threads as there may be."""
    alone = np.stack([decode_jpeg(file).numpy() for file in files])
    array = jpeg_array(files)
    chosen = np.array([3, 19, 0, 3, 11])
    for rows in (slice(None), slice(4, 17, 3), slice(5, 5), chosen, chosen - 20):
        for found in (array[rows], array.decode(rows).numpy()):
            assert found.flags.c_contiguous
            assert np.array_equal(found, alone[rows])
    assert np.array_equal(array[-1], alone[-1])
    assert np.array_equal(array[np.int64(4)], alone[4])
    with pytest.raises(IndexError):
        array[20]


def test_the_first_bad_image_is_named(files, threads):
    """By its row in the data set, wherever it is in the batch; with what to do."""
    files[11] = files[11][:-30]
    files[13] = jpeg_strings([PHOTO.crop((0, 0, 30, 32))])[0]
    array = jpeg_array(files)
    with pytest.raises(ValueError, match=r"image 11: got .*expected a JPEG of 32×32"):
        array[:]
    with pytest.raises(ValueError, match=r"image 13: got 30×32 pixels.*pack it again"):
        array.decode(np.array([18, 13, 11]))
    assert array[np.array([12, 10])].shape == (2, 3, 32, 32)


def test_no_more_threads_than_asked_for(monkeypatch):
    """Eight at most, and no more than torch, which knows OMP_NUM_THREADS."""
    monkeypatch.setattr(module, "available_cores", lambda: 16)
    before = torch.get_num_threads()
    try:
        for asked, expected in ((1, 1), (5, 5), (16, 8)):
            torch.set_num_threads(asked)
            assert decoding_threads() == expected
        monkeypatch.setattr(module, "available_cores", lambda: 3)
        assert decoding_threads() == 3
    finally:
        torch.set_num_threads(before)
    code = "from alexnet_nb.data.packed import decoding_threads as n; print(n())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout == "1\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_decodes(files, monkeypatch):
    """It has none of the threads that its parent had started."""
    monkeypatch.setattr(module, "decoding_threads", lambda: 2)
    array = jpeg_array(files)
    expected = array[:]
    child = os.fork()
    if child == 0:
        signal.alarm(PATIENCE)
        os._exit(0 if np.array_equal(array[:], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
