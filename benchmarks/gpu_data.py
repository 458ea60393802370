"""Images, trainers and runs that the parts of gpu.py share."""

import contextlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image

from alexnet_nb.augmentation import sample_augment_params
from alexnet_nb.base.processes import available_cores
from alexnet_nb.data.packed import open_packed, open_split
from alexnet_nb.engine.config import Config, resolve
from alexnet_nb.engine.trainer import Trainer
from alexnet_nb.learning import learning_rates
from alexnet_nb.preprocessing import pixel_statistics

CLASSES = 10
SMALLEST = dict(width_mult=0.125, image_size=72, crop_size=64)  # of the smoke test


def photograph(number, size):
    """Make an image with smooth shapes and a little noise, and its label.

    Each class has a color of its own, so that there is something to learn.
    """
    label = number % CLASSES
    tint = np.random.default_rng(1000 + label).uniform(60, 190, (3, 1, 1))
    rng = np.random.default_rng(number)
    coarse = (rng.normal(0, 25, (3, 8, 8)) + tint).clip(8, 247).astype(np.uint8)
    side = -(-size // 8)
    image = coarse.repeat(side, 1).repeat(side, 2)[:, :size, :size]
    return image + rng.integers(0, 8, image.shape, np.uint8), label


def as_jpeg(image, quality):
    """Return the bytes of an image as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    return np.frombuffer(file.getvalue(), np.uint8)


def write_split(folder, count, size, quality):
    """Write a half of a packed data set, as pack would; with as many threads."""
    folder.mkdir(parents=True)
    labels = np.arange(count) % CLASSES
    np.save(folder / "labels.npy", labels)
    with ThreadPoolExecutor(available_cores()) as pool:
        if quality is None:
            shape = (count, 3, size, size)
            path = folder / "images.npy"
            out = np.lib.format.open_memmap(path, "w+", np.uint8, shape)

            def write(number):
                out[number] = photograph(number, size)[0]

            list(pool.map(write, range(count)))
            return
        encode = partial(as_jpeg, quality=quality)
        images = pool.map(lambda n: encode(photograph(n, size)[0]), range(count))
        files = list(images)
    np.save(folder / "jpegs.npy", np.concatenate(files))
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, files)]))


def dataset_path(bench, quality=None):
    """A packed set of raw pixels, or of JPEGs: the user's, or a generated one.

    Its mean image and covariance are those of its first 512 images.
    """
    if bench.data and quality is None:
        return bench.data
    path = bench.scratch / f"photographs-{quality}"
    if (path / "meta.json").exists():
        return str(path)
    size = bench.size(256, SMALLEST["image_size"])
    train, val = bench.size((9469, 3925) if quality is None else (2048, 64), (48, 16))
    write_split(path / "train", train, size, quality)
    write_split(path / "val", val, size, quality)
    names = "".join(f"class {i}\n" for i in range(CLASSES))
    (path / "names.txt").write_text(names)
    meta = dict(classes=CLASSES, size=size, sha256={"stats.npz": "generated"})
    (path / "meta.json").write_text(json.dumps(meta))  # which open_split reads
    mean, cov = pixel_statistics(open_split(path / "train").images[:512])
    np.savez(path / "stats.npz", mean=mean, cov=cov)
    return str(path)


def config(bench, **settings):
    """The parameters of a run on these images."""
    smallest = SMALLEST if bench.tiny else {}
    return Config(**(dict(data=dataset_path(bench), epochs=90) | smallest | settings))


class BenchTrainer:
    """A trainer of the package, and one stored batch to feed it again and again."""

    def __init__(self, bench, folder, settings):
        self.data = open_packed(settings.data)
        self.trainer = Trainer(folder, resolve(settings), self.data, None, bench.device)
        rates = learning_rates(self.trainer.recipe, 0.0, self.trainer.config.lr)
        self.trainer.set_rates(rates)
        self.params = self.sample(0)

    def sample(self, epoch):
        trainer = self.trainer
        count, offset = len(self.data.train), trainer.transform.max_offset
        device = trainer.params_device
        return sample_augment_params(count, offset, trainer.recipe, 0, epoch, device)

    def stored_batch(self, index=0):
        return self.trainer.load_batch(None, self.params, index)

    def take_step(self, stored):
        """Take a training step from stored images on, without waiting."""
        trainer = self.trainer
        trainer.train_step(*trainer.to_network_input(stored, color_noise=True))
        if trainer.step % trainer.steps_per_epoch == trainer.steps_per_epoch - 1:
            trainer.step = 0  # the last batch of an epoch may be short

    def steps(self, first, last):
        """Take the steps from `first` to `last` of a run; return their losses."""
        trainer, losses = self.trainer, []
        for step in range(first, last):
            epoch, index = divmod(step, trainer.steps_per_epoch)
            if index == 0 or step == first:
                self.params = self.sample(epoch)
            stored = self.stored_batch(index)
            trainer.train_step(*trainer.to_network_input(stored, color_noise=True))
            if step % 20 == 19 or step == last - 1:
                losses += [row[0] for row in trainer.read_metrics()]
        return losses


def make_trainer(bench, recipe, batch, precision, compiled=False, **settings):
    """A trainer for one process, as a run makes it."""
    folder = bench.scratch / "trainer"
    folder.mkdir(exist_ok=True)
    given = dict(recipe=recipe, batch_size=batch, precision=precision, compile=compiled)
    if bench.tiny:
        given["compile"] = False  # generating code takes a minute here
    return BenchTrainer(bench, folder, config(bench, **given, **settings))


@contextlib.contextmanager
def settled(precision, deterministic=True):
    """The switches that a process of a run sets on a GPU, for a while."""
    before = torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filling


def metrics_rows(folder):
    """The lines of a run's metrics.jsonl."""
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
