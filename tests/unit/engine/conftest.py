"""Small runs on textures, one that learns and one that does not."""

import matplotlib.pyplot as plt
import pytest
import torch

from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import plan_placement
from alexnet_nb.engine.loop import run_training
from alexnet_nb.engine.report import summarize
from alexnet_nb.engine.run_dir import open_run
from alexnet_nb.engine.trainer import Trainer
from helpers.packing import pack_folder
from helpers.textures import texture_folder

SMALL = dict(image_size=72, crop_size=64, width_mult=1 / 16, batch_size=16)


def train_here(folder, data, **settings):
    """Train a run in this process."""
    config = Config(out_dir=str(folder), data="textures", **SMALL | settings)
    open_run(config, plan_placement(1, num_devices=0)).close()
    run_training(Trainer(folder, resolve(config), data, None))
    return folder


@pytest.fixture(scope="session")
def textures(tmp_path_factory):
    """Five classes of textures, packed: 300 training images, 80 for validation."""
    folder = tmp_path_factory.mktemp("textures")
    texture_folder(folder / "images/train", count=60)
    texture_folder(folder / "images/val", count=16, seed=1)
    return pack_folder(
        folder / "images", folder / "packed", 72, progress=lambda line: None
    )


@pytest.fixture(scope="session")
def runs(tmp_path_factory, textures):
    """A folder of runs: `learned`, and `dead`, whose learning rate is next to 0.

    In one thread: two would wait for each other where other tests use the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    train_here(folder / "learned", textures, epochs=6)
    train_here(folder / "dead", textures, epochs=1, lr=1e-6)
    torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="session")
def summaries(runs, textures):
    """The summary of each run."""
    return {name: summarize(runs / name, textures) for name in ("learned", "dead")}


@pytest.fixture
def style():
    """The figures of the package, closed at the end."""
    with plt.style.context("alexnet_nb.figures"):
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def one_thread():
    """Checkpoints wherever they may be; and no more threads than a small net needs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET_NB_SAVE", "0")
        yield
    torch.set_num_threads(threads)
