"""Train a tiny network in two processes on one device, then in one process.

Run by torchrun, with the arguments DEVICE DATA_PARALLEL STEPS PRECISION: cpu or
cuda:0, 0 or 1. First, both check that they agree on a batch, as a run does.
The processes meet over gloo, which two processes on one GPU can use and NCCL cannot.
Prints the largest difference of a weight as a share of its tensor's largest, and of a
loss.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from alexnet_nb.augmentation import sample_augment_params
from alexnet_nb.data.packed import ImageSplit, PackedDataset
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import init_distributed
from alexnet_nb.engine.loop import begin_epoch, verify_processes
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.multigpu import gather_state_dict
from alexnet_nb.preprocessing import pixel_statistics


def pictures(n):
    """Random images of ten classes, the same in every process."""
    rng = np.random.default_rng(2012)
    images = rng.integers(0, 256, (n, 3, 72, 72), np.uint8)
    split = ImageSplit(images, rng.integers(0, 10, n))
    statistics = pixel_statistics(images)
    return PackedDataset(Path("."), split, split, tuple("0123456789"), *statistics, {})


def train(mesh, device, data_parallel, steps, precision):
    """Take so many training steps; return all weights, and the losses."""
    config = Config(
        gpus=1 if mesh is None else 2,
        data_parallel=data_parallel,
        data="random",
        recipe="source2012",
        width_mult=1 / 16,
        image_size=72,
        crop_size=64,
        batch_size=8,
        precision=precision,
        dry_run=True,  # compares every gradient, too
    )
    folder = tempfile.mkdtemp()
    trainer = Trainer(Path(folder), resolve(config), pictures(64), mesh, device)
    if mesh is not None:
        verify_processes(trainer)
    begin_epoch(trainer, 0)
    offset = trainer.transform.max_offset
    where = trainer.params_device
    params = sample_augment_params(64, offset, trainer.recipe, 0, 0, where)
    for step in range(steps):
        stored = trainer.load_batch(None, params, step)
        trainer.train_step(*trainer.to_network_input(stored, color_noise=True))
    losses = [loss for loss, _, _ in trainer.read_metrics()]
    return gather_state_dict(trainer.model.state_dict(), trainer.column), losses


def main():
    device, data_parallel = sys.argv[1], sys.argv[2] == "1"
    settings = (data_parallel, int(sys.argv[3]), sys.argv[4])
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False  # as in a run whose precision is float32
    mesh = init_distributed(2, data_parallel, "cpu")  # which is gloo
    many, losses = train(mesh, device, *settings)
    if dist.get_rank() == 0:
        one, expected = train(None, device, *settings)
        gaps = {"loss": max(abs(a - b) for a, b in zip(losses, expected, strict=True))}
        for name, weights in one.items():
            difference = (many[name].to(weights) - weights).abs().max()
            gaps[name] = (difference / weights.abs().max()).item()
        print(json.dumps(gaps) + "\n", end="", flush=True)
    dist.barrier()
    os._exit(0)  # as the package's workers end


if __name__ == "__main__":
    main()
