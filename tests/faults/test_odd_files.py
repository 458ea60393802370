"""What lies between the images of a folder and is none."""

import json
import os
import socket
import subprocess
import sys

import pytest

from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import list_images
from helpers import PATIENCE
from helpers.images import QUIET, noise_images
from helpers.packing import pack_folder


def odd_files(folder):
    """Put beside the images of a folder what is no image.

    Return the names, as bytes.
    """
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
    """In a process of its own.

    One that reads a FIFO or /dev/zero does not come back.
    """
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
    """Between the listing and the hash of the list.

    And between that and the reading.
    """
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
    """Latin-1, escape sequences and line breaks.

    Of readable and of unreadable files.
    """
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
    (folder / "b/0.raw").write_text("no image")
    said = []
    packed = pack_folder(folder, tmp_path / "out", 16, progress=said.append)
    assert packed.names == ("a", "b")
    assert len(packed.train) + len(packed.val) == 80
    unread = dict(packed.meta["unread"])
    assert len(unread) == 40 + 8 + 2
    assert unread["a/._7.png"] == "hidden: its name begins with a dot"
    assert unread["@eaDir"] == unread["a/lost+found"] == "made by the system"
    assert unread["b/*.raw"] == "other endings than an image's: 1"
    assert any("left out what is not an image" in line for line in said)


def test_a_class_that_loses_all_its_images_is_refused_by_name(tmp_path):
    """Few as they are, they would pass as ten unreadable files."""
    noise_images(tmp_path / "in", 12, num_classes=("a", "b"))
    noise_images(tmp_path / "in", 4, num_classes=("lost",))
    for path in (tmp_path / "in/lost").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"data: got no readable .* the classes lost"):
        pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET)
