"""Names and values of a configuration, also those of version 0.1."""

from dataclasses import fields

import pytest

from alexnet_nb.engine.config import (
    Config,
    parse_parameters,
    rename_parameters,
    resolve,
    validate_values,
)
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
        (dict(precision="float16", gpus=2), "precision: got 'float16', expected bf"),
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


@pytest.mark.parametrize("name", [f.name for f in fields(Config)])
def test_a_value_of_another_type_is_refused_at_once(name):
    default = getattr(Config, name)
    with pytest.raises(ValueError, match=f"^{name}: got .*; leave it out") as error:
        Config(**{name: object()})
    assert str(error.value).endswith(f"for the default, {default!r}")


def test_a_value_out_of_range_names_the_default():
    with pytest.raises(ValueError, match=r"patience: .*above 0; leave it out .*None$"):
        validate_values(Config(patience=0))


def test_a_default_that_is_refused_is_not_recommended():
    with pytest.raises(ValueError, match="batch_size: got 128") as error:
        validate_values(Config(gpus=512))
    assert "leave it out" not in str(error.value)


def test_folders_may_be_paths(tmp_path):
    config = Config(data=tmp_path, out_dir=tmp_path / "run")
    assert (config.data, config.out_dir) == (str(tmp_path), str(tmp_path / "run"))
