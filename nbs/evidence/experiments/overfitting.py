"""Train a small AlexNet with both augmentation and dropout, and with neither.

    python overfitting.py FLOWERS RESULTS [minutes]

FLOWERS: the image folder flowers5 (train/CLASS/…, val/CLASS/…); RESULTS:
results/overfitting, with its protocol.md. Jobs whose rows are in RESULTS/metrics.jsonl
are not run again.
"""

import math
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import cifar
import intervals
import numpy as np
import torch
from torch.nn import functional as F

from alexnet_nb.augmentation import (
    AugmentParams,
    InputTransform,
    sample_augment_params,
)
from alexnet_nb.base.rng import make_generator
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.dropout import dropout_masks
from alexnet_nb.learning import make_optimizer, scale_width, set_learning_rates
from alexnet_nb.model import AlexNet
from alexnet_nb.recipes import source2012
from alexnet_nb.training import train_step

IMAGE_SIZE, CROP = 72, 63  # a crop keeps 7/8 of the side, as 224 of 256 does
EPOCHS, DROP, BATCH, LR = 48, 36, 32, 0.003
SEED = 100
EVERY = 3  # epochs between two measurements
ARMS = {
    "neither": dict(augment=False, dropout=False),
    "both": dict(augment=True, dropout=True),
}


def recipe_for(augment, dropout):
    """Return the released recipe at a quarter of the width, with these ingredients."""
    recipe = scale_width(source2012, 0.25, CROP)
    return replace(
        recipe,
        crop_chunk=1,  # a crop of its own for each image
        color_std=recipe.color_std if augment else 0.0,
        color_divide=recipe.color_divide if augment else 1.0,
        dropout=recipe.dropout if dropout else 0.0,
    )


def center_params(n, max_offset):
    """Return the choices of no augmentation: the central crop, not flipped."""
    offsets = torch.full((n, 2), max_offset // 2)
    return AugmentParams(offsets, torch.zeros(n, dtype=torch.bool), torch.zeros(n, 3))


@torch.no_grad()
def evaluate(model, images, labels):
    """Return loss and error on central crops, with all units active."""
    model.eval()
    logits = torch.cat([model(part) for part in images.split(225)])
    model.train()
    wrong = (logits.argmax(1) != labels).float().mean().item()
    return round(F.cross_entropy(logits, labels).item(), 4), round(wrong, 6)


def masked_loss(model, images, labels, masks):
    """Return loss and logits; `masks` are what dropout keeps, or None."""
    logits = model(images, masks)
    return F.cross_entropy(logits, labels), logits


def train(folder, augment, dropout, seed, epochs=EPOCHS, drop=DROP, lr=LR):
    """Train; list epoch, training loss and error, validation loss and error."""
    torch.set_num_threads(1)
    data = load_dataset(str(folder), IMAGE_SIZE)
    recipe = recipe_for(augment, dropout)
    transform = InputTransform(recipe, data.mean, data.cov)
    stored, labels = (torch.tensor(a) for a in (data.train.images, data.train.labels))
    n = len(stored)
    some = torch.arange(0, n, n // 450)[:450]  # of all classes
    known = transform.test_crops(stored[some], 1)[0], labels[some]
    val_labels = torch.tensor(data.val.labels)
    unknown = transform.test_crops(torch.tensor(data.val.images), 1)[0], val_labels

    torch.manual_seed(seed)
    model = AlexNet(recipe, num_classes=5)
    optimizer = make_optimizer(model, recipe)
    rows = [(0, *evaluate(model, *known), *evaluate(model, *unknown))]
    params = center_params(n, transform.max_offset)
    for epoch in range(epochs):
        rate = lr if epoch < drop else lr / 10
        rates = dict(conv1=rate, weights=rate, conv1_bias=2 * rate, biases=2 * rate)
        set_learning_rates(optimizer, rates)
        order = torch.randperm(n, generator=make_generator(seed, epoch))
        if augment:
            params = sample_augment_params(n, transform.max_offset, recipe, seed, epoch)
        for i, batch in enumerate(order.split(BATCH)):
            images = transform.train(stored[batch], params[batch], augment)
            step = epoch * math.ceil(n / BATCH) + i
            masks = None
            if dropout:
                masks = dropout_masks(recipe, len(images), seed, step)
            compute_loss = partial(masked_loss, masks=masks)
            train_step(model, optimizer, images, labels[batch], compute_loss)
        if (epoch + 1) % EVERY == 0:
            metrics = (*evaluate(model, *known), *evaluate(model, *unknown))
            rows.append((epoch + 1, *metrics))
    return dict(rows=rows)


def jobs():
    return [dict(**arm, seed=SEED) for arm in ARMS.values()]


def curve(results, name):
    """Return the rows of an arm: epoch, training loss and error, the same of val."""
    for line in cifar.lines(results):
        if line["job"] == dict(**ARMS[name], seed=SEED):
            return np.array(line["rows"])
    raise ValueError(f"name: got {name}, expected an arm that was run; run it first")


METRICS = ("training loss", "training error", "validation loss", "validation error")


def summarize(results):
    """List the numbers at the end of each run."""
    return [
        intervals.row(f"{name}: {metric}", float(curve(results, name)[-1, i]), n="1")
        for name in ARMS
        for i, metric in enumerate(METRICS, 1)
    ]


def main(flowers, results, minutes):
    cifar.PROCESSES = 1  # the record of the machine counts them
    command = "python nbs/evidence/experiments/overfitting.py flowers5"
    cifar.record(results, f"{command} results/overfitting")
    load_dataset(str(flowers), IMAGE_SIZE)  # packs the photographs, once
    if cifar.run(jobs(), str(flowers), results, minutes, train):
        intervals.write(results / "summary.tsv", summarize(results))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(*map(Path, sys.argv[1:3]), float((sys.argv[3:] or ["inf"])[0]))
