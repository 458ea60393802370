"""How many updates a fresh net stays at the loss of a guess.

    python plateau.py FOLDER RESULTS [minutes]

FOLDER: an image folder of CIFAR-10 (train/CLASS/…, val/CLASS/…), or cifar10. RESULTS: the folder with protocol.md.
"""
import math
import os
import sys
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import torch
from torch.nn import functional as F

from alexnet_nb.augmentation import Input, draw_epoch
from alexnet_nb.dropout import dropout_masks
from alexnet_nb.learning import rates_at, reduced, set_rates, sgd
from alexnet_nb.model import AlexNet, initial_weights
from alexnet_nb.preprocessing import prepare
from alexnet_nb.recipes import paper
from alexnet_nb.training import pictures

from cifar import record, run

FACTORS = dict(deviation=(0.01, 0.03), bias=(0.0, 0.1, 1.0), divide=(1.0, 58.0), lr=(0.005, 0.01, 0.02), seed=range(4))
UPDATES, WINDOW, BELOW, BATCH = 500, 20, 0.3, 128


def recipe(deviation, bias, divide, lr):
    "The paper's net at an eighth of its width, with these deviations, biases, pixels and rate."
    whole = replace(paper, init_std=(0.01, 0.01, deviation, deviation, deviation, 0.01, 0.01, 0.01), scale=(divide,) * 3,
                    init_bias=(0.0, bias, 0.0, bias, bias, bias, bias, 0.0), lr=lr, lr_bias=2 * lr)
    return reduced(whole, 1 / 8, 64)


@cache
def packed(folder): return prepare(folder, 72)


def train(folder, deviation, bias, divide, lr, seed):
    "Spread of the logits before the first update, and the loss of every update until the plateau is left."
    torch.set_num_threads(1)
    data, r = packed(folder), recipe(deviation, bias, divide, lr)
    model = AlexNet(r, 10)
    model.load_state_dict(initial_weights(r, 10, seed))
    optimizer, see = sgd(model.train(), r), Input(r, data.mean, data.cov)
    set_rates(optimizer, rates_at(r, 0.0))
    draws, losses = draw_epoch(len(data.train), see.border, r, seed, 0), []
    with torch.no_grad(): spread = model.eval()(see.views(pictures(data.train, slice(0, BATCH)), 1)[0]).std(0).mean().item()
    model.train()
    for step in range(UPDATES):
        rows = slice(step * BATCH % (len(data.train) - BATCH), step * BATCH % (len(data.train) - BATCH) + BATCH)
        x, y = see.train(pictures(data.train, rows), draws[rows]), torch.tensor(data.train.labels[rows])
        loss = F.cross_entropy(model(x, dropout_masks(r, len(x), seed, step)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 4))
        if not math.isfinite(losses[-1]): break
        if len(losses) >= WINDOW and sum(losses[-WINDOW:]) / WINDOW < math.log(10) - BELOW: break
    return dict(spread=spread, losses=[x if math.isfinite(x) else None for x in losses])


def length(losses):
    "Updates on the plateau, and whether the run left it."
    left = None not in losses and sum(losses[-WINDOW:]) / WINDOW < math.log(10) - BELOW
    return (len(losses) if left else UPDATES), left


def jobs(): return [dict(zip(FACTORS, values)) for values in product(*FACTORS.values())]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = Path(sys.argv[2])
    record(results, "python nbs/experiments/plateau.py cifar10 results/plateau")
    run(jobs(), sys.argv[1], results, float((sys.argv[3:] or ["inf"])[0]), train)
