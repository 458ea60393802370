"""Time packing and batches beside what people use.

The images are JPEGs of ImageNet's usual size, made from two photographs. Writes
results/benchmarks/data.{json,md}.

    python benchmarks/data.py
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timing import in_turns, save, spread, start
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from alexnet_nb.augmentation import InputTransform, sample_augment_params
from alexnet_nb.base.table import MarkdownTable
from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import list_images
from alexnet_nb.engine.loader import load_images
from alexnet_nb.preprocessing import decode_jpeg, load_image
from alexnet_nb.recipes import paper

FILES, BATCH = 256, 128
square = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(256)])


def make_files(folder):
    """Cut JPEGs of 500 × 375 pixels, quality 75 to 95, from two photographs."""
    rng, photos = (
        np.random.default_rng(0),
        [Image.fromarray(load_sample_image(f"{n}.jpg")) for n in ("china", "flower")],
    )
    for i in range(FILES):
        left, top = rng.integers(0, 141), rng.integers(0, 53)
        path = folder / f"train/{i % 2}/{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photos[i % 2].crop((left, top, left + 500, top + 375)).save(
            path, quality=int(rng.integers(75, 96))
        )
    for c in "01":
        (folder / f"val/{c}").mkdir(parents=True)
        photos[0].save(folder / f"val/{c}/0.jpg")
    return sorted(folder.glob("train/*/*.jpg"))


def usual(path):
    with Image.open(path) as image:
        return np.asarray(square(image.convert("RGB")))


def drafted(path):
    """PIL with its own two shortcuts, which help pictures of 512 and more."""
    with Image.open(path) as image:
        image.draft("RGB", (256, 256))
        width, height = (round(side * 256 / min(image.size)) for side in image.size)
        image = image.convert("RGB").resize(
            (width, height), Image.Resampling.BILINEAR, reducing_gap=2.0
        )
        return np.asarray(
            image.crop(
                (
                    (width - 256) // 2,
                    (height - 256) // 2,
                    (width + 256) // 2,
                    (height + 256) // 2,
                )
            )
        )


def decoded_by_pil(path):
    with Image.open(path) as image:
        image.load()


READERS = {
    "PIL, Resize(256), CenterCrop(256)": usual,
    "PIL with draft and reducing_gap": drafted,
    "ours": load_image,
    "decoding alone, PIL": decoded_by_pil,
    "decoding alone, ours": lambda path: decode_jpeg(path.read_bytes()),
}


class Mapped(Dataset):
    """What people write for a memory-mapped array."""

    def __init__(self, images):
        self.images, self.crop = (
            images,
            transforms.Compose(
                [transforms.RandomCrop(224), transforms.RandomHorizontalFlip()]
            ),
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.crop(torch.from_numpy(self.images[i].copy()))


def endless(loader):
    while True:
        yield from loader


def ours(data, transform):
    """Batches as the trainer reads them, uint8."""
    for epoch in itertools.count():
        draws = sample_augment_params(len(data), transform.max_offset, paper, 0, epoch)
        for i in range(0, len(data) - BATCH + 1, BATCH):
            yield transform.crop(
                load_images(data, slice(i, i + BATCH)), draws[i : i + BATCH]
            )


def copies(images):
    """As many bytes, copied from the same file without more ado."""
    flat, out = images.reshape(-1), np.empty(BATCH * 3 * 224 * 224, np.uint8)
    for i in itertools.cycle(range(0, len(flat) - len(out), len(out))):
        np.copyto(out, flat[i : i + len(out)])
        yield out


def table(results):
    def rate(group, name):
        return [group["pictures"] / s for s in group["seconds"][name]]

    rows = []
    for what, against in (
        ("packing, one core", "PIL, Resize(256), CenterCrop(256)"),
        ("batches", "a copy of as many bytes"),
    ):
        group = results[what]
        for name in group["seconds"]:
            pairs = zip(rate(group, name), rate(group, against), strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            rows.append((what, name, spread(rate(group, name)), f"{ratio:.3g}"))
    note = (
        f"We used {FILES} files of 500×375 pixels. Batches of {BATCH} at 224, uint8"
        " are made from images of 256×256 in the page cache. The two loaders have two"
        " processes, ours and the copy none. `ImageFolder` decodes, rescales, crops,"
        " mirrors and normalizes: what people do, not the same work. "
        f"`pack` as a whole, {results['pack']['processes']} processes, statistics and"
        " checksums included:"
        f" {results['pack']['pictures'] / results['pack']['seconds']:,.0f} images a"
        " second."
    )
    return MarkdownTable(["", "", "images a second", "PIL or the copy = 1"], rows, note)


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        files = make_files(folder / "files")
        readers = {
            name: lambda f=f: [f(path) for path in files] for name, f in READERS.items()
        }
        packing = dict(pictures=len(files), seconds=in_turns(readers, rounds=5))
        stored = {
            q: pack(
                list_images(folder / "files"),
                folder / f"packed{q}",
                quality=q,
                progress=lambda line: None,
            )
            for q in (None, 90)
        }
        many = folder / "many"
        for i in range(12):
            for path in files:
                link = (
                    many
                    / path.parent.parent.name
                    / path.parent.name
                    / f"{i}-{path.name}"
                )
                link.parent.mkdir(parents=True, exist_ok=True)
                link.hardlink_to(path)
        (many / "val").symlink_to(folder / "files/val")
        begin = time.perf_counter()
        whole = pack(
            list_images(many), folder / "whole", processes=2, progress=lambda line: None
        )
        packed = dict(
            pictures=len(whole.train), processes=2, seconds=time.perf_counter() - begin
        )
        raw, see = whole.train, InputTransform(paper, whole.mean, whole.cov)
        raw.images[:].sum()  # into the page cache
        normal = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(256),
                transforms.RandomCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

        def loader(data):
            return endless(
                DataLoader(
                    data,
                    BATCH,
                    shuffle=True,
                    num_workers=2,
                    drop_last=True,
                    persistent_workers=True,
                )
            )

        sources = {
            "a copy of as many bytes": copies(raw.images),
            "ours": ours(raw, see),
            "ours, stored as JPEGs of quality 90": ours(stored[90].train, see),
            "memory-mapped Dataset, DataLoader": loader(Mapped(raw.images)),
            "ImageFolder, DataLoader": loader(
                datasets.ImageFolder(many / "train", normal)
            ),
        }
        batches = {
            name: lambda s=s: [next(s) for _ in range(24)]
            for name, s in sources.items()
        }
        results = {
            "packing, one core": packing,
            "batches": dict(pictures=24 * BATCH, seconds=in_turns(batches, rounds=15)),
            "pack": packed,
        }
        save("data", results, table(results))


if __name__ == "__main__":
    start()
    main()
