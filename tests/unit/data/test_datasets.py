"""Data are found by name or folder, and packed copies in the cache."""

import errno
from pathlib import Path

import pytest
from PIL import Image

from alexnet_nb.data.datasets import cache_folder, find_source, load_dataset


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/", "val/"], "no images for train"),
        (["train/a/1.png", "val/a/2.png"], "with one class"),
        (["train/a/1.png", "train/b/", "val/a/2.png"], "no images for the classes b"),
        (
            ["train/a/1.png", "train/b/2.png", "val/c/3.png"],
            "classes that train has not: c",
        ),
        (["train/a/1.png", "train/b/2.png"], "none named val"),
        (
            ["train/a/1.png", "train/b/2.png", "val/a/broken.png"],
            "no readable image for val",
        ),
    ],
)
def test_odd_folders_are_refused(tmp_path, monkeypatch, files, words):
    monkeypatch.setenv("ALEXNET_NB_CACHE", str(tmp_path / "cache"))
    for name in files:
        path = tmp_path / "data" / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if "broken" in name:
            path.write_text("not a picture")
        elif not name.endswith("/"):
            Image.new("RGB", (20, 20)).save(path)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        load_dataset(str(tmp_path / "data"), 16)


def test_an_empty_variable_is_an_unset_one(monkeypatch):
    monkeypatch.setenv("ALEXNET_NB_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/alexnet_nb")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/alexnet_nb")
    monkeypatch.setenv("ALEXNET_NB_CACHE", "/own")
    assert cache_folder() == Path("/own")


def test_a_name_that_a_disk_cannot_hold_is_no_folder(monkeypatch):
    """Windows refuses it with an error of its own kind in place of `not found`."""

    def refuse(path, **options):
        error = OSError(errno.EINVAL, "The filename syntax is incorrect", str(path))
        error.winerror = 123
        raise error

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(
        FileNotFoundError, match=r"data: got a\?b, which is not a folder"
    ):
        find_source("a?b")
