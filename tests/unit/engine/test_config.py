"""Names and values of a configuration, also those of version 0.1."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from alexnet_nb.engine.config import (
    Config,
    parse_parameters,
    rename_parameters,
    resolve,
)
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.run_dir import validate
from alexnet_nb.recipes import RECIPES

OLD_NAMES = {
    "together": ("data_parallel", True),
    "size": ("image_size", 96),
    "crop": ("crop_size", 64),
    "width": ("width_mult", 0.5),
}


@pytest.mark.parametrize("old", OLD_NAMES)
def test_an_old_name_of_a_parameter_is_read_with_a_warning(old):
    new, value = OLD_NAMES[old]
    with pytest.warns(FutureWarning, match=f"{old}: .* now called {new}"):
        config = parse_parameters({old: value})
    assert config == Config(**{new: value})


@pytest.mark.parametrize("old", OLD_NAMES)
def test_a_parameter_by_both_of_its_names_is_refused(old):
    new, value = OLD_NAMES[old]
    with pytest.raises(
        ValueError, match=rf"^{old}: got .* beside {new}=.*remove {old}"
    ):
        rename_parameters({old: value, new: value})


def test_an_old_run_is_read_without_a_warning(recwarn):
    assert rename_parameters({"width": 0.5}, warn=False) == {"width_mult": 0.5}
    assert len(recwarn) == 0


def test_each_recipe_keeps_its_crop():
    """Without a size, full-size pictures give the recipe's own crop."""
    for name in ("paper", "source2012", "caffe"):
        assert (
            resolve(Config(data="photos", recipe=name)).crop_size == RECIPES[name].crop
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            dict(precision="float16", gpus=2),
            "precision: got 'float16', expected bfloat16 or",
        ),
        (dict(compile=True, gpus=2), "compile: got True, expected None or False"),
        (dict(precision="half"), "precision: got 'half', expected one of float32, tf"),
        (dict(compile="yes"), "compile: got 'yes', expected True or False or None"),
    ],
)
def test_what_a_pair_of_processes_cannot_do_is_refused(settings, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        parse_parameters(settings)


@pytest.mark.parametrize("precision", ["float16", "tf32"])
def test_both_columns_in_each_process_may_have_every_precision(precision):
    settings = dict(gpus=2, data_parallel=True, precision=precision, compile=True)
    assert parse_parameters(settings) == Config(**settings)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-2", 0.01),
        ("lr", "0.01", 0.01),
        ("lr", "none", None),
        ("batch_size", "128", 128),
        ("batch_size", "1e2", 100),
        ("epochs", "null", None),
        ("compile", "None", None),
        ("compile", "false", False),
        ("resume", "True", True),
        ("out_dir", "none", "none"),
    ],
)
def test_a_value_is_read_from_text(name, text, value):
    config = parse_parameters({name: text, "dry_run": False})
    found = getattr(config, name)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("epochs", "12x"),
        ("epochs", "12.5"),
        ("epochs", ""),
        ("batch_size", "none"),
        ("lr", "inf"),
        ("lr", "True"),
        ("resume", "1"),
    ],
)
def test_other_text_is_no_value(name, text):
    with pytest.raises(ValueError, match=f"^{name}: got '{text}', expected "):
        parse_parameters({name: text})


@pytest.mark.parametrize("old", OLD_NAMES)
def test_the_notebook_has_the_new_name_with_its_default(old):
    """As where `papermill -p width 0.5` adds a variable to those of the notebook."""
    new, value = OLD_NAMES[old]
    with pytest.warns(FutureWarning, match=f"{old}: .* now called {new}"):
        config = parse_parameters({new: getattr(Config, new), old: value})
    assert config == Config(**{new: value})


GRAMMAR = re.compile(r"\w+: got .+, expected .+; .+", re.DOTALL)


@pytest.mark.parametrize(
    "settings",
    [
        dict(gpus=0),
        dict(gpus=3),
        dict(gpus=2, recipe="caffe"),
        dict(precision="half"),
        dict(precision="float16", gpus=2),
        dict(compile=True, gpus=2),
        dict(val_share=1.5),
        dict(seed=-1),
        dict(width_mult=0.0),
        dict(image_size=0),
        dict(image_size=70),
        dict(crop_size=0),
        dict(crop_size=80),
        dict(crop_size=20),
        dict(batch_size=0),
        dict(batch_size=2, gpus=6),
        dict(epochs=0),
        dict(patience=0),
        dict(grad_accum_steps=0),
        dict(grad_accum_steps=200),
        dict(lr=0.0),
        dict(lr_fc8=-1.0),
        dict(train_from="fc9"),
        dict(train_from="fc6"),
        dict(recipe="alexnet"),
        dict(recipe="paper, test_crops=10, hflip=False"),
        dict(recipe="paper, lr=None"),
        dict(dry_run=True, resume=True),
        dict(resume=True),
        dict(out_dir=__file__),
        dict(data=str(Path(__file__).parent), out_dir=f"{Path(__file__).parent}/run"),
    ],
    ids=lambda settings: "-".join(settings),
)
def test_an_error_says_what_to_do(settings):
    """NAME: got VALUE, expected WHAT; do THIS."""
    with pytest.raises(ValueError, match=r"^\w+: got ") as caught:
        validate(Config(**settings))
    assert GRAMMAR.fullmatch(str(caught.value))


WRONG_TYPES = {bool: "maybe", int: "x3", float: "x3", str: 3}


@pytest.mark.parametrize("field", fields(Config), ids=lambda field: field.name)
def test_a_field_of_another_type_is_refused(field):
    """Also where `Config` was made in Python, not read from a notebook's variables."""
    kind = type(None)
    for kind in WRONG_TYPES:
        if kind.__name__ in str(field.type):
            break
    wrong = WRONG_TYPES[kind]
    with pytest.raises(ValueError, match=f"^{field.name}: got {wrong!r}, ") as caught:
        train(Config(**{field.name: wrong}))
    assert GRAMMAR.fullmatch(str(caught.value))


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [("epochs", "3", 3), ("lr", 1, 1.0), ("gpus", 1.0, 1), ("out_dir", Path("a"), "a")],
)
def test_a_value_of_a_config_becomes_that_of_its_type(name, given, value):
    found = getattr(validate(Config(**{name: given})), name)
    assert (type(found), found) == (type(value), value)
