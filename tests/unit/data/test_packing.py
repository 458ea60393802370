"""Packing: what is made of a folder, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from alexnet_nb.data.packed import verify
from alexnet_nb.data.packing import CHUNK
from helpers.images import QUIET, digest, jpegs
from helpers.packing import pack_folder


def test_unreadable_files_are_listed_and_too_many_refused(tmp_path):
    jpegs(tmp_path / "in", 40)
    whole = (tmp_path / "in/class0/0.jpg").read_bytes()
    bad = {
        "empty.jpg": b"",
        "text.jpg": b"hello, world",
        "truncated.jpg": whole[: len(whole) // 2],
        "header.jpg": whole[:300],
    }
    for name, content in bad.items():
        (tmp_path / "in/class1" / name).write_bytes(content)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    (tmp_path / "in/class1/bomb.png").write_bytes(bomb.getvalue())
    said = []
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 32, progress=said.append)
    unread = dict(packed.meta["unread"])
    assert set(unread) == {f"class1/{name}" for name in (*bad, "bomb.png")}
    assert len(packed.train) + len(packed.val) == 40
    for name, word in {
        "empty": "empty",
        "text": "cannot identify",
        "truncated": "truncated",
        "header": "Truncated",
        "bomb.png": "decompression bomb",
    }.items():
        assert any(
            name in file and word in reason for file, reason in unread.items()
        ), (name, unread)
    assert any("left out 5 files" in line for line in said)
    for i in range(20):
        (tmp_path / f"in/class0/bad{i}.jpg").write_bytes(b"no")
    with pytest.raises(ValueError, match="unreadable: got 25 of 65 files"):
        pack_folder(tmp_path / "in", tmp_path / "more", 32, **QUIET)


@pytest.mark.parametrize("quality", [None, 90])
def test_the_number_of_processes_changes_nothing(tmp_path, quality):
    jpegs(tmp_path / "in", 3 * CHUNK + 7)
    a, b = (
        pack_folder(
            tmp_path / "in",
            tmp_path / f"out{n}",
            32,
            quality=quality,
            processes=n,
            **QUIET,
        )
        for n in (0, 2)
    )
    assert digest(a.path) == digest(b.path)
    assert verify(a.path).meta["unread"] == []
    assert np.asarray(a.train.images[3]).shape == (3, 32, 32)
    assert a.train.images[1:5].shape == (4, 3, 32, 32)
    assert np.array_equal(a.train.images[np.array([2, 0])][1], a.train.images[0])


def test_jpegs_look_like_the_pixels(tmp_path):
    jpegs(tmp_path / "in", 20)
    raw, small = (
        pack_folder(tmp_path / "in", tmp_path / str(q), 64, quality=q, **QUIET)
        for q in (None, 95)
    )
    assert np.abs(raw.train.images[:].astype(int) - small.train.images[:]).mean() < 4
    assert (raw.train.labels == small.train.labels).all()


def test_a_torn_journal_is_cut(tmp_path):
    jpegs(tmp_path / "in", 3 * CHUNK)
    whole = digest(pack_folder(tmp_path / "in", tmp_path / "whole", 32, **QUIET).path)

    class Stop(Exception):
        pass

    def stop(line):
        raise Stop

    with pytest.raises(Stop):
        pack_folder(
            tmp_path / "in", tmp_path / "out", 32, progress=stop
        )  # before the first file
    partial = tmp_path / ".out.partial"
    (partial / "train").mkdir()
    (partial / "train/journal.jsonl").write_text('{"end": 12')
    (partial / "train/images.npy").write_bytes(b"rubbish")
    assert (
        digest(pack_folder(tmp_path / "in", tmp_path / "out", 32, **QUIET).path)
        == whole
    )


def test_never_overwrites_another_set(tmp_path):
    for name in ("a", "b"):
        jpegs(tmp_path / name)
    first = digest(pack_folder(tmp_path / "a", tmp_path / "out", 32, **QUIET).path)
    for source, size in (("b", 32), ("a", 64)):
        with pytest.raises(FileExistsError, match="another data set"):
            pack_folder(tmp_path / source, tmp_path / "out", size, **QUIET)
    assert (
        digest(pack_folder(tmp_path / "a", tmp_path / "out", 32, **QUIET).path) == first
    )


def test_a_disk_that_is_too_small_is_refused(tmp_path, monkeypatch):
    jpegs(tmp_path / "in")
    monkeypatch.setattr(
        "alexnet_nb.data.packing.shutil.disk_usage",
        lambda path: type("", (), dict(free=1000)),
    )
    with pytest.raises(OSError, match=r"dest: got .* GB free, expected"):
        pack_folder(tmp_path / "in", tmp_path / "out", 32, **QUIET)
