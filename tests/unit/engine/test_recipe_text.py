"""Fields of a recipe by name, in the notebook and on the command line."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from alexnet_nb.engine import cli
from alexnet_nb.engine.checkpoint import as_stored
from alexnet_nb.engine.config import Config, parse_parameters, resolve
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.frontend import resume_command
from alexnet_nb.engine.recipe_text import parse_recipe, recipe_slug
from alexnet_nb.engine.run_dir import open_run, validate
from alexnet_nb.recipes import RECIPES, Recipe, source2012
from helpers import ROOT

TEXT = "source2012, hflip=False, momentum=0.95"


def test_fields_by_name_are_those_of_the_recipe():
    recipe = parse_recipe(TEXT)
    changed = dict(hflip=False, momentum=0.95, test_crops=5)
    assert recipe == replace(source2012, name=TEXT, **changed)
    for name, known in RECIPES.items():
        assert parse_recipe(name) == known


@pytest.mark.parametrize("name", [f.name for f in fields(Recipe)])
def test_every_field_takes_every_value_that_a_recipe_gives_it(name):
    """As Python writes it; the notebook cannot say less than the recipes do."""
    if name in ("name", "crop"):
        with pytest.raises(ValueError, match=f"recipe: got .*{name}, expected"):
            parse_recipe(f"paper, {name}=1")
        return
    for recipe in RECIPES.values():
        value = getattr(recipe, name)
        assert getattr(parse_recipe(f"paper, {name}={value!r}"), name) == value


@pytest.mark.parametrize(
    "text",
    [
        "source2012,momentum=.95,hflip=False",
        " source2012 , hflip = false, momentum = 0.95 ",
    ],
)
def test_any_spelling_is_the_same_recipe(text):
    assert parse_recipe(text) == parse_recipe(TEXT)
    assert resolve(Config(recipe=text, data="x")).recipe == TEXT


def test_text_needs_no_quotes_and_tuples_are_literals():
    recipe = parse_recipe(
        "paper, activation=tanh, mean='channels', lrn=(), schedule=plateau,"
        " kernels=[48, 128, 192, 192, 128], lr=1e-3, decay=0"
    )
    assert (recipe.activation, recipe.mean, recipe.lrn) == ("tanh", "channels", ())
    assert (recipe.kernels, recipe.lr) == ((48, 128, 192, 192, 128), 0.001)
    steps = "schedule=((0.5, 'all', 0.1),)"
    assert parse_recipe(f"caffe, {steps}").schedule == ((0.5, "all", 0.1),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sorce2012", "got 'sorce2012', expected one of paper, source2012, .*lab-ID"),
        ("paper, hflop=False", "unknown field hflop, .*; did you mean hflip"),
        ("paper, hflip=0", "got hflip=0, expected True or False;"),
        ("paper, momentum=fast", "got momentum='fast', expected a number or None"),
        ("paper, momentum=1.0", "got momentum=1.0, expected a number from 0 to 1, w"),
        ("paper, lrn_n=5.0", "got lrn_n=5.0, expected a whole number"),
        ("paper, lrn_n=None", "got lrn_n=None, expected a whole number"),
        ("paper, pool=0", "got pool=0, expected a number above 0"),
        ("paper, lr=1e999", "got lr=inf, expected a number or None"),
        ("paper, columns=3", r"got columns=3, expected one of \(1, 2\)"),
        ("paper, activation=gelu", "got activation='gelu', expected one of"),
        ("paper, kernels=(1, 2)", r"got kernels=\(1, 2\), expected a tuple of 5 num"),
        ("paper, pads=(0, 1, 1.5, 1, 1)", "expected whole numbers, 5 of them"),
        ("paper, lrn=(conv1,)", "got lrn='.conv1,.', expected a tuple of conv1, con"),
        ("paper, lrn=('conv9',)", "expected a tuple of conv1, conv2"),
        ("paper, schedule=cosine", "got schedule='cosine', expected one of"),
        ("paper, schedule=((0.5, 0.1),)", "expected plateau, or steps"),
        ("paper, crop=200", "got the field crop, .*; give crop_size"),
        ("paper, name=mine", "unknown field name"),
        ("paper, False", "got 'False' behind the name, expected FIELD=VALUE"),
        ("paper, hflip=(", r"got 'hflip=\(' behind the name, expected FIELD=VALUE"),
        ("paper, hflip=True, hflip=False", "behind the name, expected FIELD=VALUE"),
        ("paper, lr=exit()", r"got lr='exit\(\)', expected a number or None"),
        ("paper) or dict(hflip=False", "got .*, expected one of paper"),
    ],
)
def test_what_no_recipe_has_is_refused_by_name(text, words):
    with pytest.raises(ValueError, match=f"^recipe: .*{words}"):
        parse_parameters(dict(recipe=text))


def test_the_run_trains_the_recipe_scaled():
    asked = "source2012, kernels=(48, 128, 192, 192, 128), dropout=0.25"
    config = resolve(Config(recipe=asked, data="photos", width_mult=0.5))
    recipe = config.model_recipe
    assert (recipe.kernels[0], recipe.dropout, recipe.hidden[0]) == (24, 0.25, 2048)
    assert resolve(Config(**config.parameters())) == config  # as config.json has it


def test_digits_are_reflected_only_if_that_is_asked_for():
    assert resolve(Config()).model_recipe.hflip is False
    config = resolve(Config(recipe="source2012, hflip=True"))
    assert (config.model_recipe.hflip, config.model_recipe.test_crops) == (True, 5)
    assert resolve(Config(**config.parameters())) == config


def test_a_field_that_training_needs_has_a_value():
    with pytest.raises(
        ValueError, match=r"^recipe: got paper, lr=None, .* source for lr"
    ):
        parse_parameters(dict(recipe="paper, lr=None"))


def test_the_folder_of_a_run_has_a_readable_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = open_run(Config(recipe=TEXT), plan_placement(1))
    run.close()
    assert str(run.path) == "runs/digits-source2012-hflip-momentum-001"
    many = "caffe, hflip=False, pool=2, lrn=(), dropout=0.1"
    assert recipe_slug(many) == "caffe-4-fields"
    stored = json.loads((run.path / "config.json").read_text())
    assert stored["recipe"] == TEXT
    resumed = Config(
        recipe="source2012,momentum=0.95,hflip=False",
        resume=True,
        out_dir=str(run.path),
    )
    validate(resumed)
    with pytest.raises(
        ValueError, match=f"^recipe: got 'source2012', expected '{TEXT}"
    ):
        validate(replace(resumed, recipe="source2012"))


def test_both_ways_in_give_one_run(monkeypatch, tmp_path):
    """What papermill passes on, and what the command line does."""
    asked = []
    monkeypatch.setattr(cli, "train", lambda config: asked.append(config))
    monkeypatch.setattr(sys, "argv", ["alexnet-train", "--recipe", TEXT])
    cli.main()
    assert asked == [parse_parameters(dict(recipe=TEXT))]
    line = resume_command(asked[0], "runs/x")
    assert f"-p recipe '{TEXT}'" in line
    done = subprocess.run(
        [
            *(sys.executable, "-m", "papermill", ROOT / "nbs/train.ipynb"),
            *(tmp_path / "out.ipynb", "--prepare-only", "-p", "recipe", TEXT),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    (injected,) = (
        c for c in cells if "injected-parameters" in c["metadata"].get("tags", [])
    )
    namespace = {}
    exec("".join(injected["source"]), namespace)
    assert parse_parameters({"recipe": namespace["recipe"]}) == asked[0]


def test_a_checkpoint_knows_the_fields():
    """The fingerprint of a run is made from its recipe."""
    one, other = (
        as_stored(resolve(Config(recipe=text)).model_recipe)
        for text in (TEXT, "source2012, hflip=False, momentum=0.9")
    )
    assert {name for name in one if one[name] != other[name]} == {"name", "momentum"}


def test_without_reflections_there_are_no_ten_crops():
    """The report would ask for them when the run is at its end."""
    assert parse_recipe("source2012, hflip=False").test_crops == 5
    assert parse_recipe("torchvision, hflip=False").test_crops == 1
    for text in ("source2012, hflip=False, test_crops=10", "paper, test_crops=3"):
        with pytest.raises(
            ValueError, match=r"^recipe: got .*, expected .*(test_crops|5)"
        ):
            parse_parameters(dict(recipe=text, data="photos"))
