"""The plain loop of §5 beside the trainer of the engine.

The latter adds processes and files.
"""

import json
from dataclasses import replace

import pytest
import torch

from alexnet_nb.augmentation import InputTransform
from alexnet_nb.data.packed import ImageSplit
from alexnet_nb.dropout import dropout_masks
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.loop import train_loop
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.learning import scale_width
from alexnet_nb.model import AlexNet, initial_weights
from alexnet_nb.recipes import RECIPES, paper, source2012
from alexnet_nb.training import classification_loss, train_on_images, train_step


def plain_losses(config, data, epochs):
    recipe = config.model_recipe
    model = AlexNet(recipe, len(data.names)).double()
    model.load_state_dict(initial_weights(recipe, len(data.names), config.seed))
    transform = InputTransform(recipe, data.mean, data.cov, dtype=torch.float64)
    images = torch.tensor(data.train.images[:])
    labels = torch.tensor(data.train.labels[:])
    return list(
        train_on_images(
            recipe,
            images,
            labels,
            transform,
            model,
            epochs,
            config.batch_size,
            config.seed,
        )
    )


@pytest.fixture(scope="module")
def some_digits(digits):
    """As few as give three steps an epoch, the last of them with fewer images."""
    halves = []
    for split, n in ((digits.train, 250), (digits.val, 50)):
        halves.append(ImageSplit(split.images[:n], split.labels[:n]))
    return replace(digits, train=halves[0], val=halves[1])


@pytest.mark.parametrize("reshuffle", [False, True], ids=["as stored", "reshuffled"])
def test_the_plain_loop_gives_the_losses_of_the_trainer(
    tmp_path, monkeypatch, some_digits, reshuffle
):
    recipe = replace(source2012, name="either", reshuffle=reshuffle)
    monkeypatch.setitem(RECIPES, "either", recipe)
    config = resolve(
        Config(
            recipe="either",
            epochs=2,
            batch_size=100,
            width_mult=1 / 16,
            precision="float64",
            seed=int(torch.randint(2**31, ())),
        )
    )
    trainer = Trainer(tmp_path, config, some_digits, None)
    train_loop(trainer, 2 * trainer.steps_per_epoch)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "train"]
    found = torch.tensor(plain_losses(config, some_digits, 2), dtype=torch.float64)
    expected = torch.tensor([row["loss"] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


def test_a_schedule_that_needs_validation_is_refused(digits):
    with pytest.raises(ValueError, match=r"recipe: got paper, .* use source2012"):
        next(train_on_images(paper, *[None] * 4))


def test_a_step_takes_any_model():
    """And equals the momentum rule of torch, written out, on the second step."""
    torch.manual_seed(int(torch.randint(2**31, ())))
    model = torch.nn.Linear(5, 3).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = torch.randn(4, 5, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    weight = model.weight.detach().clone()
    velocity = torch.zeros_like(weight)
    for _ in range(2):
        probabilities = model(images).softmax(1).detach()
        error = probabilities - torch.nn.functional.one_hot(labels, 3)
        expected = -probabilities.log()[range(4), labels].mean()
        velocity = 0.9 * velocity + error.T @ images / 4
        weight = weight - 0.1 * velocity
        loss, logits = train_step(model, optimizer, images, labels)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(model.weight.detach(), weight)
        assert not loss.requires_grad
        assert not logits.requires_grad


@pytest.mark.parametrize("name", ["paper", "source2012"])
def test_a_compiled_network_has_the_same_gradients(name):
    """Recorded as one graph, for the paper's layers and for those of the released code.

    torch 2.11 gave conv1 and conv2 gradients of zero behind a normalization that had
    a gradient of its own.
    """
    recipe = scale_width(RECIPES[name], 1 / 8, 96)
    model = AlexNet(recipe, 10).double().train()
    images, labels = torch.randn(4, 3, 96, 96).double() * 60, torch.arange(4)
    masks = dropout_masks(recipe, 4, 0, 0)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    gradients = []
    for network in (model, compiled):
        model.zero_grad()
        loss, _ = classification_loss(network, images, labels, masks)
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for eager, found in zip(*gradients, strict=True):
        assert eager.abs().max() > 0
        torch.testing.assert_close(found, eager, rtol=1e-9, atol=1e-12)
