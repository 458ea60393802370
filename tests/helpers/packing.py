"""Pack an image folder, as the tests of several files do."""

import numpy as np
from torch.utils.data import Dataset

from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import ImageSource, list_images


def pack_folder(folder, dest, *arguments, **options):
    """List the images of a folder and pack them."""
    return pack(list_images(folder), dest, *arguments, **options)


def two_classes(count=40, size=8):
    """Random images as arrays, in two classes."""
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    samples = [(image, i % 2) for i, image in enumerate(images)]
    return ImageSource({"train": samples[4:], "val": samples[:4]}, ("a", "b"), "test")


class Loaded(Dataset):
    """A data set as a user of DataLoader would write it."""

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        return np.array(self.split.images[i]), int(self.split.labels[i])
