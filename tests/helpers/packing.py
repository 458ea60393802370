"""Pack an image folder, as the tests of several files do."""

from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import list_images


def pack_folder(folder, dest, *arguments, **options):
    """List the images of a folder and pack them."""
    return pack(list_images(folder), dest, *arguments, **options)
