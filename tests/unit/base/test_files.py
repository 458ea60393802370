"""Files reach the disk before their name, under a name that nobody can guess."""

import os
from pathlib import Path

from alexnet_nb.base.files import atomic_write


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
