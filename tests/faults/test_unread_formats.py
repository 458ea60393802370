"""Images of formats that packing does not read are counted, named, and missed."""

import pytest

from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import list_images
from helpers.images import noise_images

# the first bytes of a real HEIC file of a phone: its box of brands
HEIC = b"\x00\x00\x00\x28ftypheic\x00\x00\x00\x00mif1MiHBMiHEmiafheictmap"


def phone(folder, name="a", count=3, ending="HEIC"):
    """Add files as a phone writes them to a class."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / name / f"IMG_{i:04}.{ending}").write_bytes(HEIC)


def test_they_are_named_with_what_to_do(tmp_path):
    """Before what is no image at all, and in a message of their own."""
    folder = noise_images(tmp_path / "in")
    phone(folder)
    phone(folder, "b", 2, "avif")
    (folder / "a/notes.txt").write_text("mine")
    said = []
    packed = pack(list_images(folder), tmp_path / "out", 16, progress=said.append)
    images, others = said[1:]
    assert images.splitlines() == [
        "left out images that packing does not read, all listed in meta.json:",
        "  a/*.heic: images that packing does not read: 3, such as IMG_0000.HEIC;"
        " convert them to JPEG or PNG",
        "  b/*.avif: images that packing does not read: 2, such as IMG_0000.avif;"
        " convert them to JPEG or PNG",
    ]
    assert others.splitlines()[1:] == ["  a/*.txt: other endings than an image's: 1"]
    assert len(packed.meta["unread"]) == 3


def test_a_class_without_other_images_is_an_error(tmp_path):
    """Which names what it has, not what other classes have."""
    folder = noise_images(tmp_path, num_classes=("a", "ab", "c"))
    phone(folder, "d", 12)
    (folder / "a/notes.txt").write_text("mine")
    (folder / "c/notes.txt").write_text("mine")
    with pytest.raises(
        FileNotFoundError,
        match=r"no images for the classes d in .*, only \*.heic \(images that packing"
        r" does not read: 12, such as IMG_0000.HEIC; .*convert their images to JPEG or"
        r" PNG, or remove the folders",
    ) as error:
        list_images(folder)
    assert "txt" not in str(error.value)


def test_an_empty_class_is_told_from_one_that_must_be_converted(tmp_path):
    """Also where the name of one is the beginning of the other's."""
    folder = noise_images(tmp_path, num_classes=("a", "da"))
    (folder / "d").mkdir()
    phone(folder, "da")
    with pytest.raises(
        FileNotFoundError, match=r"classes d in [^,]*, expected .*; add images, or"
    ):
        list_images(folder)
