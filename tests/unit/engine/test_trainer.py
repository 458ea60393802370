"""Batches are the same whatever their size, and come from threads that end."""

import os
import re
import threading

import numpy as np
import pytest
import torch

from alexnet_nb.augmentation import (
    InputTransform,
    sample_augment_params,
)
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.data.packed import ImageSplit
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import shard_batch
from alexnet_nb.engine.loader import load_images, prefetch
from alexnet_nb.engine.loop import train_loop
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.learning import learning_rates
from alexnet_nb.recipes import paper, torchvision


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return lambda **settings: Trainer(
        tmp_path_factory.mktemp("run"),
        resolve(Config(**settings)),
        load_dataset("digits", 72),
        None,
    )


@pytest.mark.parametrize("recipe", ["paper", "source2012", "torchvision"])
def test_batch_size_prefetch_and_resuming_change_nothing(trainer, recipe):
    def epoch(size, first=0, ahead=True):
        w = trainer(recipe=recipe, batch_size=size)
        draws, numbers = (
            sample_augment_params(
                len(w.data.train), w.transform.max_offset, w.recipe, 3, 5
            ),
            range(first, w.steps_per_epoch),
        )
        reads = (
            prefetch(lambda i: w.load_batch(None, draws, i), numbers)
            if ahead
            else (w.load_batch(None, draws, i) for i in numbers)
        )
        xs, ys = zip(*(w.to_network_input(read, True) for read in reads), strict=True)
        return torch.cat(xs), torch.cat(ys)

    x, y = epoch(128)
    assert len(x) == len(y) == 1437
    for other in (epoch(128, ahead=False), epoch(100), epoch(7)):
        assert torch.equal(other[0], x)
        assert torch.equal(other[1], y)
    late = epoch(128, first=4)
    assert torch.equal(late[0], x[4 * 128 :])
    assert torch.equal(late[1], y[4 * 128 :])


def test_no_thread_stays_after_an_error():
    before = threading.active_count()

    def broken(i):
        if i == 2:
            raise OSError("the disk is gone")
        return i

    seen = []
    batches = prefetch(broken, range(5))
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(batches)
    assert seen == [0, 1]
    assert threading.active_count() == before
    batches = prefetch(lambda i: i, range(5))
    assert next(batches) == 0
    batches.close()  # the reader stops early
    assert list(prefetch(lambda i: i, range(3, 6))) == [3, 4, 5]
    assert list(prefetch(lambda i: i, range(0))) == []
    assert threading.active_count() == before


def anonymous():
    return (
        int(re.search(r"RssAnon:\s+(\d+)", open("/proc/self/status").read())[1]) / 1e6
    )  # GB


def test_ten_gigabytes_stay_on_disk(tmp_path):
    """Every fifth batch of 10 GB of packed pictures takes next to no memory of its own.

    The file is sparse.
    """
    n = 51_000
    images = np.lib.format.open_memmap(
        tmp_path / "images.npy", "w+", np.uint8, (n, 3, 256, 256)
    )
    del images
    assert os.path.getsize(tmp_path / "images.npy") > 10e9
    split = ImageSplit(
        np.load(tmp_path / "images.npy", mmap_mode="r"), np.zeros(n, np.int64)
    )
    see, before = InputTransform(paper, np.zeros((3, 256, 256)), np.eye(3)), anonymous()
    draws, most = sample_augment_params(n, 32, paper, 0, 0), 0
    for i, squares in enumerate(
        prefetch(
            lambda i: see.crop(
                load_images(split, slice(i * 128, i * 128 + 128)),
                draws[i * 128 : i * 128 + 128],
            ),
            range(0, n // 128, 5),
        )
    ):
        if i % 20 == 0:
            see.normalize(squares, draws[i * 128 : i * 128 + 128])
        most = max(most, anonymous() - before)
    assert i == (n // 128 - 1) // 5
    assert most < 0.7


def test_torchvision_trains(trainer):
    """Three steps on digits: every weight moves, and the crops are of many sizes."""
    w = trainer(recipe="torchvision", batch_size=256, epochs=2)
    before = {name: p.detach().clone() for name, p in w.model.named_parameters()}
    w.run_dir.path.joinpath("checkpoints").mkdir(exist_ok=True)
    train_loop(w, 3)
    assert w.step == 3
    assert all(
        not torch.equal(before[name], p) for name, p in w.model.named_parameters()
    )
    draws = sample_augment_params(
        len(w.data.train), w.transform.max_offset, w.recipe, 0, 0
    )
    assert w.recipe.crop_rule == torchvision.crop_rule
    assert len({tuple(s) for s in draws.shapes.tolist()}) > 100


def test_a_first_step_that_overflows_changes_nothing(trainer):
    """In float16 it is left out; and the momentum is zero, not what memory held."""
    w = trainer(recipe="paper", width_mult=1 / 16, precision="float16")
    w.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    w.set_rates(learning_rates(w.recipe, 0))
    before = [p.detach().clone() for p in w.model.parameters()]
    images, labels = torch.randn(8, 3, 64, 64) * 60, torch.arange(8)
    w.step_on(images, labels, shard_batch(8))
    assert w.scaler.get_scale() == 2.0**59
    for parameter, value in zip(w.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        momentum = w.optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(momentum, torch.zeros_like(momentum))
