"""What stands in the way of packing.

Little memory, few open files, power cuts, odd files, planted links.
"""

import errno
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin, TiffTags
from sklearn.datasets import load_sample_image
from tqdm import tqdm

from alexnet_nb import preprocessing
from alexnet_nb.base.files import file_lock
from alexnet_nb.data import journal, packing
from alexnet_nb.data.datasets import cache_folder
from alexnet_nb.data.journal import HEADER
from alexnet_nb.data.packed import open_packed, verify
from alexnet_nb.data.packing import CHUNK, pack
from alexnet_nb.data.sources import list_images
from alexnet_nb.data.workers import map_in_workers, pickled_by_path
from alexnet_nb.preprocessing import decode_jpeg, load_image, resize_center_crop
from helpers.packing import pack_folder

QUIET = {"progress": lambda line: None}
PATIENCE = 300  # seconds after which a process that should have ended is called hung


def noise_images(folder, count=12, num_classes=("a", "b"), size=20):
    """Write random PNG files into the folders of some classes."""
    rng = np.random.default_rng(0)
    for name in num_classes:
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


class Items:
    """Ten items, the sixth of which brings its process into trouble."""

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
    """In a process of its own: the fault that this looks for is to wait for ever."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/..']\n"
        "import test_packing_faults as faults\n"
        "from alexnet_nb.data.workers import map_in_workers\n"
        "for item in map_in_workers(faults.Items(getattr(faults, sys.argv[2])), 2):\n"
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
    lines = done.stderr.splitlines()
    (error,) = [line for line in lines if line.startswith("RuntimeError:")]
    assert "processes: got" in error
    assert reason in error
    assert "that worked on item 5, expected an item; free memory" in error


def test_a_worker_killed_mid_way_is_named_and_packing_goes_on(tmp_path, monkeypatch):
    """Of the two workers one is killed over a file; without it the next run ends whole."""
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


class LargeItems(Items):
    """Items that no pipe holds, so that a process waits until one is asked for."""

    def __getitem__(self, i):
        return bytes(1 << 22)


def test_what_is_left_of_the_work_ends_its_processes():
    items = map_in_workers(LargeItems(int), 2)
    with closing(items):
        next(items)
        children = multiprocessing.active_children()
        assert len(children) == 2
    assert not any(child.is_alive() for child in children)


FORKSERVER = """
import multiprocessing, sys
if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["alexnet_nb.data.packing"])
    from alexnet_nb.data.packing import pack
    from alexnet_nb.data.sources import list_images
    source = list_images(sys.argv[1])
    for quality in (None, 90):
        out = f"{sys.argv[2]}-{quality}"
        packed = pack(source, out, 16, quality=quality, processes=2)
        print(packed.meta["sha256"]["stats.npz"])
