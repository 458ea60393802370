"""Runs that start from trained weights: what they keep, and what they learn anew."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alexnet_nb.data.packed import ImageSplit, PackedDataset
from alexnet_nb.engine.checkpoint import load_checkpoint
from alexnet_nb.engine.config import Config, parse_parameters, resolve
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.loop import begin_epoch, run_training
from alexnet_nb.engine.run_dir import RunDir, open_run, validate
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.engine.transfer import find_start, follow_weights, stored_rate
from alexnet_nb.evaluation import evaluate, load_input, load_model
from alexnet_nb.model import initial_weights
from alexnet_nb.preprocessing import pixel_statistics
from alexnet_nb.recipes import paper, source2012
from alexnet_nb.weights import read_weights
from helpers.runs import Killed, metrics

pytestmark = pytest.mark.usefixtures("one_thread")


BELOW_FC6 = ("conv1", "conv2", "conv3", "conv4", "conv5")


def some_classes(data, first, last, path):
    """The digits from `first` to `last`, brighter, as a data set of its own."""

    def pick(split, n):
        rows = np.flatnonzero((split.labels >= first) & (split.labels <= last))[:n]
        images = split.images[rows] // 2 + 8 * first
        return ImageSplit(images, split.labels[rows] - first)

    train = pick(data.train, 130)
    names = tuple(map(str, range(first, last + 1)))
    statistics = pixel_statistics(train.images)
    return PackedDataset(path, train, pick(data.val, 60), names, *statistics, {})


@pytest.fixture(scope="module")
def few(digits, tmp_path_factory):
    return some_classes(digits, 0, 4, tmp_path_factory.mktemp("few"))


@pytest.fixture(scope="module")
def others(digits, tmp_path_factory):
    return some_classes(digits, 5, 9, tmp_path_factory.mktemp("others"))


def fit(folder, data, **settings):
    """Train a run in this process; return its trainer."""
    settings = dict(out_dir=str(folder), data="digits", epochs=1) | settings
    config = validate(Config(batch_size=32, precision="float64", **settings))
    run_dir = open_run(config, plan_placement(1, num_devices=0))
    run_dir.close()
    trainer = Trainer(run_dir.path, run_dir.config(), data, None)
    run_training(trainer)
    return trainer


@pytest.fixture(scope="module")
def first(few, tmp_path_factory):
    """A run on the digits 0 to 4."""
    folder = tmp_path_factory.mktemp("first") / "run"
    fit(folder, few, width_mult=1 / 16, epochs=2)
    return folder


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_the_body_comes_from_the_weights_and_fc8_is_new(first, others, tmp_path):
    config = resolve(follow_weights(Config(weights=str(first), seed=3)))
    trainer = Trainer(tmp_path, replace(config, precision="float64"), others, None)
    trained = tensors(first)
    drawn = initial_weights(config.model_recipe, 5, seed=3)
    for name, tensor in trainer.model.state_dict().items():
        expected = drawn if name.startswith("fc8") else trained
        assert torch.equal(tensor, expected[name].double()), name
    assert not torch.equal(drawn["fc8.weight"].double(), trained["fc8.weight"])


def test_fc8_is_kept_where_the_classes_are_the_same(first, few, others, tmp_path):
    config = resolve(follow_weights(Config(weights=str(first), precision="float64")))
    trainer = Trainer(tmp_path, config, few, None)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, tensors(first)[name]), name
    in_another_order = replace(others, names=few.names[::-1])
    assert find_start(config, in_another_order).new_fc8
    assert not find_start(config, few).new_fc8


def test_the_input_is_that_of_the_weights(first, few, others, tmp_path):
    """The mean image and the color axes, in training and for whoever uses the run."""
    trainer = fit(tmp_path / "run", others, weights=str(first))
    assert abs(few.mean - others.mean).max() > 10
    assert np.array_equal(trainer.transform.mean.numpy(), few.mean)
    stats = np.load(tmp_path / "run/stats.npz")
    assert np.array_equal(stats["mean"], few.mean)
    assert np.array_equal(stats["cov"], few.cov)
    model = load_model(tmp_path / "run")
    transform = load_input(tmp_path / "run", model)
    assert torch.equal(transform.mean, trainer.transform.mean)
    assert torch.equal(transform.axes, trainer.transform.axes)
    told = read_weights(tmp_path / "run")
    assert np.array_equal(told.mean, few.mean)
    assert told.names == others.names


def test_what_is_below_train_from_stays_bit_for_bit(first, others, tmp_path):
    """And everything else moves: also where fc8 alone is trained."""
    for layer, frozen in (("fc6", BELOW_FC6), ("fc8", (*BELOW_FC6, "fc6", "fc7"))):
        fit(tmp_path / layer, others, weights=str(first), train_from=layer)
        before, after = tensors(first), tensors(tmp_path / layer)
        for name in before:
            is_frozen = name.split(".")[0] in frozen
            assert torch.equal(before[name], after[name]) == is_frozen, name


def test_a_step_moves_every_layer_by_its_own_learning_rate(first, others, tmp_path):
    """SGD with momentum by hand, from the gradients of the first step."""
    settings = dict(lr=1e-3, lr_fc8=0.02, batch_size=4, precision="float64")
    config = resolve(follow_weights(Config(weights=str(first), **settings)))
    trainer = Trainer(tmp_path, config, others, None)
    begin_epoch(trainer, 0)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    trainer.train_step(images, torch.arange(4))
    for name, parameter in trainer.model.named_parameters():
        rate, decay = 1e-3, 5e-4
        if name.startswith("fc8"):
            rate = 0.02
        if name.endswith("bias"):
            rate, decay = 2 * rate, 0.0
        moved = rate * (parameter.grad + decay * before[name])
        assert (before[name] - parameter - moved).abs().max() < 1e-15, name


@pytest.mark.parametrize(
    ("settings", "new", "expected"),
    [
        ({}, True, (1e-3, 1e-2)),
        ({}, False, (1e-3, 1e-3)),
        (dict(lr=0.004), True, (4e-3, 4e-2)),
        (dict(lr=0.004, lr_fc8=0.3), False, (4e-3, 0.3)),
    ],
)
def test_learning_rates_without_being_asked(
    first, few, others, tmp_path, settings, new, expected
):
    config = resolve(follow_weights(Config(weights=str(first), **settings)))
    trainer = Trainer(tmp_path, config, others if new else few, None)
    begin_epoch(trainer, 0)
    rates = {g["name"]: g["lr"] for g in trainer.optimizer.param_groups}
    assert (rates["weights"], rates["fc8"]) == pytest.approx(expected)
    assert rates["fc8_bias"] == pytest.approx(2 * expected[1])


def test_fc8_may_have_a_rate_of_its_own_without_weights(few, tmp_path):
    config = resolve(Config(width_mult=1 / 16, lr_fc8=0.5))
    trainer = Trainer(tmp_path, config, few, None)
    begin_epoch(trainer, 0)
    groups = {g["name"]: g for g in trainer.optimizer.param_groups}
    assert groups["fc8"]["lr"] == 0.5
    assert groups["fc8"]["params"] == [trainer.model.fc8.weight]
    assert groups["weights"]["lr"] == 0.01
    plain = Trainer(tmp_path, resolve(Config(width_mult=1 / 16)), few, None)
    assert [g["name"] for g in plain.optimizer.param_groups] == [
        "conv1",
        "weights",
        "conv1_bias",
        "biases",
    ]


def stop_at(step, monkeypatch):
    """Let a trainer die at a training step."""
    train_step = Trainer.train_step

    def faulty(self, images, labels):
        if self.step == step:
            raise Killed
        return train_step(self, images, labels)

    monkeypatch.setattr(Trainer, "train_step", faulty)


def test_a_resumed_run_equals_one_that_never_stopped(
    first, others, tmp_path, monkeypatch
):
    """Also where the weights have gone meanwhile."""
    copy, stopped = tmp_path / "weights", tmp_path / "stopped"
    shutil.copytree(first, copy)
    settings = dict(weights=str(copy), train_from="conv4", epochs=3)
    fit(tmp_path / "whole", others, **settings)
    with monkeypatch.context() as patch:
        stop_at(7, patch)
        with pytest.raises(Killed):
            fit(stopped, others, **settings)
    assert RunDir(stopped).checkpoints()
    shutil.rmtree(copy)
    fit(stopped, others, **settings, resume=True)
    assert metrics(stopped) == metrics(tmp_path / "whole")
    for name, tensor in tensors(tmp_path / "whole").items():
        assert torch.equal(tensor, tensors(stopped)[name]), name


def test_a_run_that_resumes_with_other_weights_is_refused(first, others, tmp_path):
    settings = dict(data="digits", out_dir=str(tmp_path / "run"), resume=True)
    fit(tmp_path / "run", others, weights=str(first))
    with pytest.raises(ValueError, match=r"^weights: got '', expected '/.*/run'"):
        validate(Config(batch_size=32, precision="float64", epochs=1, **settings))


def test_a_checkpoint_without_the_group_of_fc8_is_resumed(few, tmp_path):
    """Of a run from before `lr_fc8`: fc8 has had the learning rate of the others."""
    fit(tmp_path / "run", few, width_mult=1 / 16)
    path = RunDir(tmp_path / "run").checkpoints()[-1]
    assert "fc8" not in json.loads((path / "state.json").read_text())["rates"]
    config = replace(RunDir(tmp_path / "run").config(), lr_fc8=0.5, epochs=2)
    trainer = Trainer(tmp_path / "run", config, few, None)
    load_checkpoint(trainer, path)
    rates = {g["name"]: g["lr"] for g in trainer.optimizer.param_groups}
    assert rates["fc8"] == rates["weights"]
    assert rates["fc8_bias"] == rates["biases"] == 2 * rates["weights"]
    velocity = trainer.optimizer.state[trainer.model.fc8.weight]["momentum_buffer"]
    before = velocity.clone()
    begin_epoch(trainer, 0)
    torch.testing.assert_close(velocity, before * rates["fc8"] / 0.5)
    assert stored_rate(dict(biases=0.02), "conv1_bias") == 0.02  # of version 0.1


def test_a_finished_run_is_evaluated_without_its_weights(first, others, tmp_path):
    copy = tmp_path / "weights"
    shutil.copytree(first, copy)
    fit(tmp_path / "run", others, weights=str(copy))
    shutil.rmtree(copy)
    table = str(evaluate(tmp_path / "run", replace(others, path=tmp_path)))
    assert f"of {len(others.val)}" in table
    stored = RunDir(tmp_path / "run").config()
    assert (stored.recipe, stored.width_mult, stored.crop_size) == (
        "source2012",
        1 / 16,
        64,
    )


def torchvision_file(path, classes=7):
    from torchvision.models import alexnet

    torch.manual_seed(0)
    network = alexnet(weights=None, num_classes=classes)
    torch.save(network.state_dict(), path)
    return network


def test_weights_of_torchvision_are_the_start(others, tmp_path):
    """A state dict on the disk; the whole network, one step on two images."""
    network = torchvision_file(tmp_path / "net.pth")
    path = str(tmp_path / "net.pth")
    config = validate(Config(data="photos", weights=path, batch_size=2))
    run = resolve(config)
    assert (run.recipe, run.image_size, run.crop_size, run.lr) == (
        "torchvision",
        256,
        224,
        0.001,
    )
    images = np.zeros((2, 3, 256, 256), np.uint8)
    two = ImageSplit(images, np.arange(2))
    data = PackedDataset(tmp_path, two, two, ("a", "b"), images[0] + 7.0, np.eye(3), {})
    trainer = Trainer(tmp_path / "run", run, data, None)
    assert trainer.transform.center_mean.flatten().tolist() == pytest.approx(
        [255 * 0.485, 255 * 0.456, 255 * 0.406]
    )
    assert trainer.transform.scale.flatten().tolist() == pytest.approx(
        [255 * 0.229, 255 * 0.224, 255 * 0.225]
    )
    x = trainer.transform.test_crops(torch.from_numpy(images), 1)[0]
    ours, theirs = trainer.model.eval(), network.eval()
    with torch.no_grad():
        features = theirs.classifier[:6](theirs.features(x).flatten(1))
        torch.testing.assert_close(ours.forward_features(x), features)
    assert ours.fc8.weight.shape == (2, 4096)


def test_the_mean_of_torchvision_fits_images_of_another_size(tmp_path):
    torchvision_file(tmp_path / "net.pth")
    config = Config(data="photos", weights=str(tmp_path / "net.pth"), image_size=240)
    run = resolve(follow_weights(config))
    assert run.image_size == 240
    none = ImageSplit(np.zeros((1, 3, 240, 240), np.uint8), np.zeros(1, int))
    start = find_start(run, PackedDataset(tmp_path, none, none, ("a",), 0, 0, {}))
    assert start.mean.shape == (3, 240, 240)
    assert start.mean[:, 3, 5] == pytest.approx([123.675, 116.28, 103.53])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(train_from="fc6"), "train_from: got 'fc6', expected '' without weights"),
        (
            dict(train_from="fc9", weights="RUN"),
            "train_from: got 'fc9', expected a layer, conv1 to fc8",
        ),
        (dict(lr_fc8=-1), "lr_fc8: got -1.0, expected a number above 0"),
        (
            dict(weights="RUN", recipe="paper"),
            "weights: got a network in .* whose lrn_alpha_over is mean, expected sum,"
            " as of recipe paper; leave recipe out",
        ),
        (dict(weights="RUN", width_mult=0.5), "width_mult: got 0.5, expected 0.0625"),
        (dict(weights="RUN", crop_size=60), "crop_size: got 60, expected 64"),
        (dict(weights="RUN", image_size=80), "image_size: got 80, expected 72"),
        (dict(weights="RUN", gpus=2, batch_size=0), "batch_size: got 0, expected"),
        (
            dict(weights="PTH", gpus=2),
            "gpus: got 2, expected 1, because recipe .*add data_parallel=True",
        ),
        (dict(weights="PTH", image_size=200), "crop_size: got 224, expected at most"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_early(first, tmp_path, settings, words):
    places = dict(RUN=str(first), PTH=str(tmp_path / "net.pth"))
    if settings.get("weights") == "PTH":
        torchvision_file(tmp_path / "net.pth")
    if "weights" in settings:
        settings = settings | dict(weights=places[settings["weights"]])
    with pytest.raises(ValueError, match=f"^{words}"):
        validate(parse_parameters(settings))


def test_what_concerns_training_only_may_differ_from_the_recipe_of_the_weights(first):
    text = "source2012, color_std=0.0, momentum=0.5"
    run = resolve(validate(Config(weights=str(first), recipe=text, data="photos")))
    assert run.recipe == text
    assert (run.model_recipe.color_std, run.model_recipe.momentum) == (0, 0.5)
    assert run.width_mult == 1 / 16
    with pytest.raises(ValueError, match=r"whose dropout is 0\.5, expected 0\.2"):
        validate(Config(weights=str(first), recipe="source2012, dropout=0.2"))


def test_weights_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^weights: got .*/gone, which does no"
    ):
        validate(Config(weights=str(tmp_path / "gone")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(lrn_k=5.0), "whose lrn_k is 5.0, expected 1.0, as of recipe caffe"),
        (dict(name="mine"), "of a recipe named mine, expected one of RECIPES"),
        (dict(kernels=(6, 16, 24, 24, 20)), "whose kernels is"),
    ],
    ids=str,
)
def test_a_network_that_no_recipe_makes_is_refused(tmp_path, changes, words):
    """Of a file that says what it is."""
    from safetensors.torch import save_file

    from alexnet_nb.lab import get_recipe
    from alexnet_nb.learning import scale_width
    from alexnet_nb.weights import make_metadata

    recipe = replace(scale_width(get_recipe("caffe"), 1 / 16, 64), **changes)
    metadata = make_metadata(recipe, ("a",), np.zeros((3, 72, 72)), np.eye(3))
    path = tmp_path / "net.safetensors"
    save_file(initial_weights(recipe, 1), path, metadata)
    with pytest.raises(ValueError, match=f"^weights: got .*{words}"):
        follow_weights(Config(weights=str(path)))


@pytest.mark.parametrize("width", [1, 0.3, 1 / 3, 0.07, 1 / 16, 0.55])
@pytest.mark.parametrize("recipe", ["source2012", "torchvision", "no_communication"])
def test_every_width_is_found_again(tmp_path, recipe, width):
    from alexnet_nb.engine.transfer import _find_width
    from alexnet_nb.lab import get_recipe
    from alexnet_nb.learning import scale_width

    full = get_recipe(recipe)
    scaled = scale_width(full, width, 100)
    assert scale_width(full, _find_width(scaled, full), 100) == scaled


def test_a_recipe_without_a_learning_rule_gets_that_of_the_paper(monkeypatch):
    from alexnet_nb import recipes

    silent = replace(source2012, name="caffe", momentum=None, decay=None)
    monkeypatch.setitem(recipes.RECIPES, "caffe", silent)
    with pytest.raises(ValueError, match="no source for momentum, decay"):
        resolve(Config(recipe="caffe"))
    recipe = resolve(Config(recipe="caffe", weights="x")).model_recipe
    assert (recipe.momentum, recipe.decay) == (paper.momentum, paper.decay)
    assert recipe.schedule == source2012.schedule
