"""Where images come from: known data sets in miniature, and folders."""

import hashlib
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from torchvision import datasets

from alexnet_nb.data.packed import verify
from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import (
    ImageSource,
    list_cifar10,
    list_imagenet,
    list_imagenette,
    list_images,
)
from helpers.images import PHOTO, QUIET, jpegs, noise_images
from helpers.packing import pack_folder


def tar(path, folder, mode="w:gz"):
    with tarfile.open(path, mode) as t:
        t.add(folder, arcname=folder.name)
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar10_in_miniature(tmp_path):
    """Torchvision's own archive layout, with a subclass that names the checksums.

    A damaged archive is refused.
    """
    folder, md5 = tmp_path / "cifar-10-batches-py", {}
    folder.mkdir()
    for name, n in {
        **{f"data_batch_{i}": 4 for i in range(1, 6)},
        "test_batch": 6,
    }.items():
        pickle.dump(
            {
                "data": np.random.randint(0, 256, (n, 3072), np.uint8),
                "labels": [i % 10 for i in range(n)],
            },
            (folder / name).open("wb"),
        )
    pickle.dump(
        {"label_names": [f"class {i}" for i in range(10)]},
        (folder / "batches.meta").open("wb"),
    )
    md5 = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}

    def pairs(names):
        return [[n, md5[n]] for n in names]

    small = type(
        "CIFAR10",
        (datasets.CIFAR10,),
        dict(
            tgz_md5=tar(tmp_path / "cifar-10-python.tar.gz", folder),
            train_list=pairs(f"data_batch_{i}" for i in range(1, 6)),
            test_list=pairs(["test_batch"]),
            meta=datasets.CIFAR10.meta | dict(md5=md5["batches.meta"]),
        ),
    )
    packed = pack(list_cifar10(tmp_path, dataset=small), tmp_path / "out", 32, **QUIET)
    assert (len(packed.train), len(packed.val), packed.names[3]) == (20, 6, "class 3")
    raw = pickle.loads((folder / "test_batch").read_bytes())["data"].reshape(
        -1, 3, 32, 32
    )
    assert {x.tobytes() for x in raw} == {x.tobytes() for x in packed.val.images}
    small.tgz_md5, small.url = "0" * 32, (tmp_path / "nowhere").as_uri()
    for p in folder.iterdir():
        p.write_bytes(b"damaged")
    with pytest.raises((RuntimeError, OSError)):
        list_cifar10(tmp_path, dataset=small)


def test_imagenette_in_miniature(tmp_path):
    wnids = list(datasets.imagenette.Imagenette._WNID_TO_CLASS)
    for i, wnid in enumerate(wnids):
        for split in ("train", "val"):
            (tmp_path / f"imagenette2-320/{split}/{wnid}").mkdir(parents=True)
            PHOTO.save(tmp_path / f"imagenette2-320/{split}/{wnid}/{i}.JPEG")
    source = list_imagenette(tmp_path)
    assert [len(items) for items in source.splits.values()] == [
        10,
        10,
    ]
    assert source.names[0] == "tench"
    assert all(
        path.parent.name == wnids[label]
        for items in source.splits.values()
        for path, label in items
    )


def imagenet(tmp_path):
    """A miniature of ILSVRC-2012 as torchvision leaves it.

    Folders by WordNet id, and meta.bin.
    """
    import torch

    wnids = ["n01440764", "n01443537", "n01484850"]
    tmp_path.mkdir(exist_ok=True)
    for split, n in (("train", 4), ("val", 2)):
        for wnid in wnids:
            (tmp_path / split / wnid).mkdir(parents=True)
            for i in range(n):
                PHOTO.crop((i, 0, i + 300, 200)).save(
                    tmp_path / split / wnid / f"{wnid}_{i}.JPEG"
                )
    words = {w: (f"first word of {w}", "second") for w in wnids}
    torch.save((words, wnids * 2), tmp_path / "meta.bin")


def test_imagenet_in_miniature(tmp_path):
    imagenet(tmp_path)
    source = list_imagenet(tmp_path, counts=dict(train=12, val=6))
    assert source.names == tuple(
        f"first word of {w}" for w in ("n01440764", "n01443537", "n01484850")
    )
    assert all(
        source.names[label].endswith(path.parent.name)
        for items in source.splits.values()
        for path, label in items
    )
    with pytest.raises(
        ValueError, match=r"got 12 images in .*/train, expected 1,281,167"
    ):
        list_imagenet(tmp_path)


