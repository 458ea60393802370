"""What each part of the way from the disk to the network can carry."""

import statistics
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from unittest import mock

import numpy as np
import torch
from gpu_data import config, dataset_path
from gpu_timing import show

from alexnet_nb.augmentation import InputTransform, sample_augment_params
from alexnet_nb.data import packed
from alexnet_nb.data.packed import open_packed
from alexnet_nb.dropout import dropout_masks
from alexnet_nb.engine.config import resolve

WORKERS = (1, 2, 4, 8, 16)


def add(bench, name, images, seconds):
    bench.add("pipeline", name, [images / s for s in seconds])


def memmap_to_pinned(bench, images, batch):
    """Copy stored images to pinned memory, with one and with four threads."""
    pinned = torch.empty(
        (batch, *images.shape[1:]), dtype=torch.uint8, pin_memory=bench.is_cuda
    )
    target, stored = pinned.numpy(), images[:batch]
    for threads in (1, 4):
        rows = np.array_split(np.arange(batch), threads)
        with ThreadPoolExecutor(threads) as pool:

            def copy(pool=pool, rows=rows):
                list(
                    pool.map(
                        lambda r: np.copyto(
                            target[r[0] : r[-1] + 1], stored[r[0] : r[-1] + 1]
                        ),
                        rows,
                    )
                )

            add(
                bench,
                f"memory-mapped to pinned, {threads} threads",
                batch,
                bench.wall(copy, 5),
            )
    return pinned


def to_device(bench, images, batch):
    """Copy pinned images to the device, and images that are not pinned."""
    pinned = memmap_to_pinned(bench, images, batch)
    there = torch.empty_like(pinned, device=bench.device)
    for name, here in (
        ("pinned", pinned),
        ("pageable", torch.from_numpy(pinned.numpy().copy())),
    ):
        seconds = bench.time(lambda h=here: there.copy_(h, non_blocking=True))
        add(bench, f"{name} to device", batch, seconds)


def on_device(bench, data, batch):
    """Crop, flip, mean, color and layout; random choices; dropout masks."""
    run = resolve(config(bench, recipe="source2012", batch_size=batch))
    recipe = run.model_recipe
    transform = InputTransform(recipe, data.mean, data.cov, bench.device)
    offset = transform.max_offset

    def sample(count=batch):
        return sample_augment_params(count, offset, recipe, 0, 0, bench.device)

    params = sample()
    images = torch.from_numpy(np.array(data.train.images[:batch])).to(bench.device)
    shape = (batch, 3, recipe.crop, recipe.crop)
    out = torch.empty(shape, dtype=torch.bfloat16, device=bench.device)
    out = out.to(memory_format=torch.channels_last)
    step = torch.zeros((), dtype=torch.int64, device=bench.device)
    for name, function in {
        "input pass": lambda: transform.train(images, params, True, out),
        "random choices": sample,
        "dropout masks": lambda: dropout_masks(
            recipe, batch, 0, step, device=bench.device
        ),
    }.items():
        seconds = bench.guard(name, lambda b, f=function: b.time(f))
        if seconds:
            add(bench, name, batch, seconds)


def decode_rows(path, rows):
    """Decode some JPEGs in a process of a pool; their bytes stay there."""
    torch.set_num_threads(1)
    open_packed(path).train.images[rows]
    return len(rows)


def decoding(bench, batch):
    """Images a second that threads, processes and nvJPEG decode."""
    path = dataset_path(bench, quality=90)
    images = open_packed(path).train.images
    rows = np.arange(min(batch, len(images)))
    for threads in bench.size(WORKERS, (1, 2)):
        with mock.patch.object(packed, "decoding_threads", lambda n=threads: n):
            seconds = bench.wall(lambda: images[rows])
        add(bench, f"JPEG, {threads} threads", len(rows), seconds)
    if bench.is_cuda and packed.fast_jpeg_decoder() is not None:
        seconds = bench.wall(lambda: images.decode(rows, bench.device))
        add(bench, "JPEG, nvJPEG", len(rows), seconds)
    for processes in bench.size(WORKERS[2:], (2,)):
        bench.guard(f"JPEG, {processes} processes", in_processes, path, rows, processes)


def in_processes(bench, path, rows, processes):
    """Decode in processes that are not forked, as beside a GPU they must not be."""
    parts = np.array_split(rows, processes)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:

        def decode():
            list(pool.map(decode_rows, [path] * processes, parts))

        seconds = bench.wall(decode)
    add(bench, f"JPEG, {processes} processes", len(rows), seconds)


def run(bench):
    batch = bench.size(1024, 16)
    data = open_packed(dataset_path(bench))
    data.train.images[:].sum()  # into the page cache
    bench.guard("copies", to_device, data.train.images, batch)
    bench.guard("on the device", on_device, data, batch)
    bench.guard("decoding", decoding, batch)
    measured = bench.results["parts"].get("pipeline", {})
    rates = {name: statistics.median(values) for name, values in measured.items()}
    rows = [(name, f"{rates[name]:,.0f}") for name in sorted(rates, key=rates.get)]
    show("Pipeline, the narrowest first", ["part", "images a second"], rows)
