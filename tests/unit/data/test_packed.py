"""Packed data are opened and verified, or refused by name."""

import os
import subprocess
import sys

import numpy as np
import pytest

from alexnet_nb.data.packed import open_packed, verify
from helpers.images import PATIENCE, QUIET, jpegs, noise_images
from helpers.packing import pack_folder


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
