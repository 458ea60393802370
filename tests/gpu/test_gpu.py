"""On a GPU, where there is one: what the processor computes, and the same again."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from alexnet_nb.dropout import dropout_masks
from alexnet_nb.learning import make_optimizer, scale_width
from alexnet_nb.lrn import lrn
from alexnet_nb.model import AlexNet, initial_weights
from alexnet_nb.recipes import RECIPES
from alexnet_nb.training import classification_loss, train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_response_normalization(layout):
    """Value and gradient, in float64; on the processor they come from other code."""
    x, g = (
        torch.randn(3, 32, 9, 11, dtype=torch.float64).contiguous(
            memory_format=LAYOUTS[layout]
        )
        * s
        for s in (30, 1)
    )
    found = []
    for device in ("cpu", "cuda"):
        here = x.to(device).requires_grad_()
        y = lrn(here, columns=2)
        found.append(
            [t.cpu() for t in (y.detach(), *torch.autograd.grad(y, here, g.to(device)))]
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["paper", "source2012", "caffe", "torchvision"])
def test_net(name):
    """Loss and every gradient of a training step with its dropout, in float64."""
    recipe, found = scale_width(RECIPES[name], 1 / 8, 96), []
    x, y, weights = (
        torch.randn(4, 3, 96, 96, dtype=torch.float64) * 60,
        torch.randint(10, (4,)),
        initial_weights(recipe, 10, 0),
    )
    for device in ("cpu", "cuda"):
        model = AlexNet(recipe, 10)
        model.load_state_dict(weights)
        model.to(device, torch.float64).train()
        masks = dropout_masks(recipe, 4, 0, 0, device=device)
        loss, _ = train_step(
            model,
            make_optimizer(model, recipe),
            x.to(device),
            y.to(device),
            partial(classification_loss, masks=masks),
        )
        found.append([loss.item(), *(p.grad.cpu() for p in model.parameters())])
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for a, b in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-8, atol=1e-12 + 1e-9 * a.abs().max().item()
        )


@pytest.fixture
def trained(tmp_path):
    """Train digits for an epoch in a folder of that name.

    What was printed, and the losses of all steps and of the validation.
    """

    def run(name, hidden=False, **settings):
        settings = dict(epochs=1, out_dir=str(tmp_path / name)) | settings
        code = (
            "from alexnet_nb.engine.config import Config\n"
            "from alexnet_nb.engine.launch import train\n"
            f"train(Config(**{settings!r}))"
        )
        env = os.environ | (dict(CUDA_VISIBLE_DEVICES="") if hidden else {})
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]

    return run


def test_run_follows_that_of_the_processor(trained, tmp_path):
    """In float64; with gpus=2 one device holds both columns, and says so."""
    (_, here), (_, there) = (
        trained("gpu", gpus=2, precision="float64"),
        trained("cpu", hidden=True, precision="float64"),
    )
    said = json.loads((tmp_path / "gpu/env.json").read_text())["layout"]
    if torch.cuda.device_count() == 1:
        assert said == "1 CUDA device: both columns in one process on one of them"
    assert len(here) == len(there) > 10
    assert here == pytest.approx(there, rel=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_run_repeats_itself(trained, precision):
    first, again = (
        trained(name, precision=precision)[1] for name in ("first", "again")
    )
    assert first == again


def test_dry_run_goes_on_from_its_checkpoint(trained):
    assert "resumed at step 2" in trained("dry", dry_run=True)[0]