"""


def test_where_processes_are_not_forked_a_mapped_file_is_handed_over_by_its_path(
    tmp_path,
):
    """Python 3.14 on Linux starts a fork server, macOS and Windows spawn."""
    noise_images(tmp_path / "in", 300)
    expected = []
    for quality in (None, 90):
        out = tmp_path / f"forked-{quality}"
        packed = pack_folder(tmp_path / "in", out, 16, quality=quality, **QUIET)
        expected.append(packed.meta["sha256"]["stats.npz"])
        sums = preprocessing.PixelSums(packed.train.images)
        assert len(pickled_by_path(sums)) < 2000 < os.stat(out / "stats.npz").st_size
    done = subprocess.run(
        [sys.executable, "-c", FORKSERVER, tmp_path / "in", tmp_path / "served"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    found = [word for word in done.stdout.split() if word in expected]
    assert found == expected, done.stderr


# ---------------------------------------------------------------- power cuts


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


# ---------------------------------------------------------------- odd names and files


@pytest.mark.parametrize(
    "character", list("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\t\x1b\x7f")
)
def test_a_class_name_of_several_lines_is_refused_by_name(tmp_path, character):
    noise_images(tmp_path, num_classes=(f"a{character}b", "c"))
    with pytest.raises(ValueError, match=r"data: got a class named a\\.+b, exp") as e:
        list_images(tmp_path)
    assert character not in str(e.value)


@pytest.mark.parametrize(
    "name", ["日本 語", "crème brûlée", "a'b\"c", "👩‍👧", "\u200fعربي", "a\\nb"]
)
def test_other_class_names_come_back_as_they_are(tmp_path, name):
    noise_images(tmp_path / "in", num_classes=(name, "z"))
    packed = verify(pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET).path)
    assert set(packed.names) == {name, "z"}


def test_a_class_folder_that_is_not_utf8_is_refused_by_name(tmp_path):
    noise_images(tmp_path, num_classes=(os.fsdecode(b"\xe9t\xe9"), "b"))
    with pytest.raises(ValueError, match=r"data: got a class named \\xe9t\\xe9, "):
        list_images(tmp_path)


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


def odd_files(folder):
    """Put beside the images of a folder what is no image; return the names, as bytes."""
    names = {
        "gone.png": lambda path: path.symlink_to("/nowhere/x.png"),
        "fifo.jpg": os.mkfifo,
        "zero.jpg": lambda path: path.symlink_to("/dev/zero"),
        "null.gif": lambda path: path.symlink_to("/dev/null"),
        "loop.png": lambda path: path.symlink_to(path.name),
        "socket.bmp": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
        "folder.webp": lambda path: path.symlink_to("."),
    }
    for name, make in names.items():
        make(folder / name)
    return set(names)


@pytest.mark.parametrize("processes", [0, 2])
def test_what_is_no_image_is_left_out_by_name(tmp_path, processes):
    """In a process of its own: one that reads a FIFO or /dev/zero does not come back."""
    noise_images(tmp_path / "in")
    odd = odd_files(tmp_path / "in/a")
    code = (
        "import json, resource, sys\n"
        "from alexnet_nb.data.packed import verify\n"
        "from alexnet_nb.data.packing import pack\n"
        "from alexnet_nb.data.sources import list_images\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "out, processes = sys.argv[2], int(sys.argv[3])\n"
        "source = list_images(sys.argv[1])\n"
        "packed = pack(source, out, 16, processes=processes, progress=len)\n"
        "verify(packed.path)\n"
        "print(json.dumps([len(packed.train), len(packed.val), packed.meta['unread']]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "in", tmp_path / "out", str(processes)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    train, val, unread = json.loads(done.stdout)
    assert train + val == 24
    assert {name for name, _ in unread} == {f"a/{name}" for name in odd}
    reasons = dict(unread)
    assert "got a FIFO, expected a file" in reasons["a/fifo.jpg"]
    assert "got a device, expected a file" in reasons["a/zero.jpg"]
    assert "FileNotFoundError" in reasons["a/gone.png"]
    assert "listed already" in reasons["a/folder.webp"]


def test_a_file_that_vanishes_is_left_out_by_name(tmp_path):
    """Between the listing and the hash of the list; and between that and the reading."""
    noise_images(tmp_path / "in")
    source = list_images(tmp_path / "in")
    (tmp_path / "in/a/0.png").unlink()
    vanish = [(tmp_path / "in/b/1.png")]

    def progress(line):
        while vanish:
            vanish.pop().unlink()

    packed = pack(source, tmp_path / "out", 16, progress=progress)
    assert {name for name, _ in packed.meta["unread"]} == {"a/0.png", "b/1.png"}
    assert len(packed.train) + len(packed.val) == 22


def test_file_names_of_any_bytes_are_packed_and_printed_as_one_line(tmp_path):
    """Latin-1, escape sequences and line breaks, of readable and of unreadable files."""
    noise_images(tmp_path / "in")
    folder = os.fsencode(tmp_path / "in/a") + b"/"
    readable = [b"\xe9t\xe9.png", b"\x1b[2J.png", b"new\nline.png", "ü.png".encode()]
    for i, name in enumerate(readable):
        os.rename(folder + b"%d.png" % i, folder + name)
    for name in (b"\xff.png", b"\x1b]0;owned\x07.png", b"x\nforged: line.png"):
        with open(folder + name, "w") as file:
            file.write("no image")
    said = []
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 16, progress=said.append)
    assert len(packed.train) + len(packed.val) == 24
    names = {r"a/\xff.png", r"a/\x1b]0;owned\x07.png", r"a/x\nforged: line.png"}
    assert {name for name, _ in packed.meta["unread"]} == names
    text = "\n".join(said)
    assert all(name in text for name in names)
    assert "\x1b" not in text
    assert "\nforged" not in text
    assert text.encode()  # no half characters, which a terminal would refuse
    assert (
        pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET).path == packed.path
    )


def test_hidden_and_system_folders_are_passed_over_by_name(tmp_path):
    folder = noise_images(tmp_path / "in", 40)
    for path in list((folder / "a").iterdir()):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7 Mac OS X")
    for name in ("@eaDir", "__MACOSX", "lost+found", ".cache"):
        noise_images(folder, 2, num_classes=(name, f"a/{name}"))
    (folder / "b/notes.txt").write_text("no image")
    (folder / "b/0.ppm").write_text("no image")
    said = []
    packed = pack_folder(folder, tmp_path / "out", 16, progress=said.append)
    assert packed.names == ("a", "b")
    assert len(packed.train) + len(packed.val) == 80
    unread = dict(packed.meta["unread"])
    assert len(unread) == 40 + 8 + 2
    assert unread["a/._7.png"] == "hidden: its name begins with a dot"
    assert unread["@eaDir"] == unread["a/lost+found"] == "made by the system"
    assert unread["b/*.ppm"] == "other endings than an image's: 1"
    assert any("left out what is not an image" in line for line in said)


def test_a_class_that_loses_all_its_images_is_refused_by_name(tmp_path):
    """Few as they are, they would pass as ten unreadable files."""
    noise_images(tmp_path / "in", 12, num_classes=("a", "b"))
    noise_images(tmp_path / "in", 4, num_classes=("lost",))
    for path in (tmp_path / "in/lost").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"data: got no readable .* the classes lost"):
        pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET)


def test_where_there_is_no_image_what_was_found_is_named(tmp_path):
    noise_images(tmp_path)
    for path in list((tmp_path / "a").iterdir()):
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(FileNotFoundError, match=r"for the classes a .*, only \*.heic"):
        list_images(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path):
    """One to other images, one to its own folder, and two that lead to each other."""
    folder = noise_images(tmp_path / "in", 4)
    noise_images(tmp_path, 3, num_classes=("elsewhere",))
    (folder / "a/more").symlink_to(tmp_path / "elsewhere")
    (folder / "a/again").symlink_to(".")
    (folder / "b/other").symlink_to("../a")
    (folder / "a/other").symlink_to("../b")
    source = list_images(folder)
    found = [(path.relative_to(folder), label) for path, label in source.splits["val"]]
    found += [
        (path.relative_to(folder), label) for path, label in source.splits["train"]
    ]
    inside = {str(path.parent) for path, label in found if label == 0}
    assert inside == {"a", "a/more", "a/other"}
    assert len(found) == 2 * (4 + 3 + 4)
    passed_over = {os.path.relpath(path, folder) for path, _ in source.left_out}
    assert passed_over == {"a/again", "a/other/other", "b/other/again", "b/other/other"}


def test_the_key_of_an_ordinary_folder_is_what_it_was(tmp_path):
    """Else every packed copy in a cache would be made again."""
    noise_images(tmp_path / "in", 3)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(path.name.encode())
        os.utime(path, ns=(1_000_000_000, 1_000_000_000))
    source = list_images(tmp_path / "in")
    h = hashlib.sha256(json.dumps([source.names, source.origin]).encode())
    for split, items in source.splits.items():
        for path, label in items:
            h.update(f"{split} {label} {path} 5 1000000000".encode())
    assert source.key() == h.hexdigest()[:12]


# ---------------------------------------------------------------- formats and bits


def test_only_the_documented_formats_are_opened(tmp_path):
    """Whatever Pillow can write is tried under the name of a JPEG, and as a stored JPEG."""
    Image.init()
    opened = set()
    for name in sorted(set(Image.SAVE) & set(Image.OPEN)):
        for mode in ("RGB", "RGBA", "L", "P", "1", "F"):
            file = io.BytesIO()
            try:
                Image.new(mode, (32, 32)).save(file, name)
            except Exception:
                continue
            (tmp_path / "x.jpg").write_bytes(file.getvalue())
            try:
                load_image(tmp_path / "x.jpg", 16)
            except Exception:
                pass
            else:
                opened.add(name)
            if name not in ("JPEG", "MPO"):
                with pytest.raises(Exception, match=r"identify|JPEG|image file"):
                    decode_jpeg(file.getvalue())
            break
    assert opened <= {"JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF"}
    assert {"JPEG", "PNG", "BMP", "TIFF", "GIF"} <= opened


def test_ghostscript_is_not_started(tmp_path, monkeypatch):
    """By a file of an image folder, or by what stands for a JPEG in a packed set."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho called >> {tmp_path}/called\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 30\n%%EndComments\n"
    (tmp_path / "x.jpg").write_bytes(postscript)
    for read in (
        lambda: load_image(tmp_path / "x.jpg"),
        lambda: decode_jpeg(postscript),
    ):
        with pytest.raises(OSError, match="identify"):
            read()
    assert not (tmp_path / "called").exists()


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


