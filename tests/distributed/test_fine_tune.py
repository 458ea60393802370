"""A run from trained weights is the same run in one process and in several."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.config import Config
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.launch import train
from alexnet_nb.engine.loop import run_training
from alexnet_nb.engine.run_dir import open_run, validate
from alexnet_nb.engine.trainer import Trainer

pytestmark = pytest.mark.distributed


def write_digits(folder, first, last, n):
    """Some of the digits as an image folder, a class for each of their values."""
    digits = load_digits()
    for label in range(first, last + 1):
        images = digits.images[digits.target == label][:n]
        for i, pixels in enumerate(images):
            path = folder / ("val" if i % 4 == 0 else "train") / str(label)
            path.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((pixels * 15).astype(np.uint8))
            image.resize((72, 72), Image.Resampling.BILINEAR).save(path / f"{i}.png")
    return folder


def fit_here(config):
    """Train a run of one process in this one; return its folder."""
    config = validate(config)
    run_dir = open_run(config, plan_placement(1, num_devices=0))
    run_config = run_dir.config()
    data = load_dataset(config.data, run_config.image_size)
    run_training(Trainer(run_dir.path, run_config, data, None))
    run_dir.close()
    return run_dir.path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run on the digits 0 to 4, and photographs of the digits 5 to 7."""
    folder = tmp_path_factory.mktemp("fine-tune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET_NB_CACHE", str(folder / "cache"))
        sizes = dict(width_mult=1 / 16, image_size=72, crop_size=64)
        settings = dict(batch_size=32, epochs=2, precision="float64")
        data = write_digits(folder / "first", 0, 4, 40)
        out = str(folder / "weights")
        fit_here(Config(data=str(data), out_dir=out, **sizes, **settings))
        write_digits(folder / "other", 5, 7, 32)
        yield folder


def fine_tune(home, name, **settings):
    """Fine-tune the run on the other digits; return the folder of the new run."""
    settings = dict(batch_size=24, epochs=2, precision="float64") | settings
    config = Config(
        data=str(home / "other"),
        weights=str(home / "weights"),
        out_dir=str(home / name),
        **settings,
    )
    return fit_here(config) if config.gpus == 1 else train(config)


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


@pytest.fixture(scope="module")
def one(home):
    """Runs in one process, by the first layer that they train."""
    return {
        layer: fine_tune(home, f"one-{layer}", train_from=layer)
        for layer in ("fc6", "fc8")
    }


@pytest.mark.parametrize(
    ("settings", "train_from"),
    [
        (dict(gpus=2), "fc6"),
        (dict(gpus=2), "fc8"),  # column 1 has nothing to train
        (dict(gpus=2, data_parallel=True), "fc6"),
        (dict(gpus=4), "fc8"),
    ],
    ids=str,
)
def test_several_processes_fine_tune_as_one_does(home, one, settings, train_from):
    """Every loss, and every weight at the end; frozen ones are those of the start."""
    name = f"{'-'.join(map(str, settings.values()))}-{train_from}"
    many = fine_tune(home, name, train_from=train_from, **settings)
    expected = losses(one[train_from])
    assert len(expected) == 2 * 3 + 2
    assert abs(losses(many) - expected).max() <= 1e-10
    start = load_file(home / "weights/model.safetensors")
    weights = load_file(many / "model.safetensors")
    for key, tensor in load_file(one[train_from] / "model.safetensors").items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-9, atol=1e-11)
        is_frozen = key < train_from  # "conv5.weight" < "fc6"
        assert torch.equal(weights[key], start[key]) == is_frozen, key


def test_one_column_each_may_resume_a_run_of_one_process(home, one, monkeypatch):
    """Resumed before its last step, with the other number of processes."""
    monkeypatch.setenv("ALEXNET_NB_SAVE", "0")
    folder = fine_tune(home, "half", train_from="fc6")
    checkpoints = sorted((folder / "checkpoints").iterdir())
    assert [p.name for p in checkpoints] == ["step-0000005", "step-0000006"]
    (folder / "model.safetensors").unlink()
    for path in sorted(checkpoints[-1].iterdir()):
        path.unlink()
    checkpoints[-1].rmdir()
    resumed = fine_tune(home, "half", train_from="fc6", gpus=2, resume=True)
    assert abs(losses(resumed) - losses(one["fc6"])).max() <= 1e-10


def test_a_dry_run_from_weights(home, capfd):
    folder = fine_tune(home, "dry", gpus=2, dry_run=True, train_from="fc8")
    said = capfd.readouterr().out
    assert "and every gradient" in said
    assert f"starts from {home}/weights/model.safetensors; fc8 is new; frozen: " in said
    assert "resumed at step 2" in said
    assert len(losses(folder)) == 3 + 1
