"""Train nets in two processes of one column each, then in one process.

Prints for every net and tensor the largest difference as a share of its largest number
(in float32, the mean difference as a share of the mean size). Run by torchrun; each
argument is a net: RECIPE:WIDTH:CROP:CLASSES:BATCH:STEPS:PRECISION:FAULT.
"""

import json
import os
import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from alexnet_nb import model as model_module
from alexnet_nb.augmentation import InputTransform, sample_augment_params
from alexnet_nb.dropout import dropout_masks
from alexnet_nb.engine.distributed import init_process_group
from alexnet_nb.learning import (
    learning_rates,
    make_optimizer,
    scale_width,
    set_learning_rates,
)
from alexnet_nb.model import AlexNet, initial_weights
from alexnet_nb.multigpu import bytes_sent, exchange_with_peer, gather_state_dict
from alexnet_nb.preprocessing import pixel_statistics
from alexnet_nb.recipes import RECIPES
from alexnet_nb.training import classification_loss, train_step


def gather_without_gradient(x, column):
    other = exchange_with_peer(x.detach())
    return torch.cat((x, other) if column == 0 else (other, x), 1)


def column_loss(model, images, labels, masks, fault):
    """Return the loss of a column, and its logits.

    Column 1 has no loss, and its sum carries its gradient.
    """
    if model.column == 1:
        logits = model(images, masks)
        loss = logits.sum()
    else:
        loss, logits = classification_loss(model, images, labels, masks)
    if fault == "loss":
        loss = 2 * loss
    return loss, logits


def run(recipe, column, fault, dtype, num_classes, batch, steps, seed):
    """Logits and gradients of the first step, and the weights after the last.

    Of this process's share.
    """
    torch.manual_seed(seed)
    size = recipe.crop + 8
    images = torch.randint(0, 256, (batch * steps, 3, size, size), dtype=torch.uint8)
    labels = torch.randint(0, num_classes, (batch * steps,))
    see = InputTransform(recipe, *pixel_statistics(images.numpy()), dtype=dtype)
    net = AlexNet(recipe, num_classes, column)
    net.load_state_dict(initial_weights(recipe, num_classes, seed, column))
    net.to(dtype).train()
    optimizer, draws, found = (
        make_optimizer(net, recipe),
        sample_augment_params(len(images), see.max_offset, recipe, seed, 0),
        {},
    )
    for step in range(steps):
        rates = learning_rates(
            recipe, step / steps
        )  # the source's schedule drops, slows conv1 and freezes it on the way
        set_learning_rates(optimizer, rates)
        rows = slice(step * batch, (step + 1) * batch)
        masks = dropout_masks(recipe, batch, seed, step, column)
        if fault == "masks":
            masks = {name: torch.rand(m.shape) < 0.5 for name, m in masks.items()}
        x = see.train(images[rows], draws[rows], rates["color"])
        compute_loss = partial(column_loss, masks=masks, fault=fault)
        _, logits = train_step(net, optimizer, x, labels[rows], compute_loss)
        if step == 0:
            found |= {"logits": logits} if column != 1 else {}
            grads = gather_state_dict(
                {n: p.grad.clone() for n, p in net.named_parameters()}, column
            )
    weights = gather_state_dict(
        {n: p.detach() for n, p in net.named_parameters()}, column
    )
    return (
        found
        | {f"gradient of {n}": g for n, g in grads.items()}
        | {f"{n} at the end": w for n, w in weights.items()}
    )


def largest(difference, reference):
    return (difference.abs().max() / reference.abs().max()).item()


def mean(difference, reference):
    return (difference.abs().mean() / reference.abs().mean()).item()


def settings_of(case, seed):
    """What a case asks for: a recipe, a type, a fault, and numbers for `run`."""
    name, width, crop, classes, batch, steps, precision, fault = case.split(":")
    recipe = scale_width(RECIPES[name], float(width), int(crop))
    numbers = (int(classes), int(batch), int(steps), seed)
    return recipe, getattr(torch, precision), fault, numbers


def in_two_processes(case, seed, column):
    """What `run` finds in this process, and the bytes of a step that it sent."""
    recipe, dtype, fault, numbers = settings_of(case, seed)
    bytes_sent.clear()
    gather_columns = model_module.gather_columns
    if fault == "gather":
        model_module.gather_columns = gather_without_gradient
    found = run(recipe, column, fault, dtype, *numbers)
    model_module.gather_columns = gather_columns
    steps = numbers[2]
    ways = ("forward", "backward")
    return found, {f"bytes {way}": bytes_sent[way] // steps for way in ways}


def differences(case, seed, two):
    """How far each tensor is from that of one process."""
    recipe, dtype, fault, numbers = settings_of(case, seed)
    recipe = replace(recipe, lrn_across=fault == "lrn")
    one = run(recipe, None, "", dtype, *numbers)
    assert one.keys() == two.keys()
    gap = largest if dtype == torch.float64 else mean
    return {name: gap(two[name] - tensor, tensor) for name, tensor in one.items()}


cases = sys.argv[1:]
init_process_group(2, "gloo", timedelta(minutes=5))
seed = torch.tensor(torch.seed() % 2**31)
dist.broadcast(seed, src=0)  # fresh numbers in every test, the same in both processes
seed, column = seed.item(), dist.get_rank()
found = [in_two_processes(case, seed + i, column) for i, case in enumerate(cases)]
dist.destroy_process_group()
if column == 0:
    for i, case in enumerate(cases):
        two, sent = found[i]
        gaps = differences(case, seed + i, two)
        print(json.dumps(gaps | sent | {"case": case, "seed": seed + i}), flush=True)
os._exit(
    0
)  # as the package's workers end: gloo's threads now and then abort a normal exit
