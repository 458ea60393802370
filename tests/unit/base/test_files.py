"""Files reach the disk before their name, under a name that nobody can guess."""

import os
from pathlib import Path

import pytest

from alexnet_nb.base import files
from alexnet_nb.base.files import atomic_write, sync_folder


def test_files_reach_the_disk_before_their_name(tmp_path, monkeypatch):
    """Every file in a folder, the folder, then the new name.

    Then the folder with the name.
    """
    calls, fsync, replace = [], os.fsync, Path.replace

    def recorded_fsync(handle):
        calls.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def recorded_replace(path, target):
        calls.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    with atomic_write(tmp_path / "step-1") as temp:
        temp.mkdir()
        for name in ("a", "b"):
            (temp / name).write_text(name)
    assert sorted(calls[:2]) == ["a", "b"]
    assert calls[2].startswith(".step-1.")
    assert calls[3:] == ["replace", tmp_path.name]


def test_a_planted_temporary_name_is_not_used(tmp_path):
    """The name is drawn at random; that of the process could be guessed."""
    names = []
    for _ in range(2):
        with atomic_write(tmp_path / "config.json") as temp:
            names.append(temp.name)
            temp.write_text("{}")
    assert len(set(names)) == 2
    assert not any(str(os.getpid()) == name.rpartition(".")[2] for name in names)


def write_half(path):
    with atomic_write(path) as temp:
        temp.write_text("half of the new")
        raise KeyError


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_system_that_opens_no_folder_syncs_none(tmp_path, monkeypatch):
    """Windows: there is no O_DIRECTORY, and `os.open` refuses a folder."""

    def refuse(*args):
        raise PermissionError("a folder")

    monkeypatch.delattr(os, "O_DIRECTORY")
    monkeypatch.setattr(files.os, "open", refuse)
    sync_folder(tmp_path)
