"""What is on the disk when the machine goes away while it packs."""

import io
import json
import os
from pathlib import Path

import pytest
from tqdm import tqdm

from alexnet_nb.data import journal, packing
from alexnet_nb.data.journal import HEADER
from alexnet_nb.data.packed import verify
from alexnet_nb.data.packing import CHUNK
from alexnet_nb.data.sources import list_images
from helpers.images import QUIET, noise_images
from helpers.packing import pack_folder


class PowerCut(Exception):
    """Stands for a machine that goes away."""


def pack_until(monkeypatch, source, out, function, **options):
    """Pack until a function of the package is called; return the unfinished folder."""

    def cut(*args):
        raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(packing, function, cut)
        with pytest.raises(PowerCut):
            pack_folder(source, out, 16, **options, **QUIET)
    return out.with_name(f".{out.name}.partial")


def same_files(a, b):
    """Have two folders the same files with the same bytes?"""
    names = [sorted(p.relative_to(f) for p in f.rglob("*")) for f in (a, b)]
    files = [name for name in names[0] if (a / name).is_file()]
    same = all((a / n).read_bytes() == (b / n).read_bytes() for n in files)
    return names[0] == names[1] and same


@pytest.fixture
def three_chunks(tmp_path):
    """A folder with more than three chunks for training, and what is made of it."""
    source = noise_images(tmp_path / "in", 3 * CHUNK // 2 + 10)
    return source, pack_folder(source, tmp_path / "whole", 16, **QUIET).path


@pytest.mark.parametrize("quality", [None, 90])
@pytest.mark.parametrize("images", [0, 0.5, 1, 40, 64, 65])
def test_a_journal_ahead_of_its_data_is_cut_back(
    tmp_path, monkeypatch, three_chunks, images, quality
):
    """What reached the disk is the journal, and some of the images or none."""
    source, whole = three_chunks
    if quality:
        whole = pack_folder(
            source, tmp_path / "jpegs", 16, quality=quality, **QUIET
        ).path
    out = tmp_path / "out"
    cut = pack_until(monkeypatch, source, out, "pixel_statistics", quality=quality)
    data = cut / "train" / ("jpegs.npy" if quality else "images.npy")
    size = HEADER + int(images * 3 * 16 * 16)
    assert size < data.stat().st_size
    os.truncate(data, size if images else 0)
    packed = verify(pack_folder(source, out, 16, quality=quality, **QUIET).path)
    assert same_files(packed.path, whole)
    assert all(packed.train.images[i].any() for i in range(len(packed.train)))


DAMAGES = {
    "zeros in the middle": lambda lines: [lines[0], bytes(40) + b"\n", *lines[2:]],
    "zeros at the end": lambda lines: [*lines[:2], bytes(500)],
    "zeros only": lambda lines: [bytes(500)],
    "a torn line": lambda lines: [*lines[:2], lines[2][:9]],
    "a line twice": lambda lines: [lines[0], *lines],
    "a line lost": lambda lines: lines[1:],
    "another list": lambda lines: [lines[0], b"[1, 2]\n"],
    "bytes": lambda lines: [lines[0], b"\xff\xfe\n"],
    "nothing": lambda lines: [],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_cut_there(tmp_path, monkeypatch, three_chunks, damage):
    source, whole = three_chunks
    cut = pack_until(monkeypatch, source, tmp_path / "out", "pixel_statistics")
    journal = cut / "train/journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) >= 3
    journal.write_bytes(b"".join(DAMAGES[damage](lines)))
    packed = pack_folder(source, tmp_path / "out", 16, **QUIET)
    assert same_files(verify(packed.path).path, whole)


@pytest.mark.parametrize("name", ["plan.json", "meta.json"])
@pytest.mark.parametrize("content", [b"", b'{"size": 1', bytes(300), b"[]", b"\xff"])
def test_a_damaged_plan_does_not_block_later_tries(
    tmp_path, monkeypatch, three_chunks, name, content
):
    source, whole = three_chunks
    cut = pack_until(monkeypatch, source, tmp_path / "out", "pixel_statistics")
    (cut / name).write_bytes(content)
    packed = pack_folder(source, tmp_path / "out", 16, **QUIET)
    assert same_files(verify(packed.path).path, whole)


def test_what_was_finished_of_another_plan_does_not_get_the_name(
    tmp_path, monkeypatch, three_chunks
):
    """Killed between the last file and the rename, then begun with other arguments."""
    source, whole = three_chunks
    cut = pack_until(monkeypatch, source, tmp_path / "out", "pixel_statistics")
    for path in whole.rglob("*"):
        if path.is_file():
            (cut / path.relative_to(whole)).write_bytes(path.read_bytes())
    assert pack_folder(source, tmp_path / "out", 24, **QUIET).size == 24


class Interrupted(tqdm):
    """A bar on which Ctrl-C is pressed after two chunks."""

    def update(self, n=1):
        super().update(n)
        if self.n >= 2 * CHUNK:
            raise KeyboardInterrupt


def test_an_interrupt_loses_nothing(tmp_path, three_chunks):
    """The lines of an interrupted run are written, whatever the time since the last."""
    source, _ = three_chunks
    samples = list_images(source).splits["train"]
    chunks = packing.Chunks(samples, 16, None)
    with pytest.raises(KeyboardInterrupt):
        packing.write_split(
            tmp_path / "train", chunks, 0, Interrupted(file=io.StringIO())
        )
    journal = (tmp_path / "train/journal.jsonl").read_bytes()
    assert journal.count(b"\n") == 2


@pytest.fixture
def disk(monkeypatch):
    """What has reached the disk: the real calls are made, and noted beside."""
    synced, renamed = {}, []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def note(descriptor):
        fsync(descriptor)
        info = os.fstat(descriptor)
        synced[info.st_ino] = (info.st_size, info.st_mtime_ns)

    def note_rename(call):
        def named(old, new):
            inside = Path(old).rglob("*") if Path(old).is_dir() else []
            for path in (Path(old), *inside):
                info = path.stat()
                state = info.st_size, info.st_mtime_ns
                assert synced.get(info.st_ino) == state, f"{path} is not on the disk"
            call(old, new)
            renamed.append(Path(new))
            synced.pop(Path(new).parent.stat().st_ino, None)

        return named

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "rename", note_rename(rename))
    monkeypatch.setattr(os, "replace", note_rename(replace))
    return synced, renamed


@pytest.mark.parametrize("quality", [None, 90])
def test_files_have_reached_the_disk_before_they_get_their_names(
    tmp_path, disk, quality
):
    synced, renamed = disk
    source = noise_images(tmp_path / "in")
    pack_folder(source, tmp_path / "out", 16, quality=quality, **QUIET)
    names = {path.name for path in renamed}
    assert {"out", "meta.json", "plan.json", "stats.npz", "labels.npy"} <= names
    assert {path.parent.stat().st_ino for path in renamed if path.exists()} <= set(
        synced
    )


def test_data_have_reached_the_disk_before_their_journal_line(
    tmp_path, monkeypatch, three_chunks
):
    """Looked at whenever the journal is longer than before."""
    monkeypatch.setattr(journal, "_SYNC_SECONDS", 0)
    fsync, reached, seen = os.fsync, {}, []
    partial = tmp_path / ".out.partial"

    def look():
        for split in ("train", "val"):
            journal = partial / split / "journal.jsonl"
            if journal.exists():
                lines = journal.read_bytes().splitlines(keepends=True)
                whole = [line for line in lines if line.endswith(b"\n")]
                if whole:
                    end = json.loads(whole[-1])["end"]
                    inode = (partial / split / "images.npy").stat().st_ino
                    assert end <= reached[inode]
                    seen.append((split, end))

    def note(descriptor):
        look()
        fsync(descriptor)
        info = os.fstat(descriptor)
        reached[info.st_ino] = info.st_size
        look()

    monkeypatch.setattr(os, "fsync", note)
    pack_folder(three_chunks[0], tmp_path / "out", 16, **QUIET)
    assert len({end for split, end in seen if split == "train"}) >= 3
    assert any(split == "val" for split, _ in seen)