def test_imagenet_archives_in_miniature(tmp_path, monkeypatch):
    """From the three archives as they are downloaded, with checksums of their own.

    A damaged one is refused.
    """
    from scipy.io import savemat
    from torchvision.datasets import imagenet as module

    imagenet(tmp_path / "made")
    wnids = sorted(p.name for p in (tmp_path / "made/train").iterdir())
    root, devkit = tmp_path / "root", tmp_path / "ILSVRC2012_devkit_t12"
    root.mkdir()
    (devkit / "data").mkdir(parents=True)
    kind = [
        (n, object)
        for n in (
            "ILSVRC2012_ID",
            "WNID",
            "words",
            "gloss",
            "num_children",
            "wordnet_height",
            "children",
            "num_train_images",
        )
    ]
    synsets = np.array(
        [
            (i + 1, w, f"first word of {w}, second", "", 0, 0, [], 4)
            for i, w in enumerate(wnids)
        ],
        kind,
    )
    savemat(devkit / "data/meta.mat", dict(synsets=synsets))
    (devkit / "data/ILSVRC2012_validation_ground_truth.txt").write_text(
        "1\n2\n3\n1\n2\n3\n"
    )
    sums = {"devkit": tar(root / "ILSVRC2012_devkit_t12.tar.gz", devkit)}
    (tmp_path / "tars").mkdir()
    for w in wnids:
        with tarfile.open(tmp_path / f"tars/{w}.tar", "w") as t:
            for path in (tmp_path / "made/train" / w).iterdir():
                t.add(path, path.name)
    for name, paths in (
        ("train", sorted((tmp_path / "tars").iterdir())),
        ("val", sorted((tmp_path / "made/val").rglob("*.JPEG"))),
    ):
        with tarfile.open(root / f"ILSVRC2012_img_{name}.tar", "w") as t:
            for i, path in enumerate(paths):
                t.add(
                    path,
                    path.name if name == "train" else f"ILSVRC2012_val_{i:08}.JPEG",
                )
        sums[name] = hashlib.md5(
            (root / f"ILSVRC2012_img_{name}.tar").read_bytes()
        ).hexdigest()
    monkeypatch.setattr(
        module,
        "ARCHIVE_META",
        {k: (f, sums[k]) for k, (f, _) in module.ARCHIVE_META.items()},
    )
    source = list_imagenet(root, counts=dict(train=12, val=6))
    assert source.names == tuple(f"first word of {w}" for w in wnids)
    assert sorted(label for _, label in source.splits["val"]) == [0, 0, 1, 1, 2, 2]
    assert verify(pack(source, tmp_path / "out", 32, **QUIET).path).meta["unread"] == []
    monkeypatch.setattr(
        module,
        "ARCHIVE_META",
        {k: (f, "0" * 32) for k, (f, _) in module.ARCHIVE_META.items()},
    )
    (root / "meta.bin").unlink()
    with pytest.raises(FileNotFoundError, match="corrupted"):
        list_imagenet(root)


def test_missing_archives_are_named(tmp_path):
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError,
        match=r"without ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar",
    ):
        list_imagenet(tmp_path)


def test_order_depends_on_the_seed_alone(tmp_path):
    jpegs(tmp_path / "in", 30)

    def order(seed):
        return [p.name for p, _ in list_images(tmp_path / "in", seed).splits["train"]]

    assert order(0) == order(0) != order(1)
    assert isinstance(list_images(tmp_path / "in"), ImageSource)
    packed = pack(list_images(tmp_path / "in", seed=1), tmp_path / "out", 32, **QUIET)
    assert json.loads((packed.path / "meta.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    "character", list("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\t\x1b\x7f")
)
def test_a_class_name_of_several_lines_is_refused_by_name(tmp_path, character):
    noise_images(tmp_path, num_classes=(f"a{character}b", "c"))
    with pytest.raises(ValueError, match=r"data: got a class named a\\.+b, exp") as e:
        list_images(tmp_path)
    assert character not in str(e.value)


@pytest.mark.parametrize(
    "name", ["日本 語", "crème brûlée", "a'b\"c", "👩‍👧", "\u200fعربي", "a\\nb"]
)
def test_other_class_names_come_back_as_they_are(tmp_path, name):
    noise_images(tmp_path / "in", num_classes=(name, "z"))
    packed = verify(pack_folder(tmp_path / "in", tmp_path / "out", 16, **QUIET).path)
    assert set(packed.names) == {name, "z"}


def test_a_class_folder_that_is_not_utf8_is_refused_by_name(tmp_path):
    noise_images(tmp_path, num_classes=(os.fsdecode(b"\xe9t\xe9"), "b"))
    with pytest.raises(ValueError, match=r"data: got a class named \\xe9t\\xe9, "):
        list_images(tmp_path)


def test_where_there_is_no_image_what_was_found_is_named(tmp_path):
    noise_images(tmp_path)
    for path in list((tmp_path / "a").iterdir()):
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(FileNotFoundError, match=r"for the classes a .*, only \*.heic"):
        list_images(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path):
    """One to other images, one to its own folder, and two that lead to each other."""
    folder = noise_images(tmp_path / "in", 4)
    noise_images(tmp_path, 3, num_classes=("elsewhere",))
    (folder / "a/more").symlink_to(tmp_path / "elsewhere")
    (folder / "a/again").symlink_to(".")
    (folder / "b/other").symlink_to("../a")
    (folder / "a/other").symlink_to("../b")
    source = list_images(folder)
    found = [(path.relative_to(folder), label) for path, label in source.splits["val"]]
    found += [
        (path.relative_to(folder), label) for path, label in source.splits["train"]
    ]
    inside = {str(path.parent) for path, label in found if label == 0}
    assert inside == {"a", "a/more", "a/other"}
    assert len(found) == 2 * (4 + 3 + 4)
    passed_over = {os.path.relpath(path, folder) for path, _ in source.left_out}
    assert passed_over == {"a/again", "a/other/other", "b/other/again", "b/other/other"}


def test_the_key_of_an_ordinary_folder_is_what_it_was(tmp_path):
    """Else every packed copy in a cache would be made again."""
    noise_images(tmp_path / "in/train", 3)
    noise_images(tmp_path / "in/val", 2)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(path.name.encode())
        os.utime(path, ns=(1_000_000_000, 1_000_000_000))
    source = list_images(tmp_path / "in")
    h = hashlib.sha256(json.dumps([source.names, source.origin]).encode())
    for split, items in source.splits.items():
        for path, label in items:
            h.update(f"{split} {label} {path} 5 1000000000".encode())
    assert source.key() == h.hexdigest()[:12]


@pytest.mark.parametrize("val_share", [None, 0.3])
def test_a_folder_without_images_is_refused_by_name(tmp_path, val_share):
    with pytest.raises(FileNotFoundError, match=r"^data: got no images for train in"):
        list_images(tmp_path, val_share=val_share)
