"""A file of weights, or a run, says what it is wherever it goes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torchvision.models
from safetensors.torch import load_file, save_file

from alexnet_nb.evaluation import load_model
from alexnet_nb.recipes import paper, source2012
from alexnet_nb.weights import (
    build_model,
    build_transform,
    make_metadata,
    newest_weights,
    read_metadata,
    read_weights,
    recipe_from_json,
)
from helpers.runs import begin, fit_one

IMAGENET_MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])
IMAGENET_STD = 255 * torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One epoch of digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    folder.mkdir()
    fit_one(folder)
    return folder


def test_the_file_of_a_run_is_enough(run, tmp_path, digits):
    """Alone in another folder it has names, mean image, recipe and weights."""
    path = tmp_path / "given away.safetensors"
    shutil.copy(run / "model.safetensors", path)
    weights = read_weights(path)
    assert weights.names == tuple(digits.names)
    assert weights.image_size == 72
    assert weights.source == str(path)
    np.testing.assert_array_equal(weights.mean, digits.mean)
    np.testing.assert_array_equal(weights.cov, digits.cov)
    model = build_model(weights)
    expected = load_file(run / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert model.recipe.kernels[0] == 6
    assert not model.training
    facts = read_metadata(path)["facts"]
    assert facts["step"] == 12
    assert facts["data"] == "digits"


def test_an_interrupted_run_has_the_weights_of_its_last_checkpoint(run, tmp_path):
    """Before its end, and again where it has gone on since."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert newest_weights(folder) == folder / "model.safetensors"
    newer = folder / "checkpoints/step-0000024"
    shutil.copytree(folder / "checkpoints/step-0000012", newer)
    assert newest_weights(folder) == newer / "weights.safetensors"
    (folder / "model.safetensors").unlink()
    assert newest_weights(folder) == newer / "weights.safetensors"
    weights = read_weights(folder)
    assert len(weights.names) == 10
    load_model(folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(FileNotFoundError, match="saved at least once"):
        read_weights(folder)


def test_a_file_of_an_earlier_version_has_a_folder_that_knows_the_rest(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    save_file(load_file(run / "model.safetensors"), folder / "model.safetensors")
    weights, today = read_weights(folder), read_weights(run)
    assert weights.recipe == today.recipe
    assert weights.names == today.names
    np.testing.assert_array_equal(weights.mean, today.mean)
    (folder / "stats.npz").unlink()
    with pytest.raises(ValueError, match="the whole folder of the run"):
        read_weights(folder)


def test_the_name_of_a_run_is_found_in_runs(run, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    (run.parent.parent / "runs").unlink(missing_ok=True)
    (run.parent.parent / "runs").symlink_to(run.parent)
    assert read_weights("digits").names == read_weights(run).names


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_of_torchvision_sees_what_torchvision_sees(tmp_path, suffix):
    """The same logits, from the same pixels; classes have no names."""
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(num_classes=7).eval()
    path = tmp_path / f"alexnet{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(theirs.state_dict(), path)
    weights = read_weights(path)
    assert weights.names == tuple("0123456")
    images = torch.randint(256, (2, 3, 256, 256), dtype=torch.uint8)
    crop = images[:, :, 16:240, 16:240]
    mean, std = IMAGENET_MEAN[:, None, None], IMAGENET_STD[:, None, None]
    expected = theirs((crop - mean) / std)
    found = build_model(weights)(build_transform(weights).test_crops(images, 1)[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_thousand_classes_of_torchvision_have_the_names_of_imagenet(tmp_path):
    torch.save(torchvision.models.alexnet().state_dict(), tmp_path / "a.pth")
    names = read_weights(tmp_path / "a.pth").names
    assert len(names) == 1000
    assert names[0] == "tench"


def test_what_is_no_weights_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights: got .*nothing.pth"):
        read_weights(tmp_path / "nothing.pth")
    path = tmp_path / "resnet.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), path)
    with pytest.raises(ValueError, match="expected a file that a run has written"):
        read_weights(path)
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="torch cannot read") as refused:
        read_weights(path)
    assert "weights_only" not in str(refused.value)  # torch names a way to run its code
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="got a list"):
        read_weights(path)
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="damaged"):
        read_weights(tmp_path / "cut.safetensors")


def test_a_recipe_of_an_earlier_version_gets_the_fields_that_came_later():
    recipe = replace(source2012, kernels=(8, 8, 8, 8, 8))
    metadata = make_metadata(recipe, "ab", np.zeros((3, 9, 9)), 0)
    stored = json.loads(metadata["alexnet_nb"])["recipe"]
    assert recipe_from_json(stored) == recipe
    del stored["crop_chunk"]
    assert recipe_from_json(stored) == replace(recipe, crop_chunk=paper.crop_chunk)


def test_a_checkpoint_alone_is_enough(tmp_path, digits):
    """Its file of weights says what it is, as that of the end does."""
    from alexnet_nb.engine.checkpoint import save_checkpoint

    trainer = begin(tmp_path / "run", digits)
    trainer.step = 3
    save_checkpoint(trainer)
    path = tmp_path / "run/checkpoints/step-0000003/weights.safetensors"
    weights = read_weights(shutil.copy(path, tmp_path / "alone.safetensors"))
    assert weights.names == tuple(digits.names)
    assert weights.recipe == trainer.recipe


def test_equal_weights_are_equal_files(tmp_path, digits):
    """Their headers, too, in processes that hash texts differently."""
    script = (
        "import sys, torch, numpy as np;"
        "from alexnet_nb.recipes import paper;"
        "from alexnet_nb.weights import make_metadata;"
        "from alexnet_nb.engine.checkpoint import write_tensors;"
        "from pathlib import Path;"
        "said = make_metadata(paper, 'ab', np.zeros((3, 9, 9)), 0, step=1, seed=2);"
        "tensors = {n: torch.ones(2) for n in 'abcdef'};"
        "write_tensors(Path(sys.argv[1]), tensors, said)"
    )
    files = set()
    for seed in "123":
        path = tmp_path / seed
        env = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script, path], check=True, env=env)
        files.add(path.read_bytes())
    assert len(files) == 1


def test_a_field_of_another_version_is_named():
    stored = json.loads(json.dumps(asdict(paper)))
    with pytest.raises(ValueError, match="got a recipe with the fields later"):
        recipe_from_json(stored | {"later": 10})
    stored["views"] = stored.pop("test_crops")  # as it was called at first
    assert recipe_from_json(stored) == paper