def tiff(tags=(), **options):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in dict(tags).items():
        info[tag] = value
        info.tagtype[tag] = TiffTags.DOUBLE
    return {"format": "TIFF", "tiffinfo": info, **options}


def twelve_bit_tiff(values):
    """A TIFF that says that it has 12 bits: Pillow reads these and cannot write them."""
    high, low = values.reshape(-1, 2).T
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], 1)
    data = packed.astype(np.uint8).tobytes()
    height, width = values.shape
    entries = [
        (256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8),
        (277, 1), (278, height), (279, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    for tag, value in entries:
        directory += struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


def ramp(scale, kind):
    values = RAMP * scale
    if np.issubdtype(kind, np.integer):
        values = values.round()
    return Image.fromarray(values.astype(kind))


KNOWN_RANGES = {
    "16-bit PNG": (ramp(65535, np.uint16), {"format": "PNG"}),
    "16-bit TIFF": (ramp(65535, np.uint16), tiff()),
    "12 bits, declared by its range": (
        ramp(4095, np.uint16),
        tiff({340: 0, 341: 4095}),
    ),
    "float, declared": (ramp(1, np.float32), tiff({340: 0.0, 341: 1.0})),
    "32-bit, declared": (ramp(2_000_000, np.int32), tiff({340: 0, 341: 2_000_000})),
}


def read_saved(tmp_path, image, format, **options):
    path = tmp_path / f"x.{format.lower()}"
    image.save(path, format, **options)
    return load_image(path, 64)


@pytest.mark.parametrize("name", KNOWN_RANGES)
def test_a_declared_range_becomes_0_to_255(tmp_path, name):
    image, options = KNOWN_RANGES[name]
    found = read_saved(tmp_path, image, **options)
    assert np.abs(found - RAMP * 255).max() <= 1


def test_12_declared_bits_become_0_to_255(tmp_path):
    file = twelve_bit_tiff((RAMP * 4095).round().astype(np.int64))
    (tmp_path / "x.tif").write_bytes(file)
    assert np.abs(load_image(tmp_path / "x.tif", 64) - RAMP * 255).max() <= 1


def rgb_ramp_png(scale):
    """A PNG with 16 bits a color, which Pillow reads and cannot write."""
    rows = (RAMP * scale).round().astype(">u2")
    raw = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        crc = zlib.crc32(kind + data)
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
    return file


def test_16_bits_a_color(tmp_path):
    """All of them, and 12 of them, which Pillow alone would make 0 to 15."""
    path = tmp_path / "x.png"
    path.write_bytes(rgb_ramp_png(65535))
    assert np.abs(load_image(path, 64) - RAMP * 255).max() <= 1
    path.write_bytes(rgb_ramp_png(4095))
    with pytest.raises(ValueError, match="got 16-bit pixels up to 4095, which are 12"):
        load_image(path, 64)


UNKNOWN_RANGES = {
    "12 bits in 16, PNG": (ramp(4095, np.uint16), {"format": "PNG"}),
    "12 bits in 16, TIFF": (ramp(4095, np.uint16), tiff()),
    "8 bits in 16": (ramp(255, np.uint16), {"format": "PNG"}),
    "float of 0 to 1": (ramp(1, np.float32), tiff()),
    "float of 0 to 255": (ramp(255, np.float32), tiff()),
    "32-bit integers": (ramp(255, np.int32), tiff()),
    "large 32-bit integers": (ramp(2**31 - 1, np.int32), tiff()),
    "more than declared": (ramp(255, np.float32), tiff({340: 0.0, 341: 1.0})),
    "not a number": (ramp(np.nan, np.float32), tiff({340: 0.0, 341: 1.0})),
    "an empty range": (ramp(1, np.float32), tiff({340: 1.0, 341: 1.0})),
}


@pytest.mark.parametrize("name", UNKNOWN_RANGES)
def test_an_unknown_range_is_left_out_by_name_and_never_black(tmp_path, name):
    image, options = UNKNOWN_RANGES[name]
    noise_images(tmp_path / "in")
    image.save(tmp_path / "in/a/odd.tif", **options)
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET)
    ((path, reason),) = packed.meta["unread"]
    assert path == "a/odd.tif"
    assert reason.startswith("ValueError: got ")
    assert "expected" in reason
    assert len(packed.train) + len(packed.val) == 24


def test_modes_with_an_a_in_their_name(tmp_path):
    """LAB has no transparency; La is LA with its gray multiplied by it."""
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((160, 120))
    expected = np.asarray(resize_center_crop(photo, 64)).astype(int)
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab = ImageCms.applyTransform(
        photo, ImageCms.buildTransform(*profiles, "RGB", "LAB")
    )
    found = read_saved(tmp_path, lab, "TIFF").transpose(1, 2, 0)
    assert np.abs(found - expected).mean() < 5
    gray = np.asarray(resize_center_crop(photo.convert("L"), 64)).astype(int)
    for mode in ("LA", "La"):
        found = np.asarray(resize_center_crop(photo.convert("LA").convert(mode), 64))
        assert np.abs(found - gray).mean() < 2
    for mode in ("PA", "RGBa"):
        found = resize_center_crop(
            photo.convert("RGBA").convert("P" if mode == "PA" else mode)
        )
        assert np.asarray(found).std() > 10


# ---------------------------------------------------------------- locks and caches


def test_a_planted_lock_does_no_harm(tmp_path):
    """A link under the lock's name to a file of the user, or to one that is not there."""
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


def test_an_empty_variable_is_an_unset_one(monkeypatch):
    monkeypatch.setenv("ALEXNET_NB_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/alexnet_nb")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/alexnet_nb")
    monkeypatch.setenv("ALEXNET_NB_CACHE", "/own")
    assert cache_folder() == Path("/own")
