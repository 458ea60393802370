"""Errors have one grammar, and systems without something say so."""

import ast
import errno
import os
import re
from pathlib import Path

import pytest

from alexnet_nb.base.processes import available_cores
from alexnet_nb.data.datasets import find_source
from helpers import ROOT


def errors_of(path):
    """Yield line and message of each error that a module makes, values as {}."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = getattr(node.func, "id", "")
        message = node.args[0]
        if name.endswith("Error") and isinstance(message, ast.JoinedStr | ast.Constant):
            parts = getattr(message, "values", [message])
            text = [getattr(part, "value", "") for part in parts]
            yield node.lineno, "".join(t if isinstance(t, str) else "{}" for t in text)


GRAMMAR = re.compile(r"[\w{}./]+: got .+, expected .+; .+", re.DOTALL)


@pytest.mark.parametrize("room", ["base", "data"])
def test_errors_have_one_grammar(room):
    """NAME: got VALUE, expected WHAT; do THIS."""
    errors = []
    for path in sorted((ROOT / "alexnet_nb" / room).glob("*.py")):
        errors += [(path.name, line, text) for line, text in errors_of(path)]
    assert len(errors) >= {"base": 3, "data": 20}[room]
    assert [error for error in errors if not GRAMMAR.fullmatch(error[2])] == []


def test_an_error_of_another_grammar_is_found(tmp_path):
    (tmp_path / "x.py").write_text("raise ValueError(f'size: found {x}, not 3')")
    ((_, text),) = errors_of(tmp_path / "x.py")
    assert text == "size: found {}, not 3"
    assert not GRAMMAR.fullmatch(text)


def test_a_system_that_counts_no_cores_of_a_process(monkeypatch):
    """MacOS and Windows."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert available_cores() == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


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
