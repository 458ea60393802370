"""Train a tiny net in several processes that share the batch, then in one process.

Prints for every fault and tensor the largest difference as a share of its largest
number: weights and velocities after ten steps of the source's schedule on random
pictures, and the metrics. Run by torchrun; arguments:
TOGETHER:FAULT:PICTURES:BATCH:EPOCHS ….
"""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from alexnet_nb.data.packed import ImageSplit, PackedDataset
from alexnet_nb.dropout import dropout_masks
from alexnet_nb.engine import checkpoint, trainer
from alexnet_nb.engine.checkpoint import last_checkpoint
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.distributed import BatchShard, init_distributed, shard_batch
from alexnet_nb.engine.loop import run_training
from alexnet_nb.engine.run_dir import RunDir
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.multigpu import set_column_group
from alexnet_nb.preprocessing import pixel_statistics


def tell(found):
    print(
        json.dumps(found) + "\n", end="", flush=True
    )  # as one piece: the other processes write, too


def pictures(seed, n):
    g = torch.Generator().manual_seed(seed)
    halves = [
        (
            torch.randint(0, 256, (m, 3, 72, 72), dtype=torch.uint8, generator=g),
            torch.randint(0, 10, (m,), generator=g),
        )
        for m in (n, n - 3)
    ]
    train, val = (
        ImageSplit(images.numpy(), labels.numpy()) for images, labels in halves
    )
    return PackedDataset(
        Path("."), train, val, tuple("0123456789"), *pixel_statistics(train.images), {}
    )


def result(folder):
    """What a run has left behind, as tensors."""
    last = RunDir(folder).checkpoints()[-1]
    found = {
        f"{kind} {n}": t
        for kind in ("weights", "velocity")
        for n, t in load_file(last / f"{kind}.safetensors").items()
    }
    rows = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return found | {
        f"{split} {what}": torch.tensor(
            [r[what] for r in rows if r["split"] == split]
        ).double()
        for split in ("train", "val")
        for what in ("loss", "top1", "top5")
    }


def broken(fault):
    """Step into a mistake; returns the way back."""
    saved = {
        name: getattr(trainer, name) for name in ("shard_batch", "dropout_masks")
    } | {"wrap_ddp": Trainer.wrap_ddp}
    if fault == "unweighted":
        trainer.shard_batch = lambda *a: BatchShard(
            *(s := shard_batch(*a))[:2], float(s.weight > 0)
        )
    if fault == "masks":
        trainer.dropout_masks = lambda recipe, n, seed, step, column, device, rows: (
            dropout_masks(recipe, rows.stop - rows.start, seed, step, column, device)
        )
    if fault == "apart":
        Trainer.wrap_ddp = lambda self: None
    return lambda: [
        setattr(Trainer if name == "wrap_ddp" else trainer, name, f)
        for name, f in saved.items()
    ]


meshes = [
    init_distributed(int(os.environ["WORLD_SIZE"]), together, "cpu")
    for together in (False, True)
]
rank, shared = dist.get_rank(), [torch.seed() % 2**31, tempfile.mkdtemp()]
dist.broadcast_object_list(
    shared, src=0
)  # fresh numbers in every test, the same in all processes
seed, folder = shared[0], Path(shared[1])
for i, case in enumerate(sys.argv[1:]):
    together, fault, n, batch, epochs = case.split(":")
    mesh = meshes[int(together)]
    set_column_group(mesh["column"].get_group())
    data, runs = (
        pictures(seed, int(n)),
        [folder / f"{i}-{name}" for name in ("many", "one")],
    )
    for run in runs:
        run.mkdir(exist_ok=True)
    config = Config(
        data="random",
        width_mult=1 / 16,
        image_size=72,
        crop_size=64,
        epochs=int(epochs),
        batch_size=int(batch),
        seed=seed,
        precision="float64",
    )
    repair, before = broken(fault), '{"step": 7}\n'
    if rank == 0 and fault == "seed":
        (runs[0] / "metrics.jsonl").write_text(before)
    try:
        run_training(
            Trainer(
                runs[0],
                resolve(replace(config, seed=seed + (fault == "seed") * rank)),
                data,
                mesh,
            )
        )
    except RuntimeError as e:
        tell(
            {
                "error": str(e),
                "kept": rank > 0 or (runs[0] / "metrics.jsonl").read_text() == before,
            }
        )
    repair()
    if rank == 0 and fault != "seed":
        worker = Trainer(runs[1], resolve(config), data, None)
        run_training(worker)
        many, one = map(result, runs)
        assert many.keys() == one.keys()
        assert not worker.model.conv1.weight.requires_grad
        assert worker.step == 10
        tell(
            {"case": case, "seed": seed}
            | {
                name: (
                    (many[name] - one[name]).abs().max() / one[name].abs().max()
                ).item()
                for name in one
            }
        )
if rank == 1:
    checkpoint.checkpoints = lambda folder: []  # a disk that shows it late
tell(
    {
        "last": last_checkpoint(
            Trainer(folder / "0-many", resolve(config), data, mesh)
        ).name
    }
)
dist.barrier()
os._exit(0)  # as the package's workers end
