"""Batches cross to a device whole, in order, and equal to what is stored."""

from functools import partial

import numpy as np
import pytest
import torch

from alexnet_nb.augmentation import sample_augment_params
from alexnet_nb.data.packed import ImageSplit, verify
from alexnet_nb.engine import loader
from alexnet_nb.engine.loader import StagingBuffers, prefetch, read_images_into
from helpers import ROOT
from helpers.runs import begin

ROWS = [slice(3, 8), np.array([6, 2, 2, 9]), slice(0, 0)]


@pytest.fixture
def split():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (10, 3, 8, 8), np.uint8)
    return ImageSplit(images, np.arange(10))


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("large", [2**26, 0], ids=["one thread", "four threads"])
def test_images_are_read_into_a_buffer(split, rows, large, monkeypatch):
    monkeypatch.setattr(loader, "_LARGE", large)
    expected = split.images[rows]
    buffer = torch.full(expected.shape, 7, dtype=torch.uint8)
    read_images_into(buffer, split, rows)
    assert np.array_equal(buffer.numpy(), expected)


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_jpegs_are_decoded_into_a_buffer(rows):
    images = verify(ROOT / "tests/fixtures/0.1.0/packed-jpeg").train
    expected = images.images[rows]
    buffer = torch.full(expected.shape, 7, dtype=torch.uint8)
    read_images_into(buffer, images, rows)
    assert np.array_equal(buffer.numpy(), expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_slot_is_not_filled_again_before_it_was_used(split, threads):
    """Whatever the number of threads, every batch holds its own images.

    There is one slot more than threads; one less, and a batch is overwritten while it
    is in use.
    """
    staging = StagingBuffers(threads + 1, 2, 8, torch.device("cpu"))

    def send(number):
        return staging.send(number, split, slice(number % 5 * 2, number % 5 * 2 + 2))

    for number, batch in enumerate(prefetch(send, range(100), threads)):
        images, labels, slot = batch
        staging.wait(slot)
        first = number % 5 * 2
        assert labels.tolist() == [first, first + 1]
        assert np.array_equal(images.numpy(), split.images[first : first + 2])
        staging.release(slot)


@pytest.mark.parametrize("recipe", ["paper", "source2012", "caffe"])
def test_input_made_on_the_device_equals_that_of_the_processor(
    tmp_path, digits, recipe
):
    """The way of a GPU, taken by the CPU: whole images cross, and are cropped there."""
    batches = {}
    for on_device in (False, True):
        trainer = begin(tmp_path / str(on_device), digits, recipe=recipe)
        if on_device:
            trainer.transform.crops_on_device = True
            trainer.make_buffers()
        n, max_offset = len(digits.train), trainer.transform.max_offset
        params = sample_augment_params(n, max_offset, trainer.recipe, 3, 5)
        load = partial(trainer.load_batch, None, params)
        made = []
        threads = trainer.prefetch_threads
        for batch in prefetch(load, range(trainer.steps_per_epoch), threads):
            images, labels = trainer.to_network_input(batch, color_noise=True)
            made.append((images.clone(), labels.clone()))
        batches[on_device] = made
    assert len(batches[True]) == trainer.steps_per_epoch
    for expected, found in zip(batches[False], batches[True], strict=True):
        assert torch.equal(expected[0], found[0])
        assert torch.equal(expected[1], found[1])
