"""Packing: what is made of a folder, and what is refused."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet_nb.data.packed import verify
from alexnet_nb.data.packing import CHUNK, pack, progress_bar
from helpers.images import QUIET, digest, jpegs
from helpers.packing import pack_folder, two_classes


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


def test_progress_in_a_log_is_a_line_each(capsys):
    """No carriage return, no escape sequence, no bar."""
    said = []
    with progress_bar(640, said.append, interval=0) as bar:
        bar.update(320)
        bar.update(320)
    assert len(said) >= 2
    assert all(line.startswith("packed ") for line in said)
    assert said[-1].startswith("packed 640 of 640 images, ")
    assert said[-1].endswith(" left")
    assert all(line.isprintable() for line in said)
    assert capsys.readouterr() == ("", "")


def test_what_is_packed_at_once_reports_no_progress(tmp_path, capsys):
    pack(two_classes(), tmp_path / "out", 8)
    out, err = capsys.readouterr()
    assert out.startswith("packing 36 + 4 images at 8×8: ")
    assert out.count("\n") == 1
    assert err == ""


def test_a_bar_is_drawn_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(640, print) as bar:
        bar.delay = 0
        bar.update(640)
    assert "packing: 100%|" in capsys.readouterr().err


def test_a_resumed_bar_counts_only_what_it_packs_itself(tmp_path, monkeypatch):
    """What an earlier run has packed is done, and was not done now."""
    from alexnet_nb.data import packing

    def stop(*args):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(packing, "pixel_statistics", stop)
        with pytest.raises(InterruptedError):
            pack(two_classes(), tmp_path / "out", 8, progress=lambda line: None)
    bars = []

    def note(*args):
        bars.append(progress_bar(*args))
        return bars[0]

    monkeypatch.setattr(packing, "progress_bar", note)
    partial = tmp_path / ".out.partial"
    (partial / ".stats.npz.0123").write_bytes(b"torn")
    pack(two_classes(), tmp_path / "out", 8, progress=lambda line: None)
    assert (bars[0].n, bars[0].initial) == (40, 40)
    assert not list((tmp_path / "out").glob(".*"))  # what the first had begun


@pytest.mark.parametrize("source", ["photos", Path("photos")])
def test_a_path_in_place_of_a_source_is_refused_with_the_call_to_make(source, tmp_path):
    with pytest.raises(TypeError) as e:
        pack(source, tmp_path / "out")
    assert str(e.value) == (
        "source: got 'photos', expected an ImageSource; call"
        " pack(find_source('photos'), ...)"
    )
    assert list(tmp_path.iterdir()) == []
