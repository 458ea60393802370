"""What recipes say, and how they differ."""

from dataclasses import replace

import pytest

from alexnet_nb.engine.config import Config
from alexnet_nb.engine.run_dir import validate
from alexnet_nb.recipes import (
    RECIPES,
    caffe,
    diff,
    paper,
)


def test_a_recipe_without_a_training_value_is_refused(monkeypatch):
    monkeypatch.setitem(
        RECIPES,
        "unsourced",
        replace(paper, name="unsourced", momentum=None, decay=None),
    )
    with pytest.raises(ValueError, match=r"recipe: .* no source for momentum, decay"):
        validate(Config(recipe="unsourced"))


def test_differences_say_what_the_paper_prints():
    """The paper states eigenvalues, and all kernels of a layer.

    There `not stated` would be false.
    """
    rows = dict(
        line.strip("| ").split(" | ", 1) for line in diff(paper, caffe).splitlines()
    )
    assert rows["color_lengths"] == "eigenvalues printed, deviations used | deviations"
    assert rows["lrn_across"] == "True printed, False used | True"
    assert rows["reshuffle"] == "not stated | False"
