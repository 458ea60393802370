"""From any pile of files to a packed data set: odd pictures, interrupts, full disks, several processes."""

import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision import datasets, transforms

from alexnet_nb.data.packed import verify
from alexnet_nb.data.packing import CHUNK, pack
from alexnet_nb.data.sources import (
    ImageSource,
    list_cifar10,
    list_imagenet,
    list_imagenette,
    list_images,
)
from alexnet_nb.preprocessing import load_image, pixel_statistics, resize_center_crop
from helpers.packing import pack_folder

PHOTO = Image.fromarray(load_sample_image("china.jpg"))
quiet = dict(progress=lambda line: None)


def square(image):
    return np.asarray(resize_center_crop(image)).transpose(2, 0, 1).astype(int)


def saved(tmp_path, name, image, **options):
    image.save(tmp_path / name, **options)
    return load_image(tmp_path / name).astype(int)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    return exif


ODD = {
    "ycck.jpg": (PHOTO.convert("CMYK"), dict(keep_rgb=False)),
    "gray.jpg": (PHOTO.convert("L"), {}),
    "cmyk.jpg": (PHOTO.convert("CMYK"), {}),
    "progressive.jpg": (PHOTO, dict(progressive=True)),
    "444.jpg": (PHOTO, dict(subsampling=0)),
    "422.jpg": (PHOTO, dict(subsampling=1)),
    "palette.png": (PHOTO.quantize(256), {}),
    "photo.webp": (PHOTO, {}),
    "alpha.png": (PHOTO.convert("RGBA"), {}),
    "photo.tif": (PHOTO, {}),
    "photo.gif": (PHOTO.quantize(256), {}),
    "turned.jpg": (PHOTO.rotate(90, expand=True), dict(exif=rotated())),
    "16.png": (
        Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257),
        {},
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures(tmp_path, name):
    image, options = ODD[name]
    found, expected = (
        saved(tmp_path, name, image, **options),
        square(PHOTO.convert("L") if name in ("gray.jpg", "16.png") else PHOTO),
    )
    assert found.shape == (3, 256, 256)
    assert np.abs(found - expected).mean() < (
        9 if "CMYK" in image.mode or image.mode == "P" else 5
    )


def test_a_png_named_jpeg_and_transparency(tmp_path):
    PHOTO.save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "photo.JPEG")
    assert (load_image(tmp_path / "photo.JPEG") == square(PHOTO)).all()
    clear = PHOTO.convert("RGBA")
    clear.putalpha(0)
    assert (saved(tmp_path, "clear.png", clear) == 255).all()


@pytest.mark.parametrize("size", [(1, 300), (640, 1), (1, 1), (20_000, 30)])
def test_extreme_shapes(tmp_path, size):
    for name in ("x.png", "x.jpg"):
        assert saved(tmp_path, name, Image.new("RGB", size, (200, 100, 50))).shape == (
            3,
            256,
            256,
        )


def jpegs(folder, n=12, num_classes=2):
    rng = np.random.default_rng(0)
    for i in range(n):
        left, top = rng.integers(0, 140), rng.integers(0, 52)
        (folder / f"class{i % num_classes}").mkdir(parents=True, exist_ok=True)
        PHOTO.crop((left, top, left + 500, top + 375)).save(
            folder / f"class{i % num_classes}/{i}.jpg",
            quality=int(rng.integers(70, 96)),
        )


@pytest.mark.parametrize("decoder", ["torchvision", "PIL"])
def test_fast_jpegs_equal_pil(tmp_path, monkeypatch, decoder):
    """To within 2 gray levels in any picture, 0.5 on average, of PIL with torchvision's Resize and CenterCrop; without torchvision's decoder, too."""
    if decoder == "PIL":
        monkeypatch.delattr("torchvision.io.decode_jpeg")
    jpegs(tmp_path)
    usual, gaps = (
        transforms.Compose([transforms.Resize(256), transforms.CenterCrop(256)]),
        [],
    )
    for path in tmp_path.rglob("*.jpg"):
        with Image.open(path) as image:
            gaps.append(
                np.abs(
                    load_image(path).astype(int)
                    - np.asarray(usual(image.convert("RGB"))).transpose(2, 0, 1)
                )
            )
    assert max(g.max() for g in gaps) <= 2
    assert np.mean(gaps) <= 0.5


def test_unreadable_files_are_listed_and_too_many_refused(tmp_path):
    jpegs(tmp_path / "in", 40)
    whole = (tmp_path / "in/class0/0.jpg").read_bytes()
    bad = {
        "empty.jpg": b"",
        "text.jpg": b"hello, world",
        "truncated.jpg": whole[: len(whole) // 2],
        "header.jpg": whole[:300],
    }
    for name, content in bad.items():
        (tmp_path / "in/class1" / name).write_bytes(content)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    (tmp_path / "in/class1/bomb.png").write_bytes(bomb.getvalue())
    said = []
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 32, progress=said.append)
    unread = dict(packed.meta["unread"])
    assert set(unread) == {f"class1/{name}" for name in (*bad, "bomb.png")}
    assert len(packed.train) + len(packed.val) == 40
    for name, word in {
        "empty": "empty",
        "text": "cannot identify",
        "truncated": "truncated",
        "header": "Truncated",
        "bomb.png": "decompression bomb",
    }.items():
        assert any(
            name in file and word in reason for file, reason in unread.items()
        ), (name, unread)
    assert any("left out 5 files" in line for line in said)
    for i in range(20):
        (tmp_path / f"in/class0/bad{i}.jpg").write_bytes(b"no")
    with pytest.raises(ValueError, match="unreadable: got 25 of 65 files"):
        pack_folder(tmp_path / "in", tmp_path / "more", 32, **quiet)


def digest(folder):
    return {
        p.name if p.parent == folder else f"{p.parent.name}/{p.name}": hashlib.sha256(
            p.read_bytes()
        ).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("quality", [None, 90])
def test_the_number_of_processes_changes_nothing(tmp_path, quality):
    jpegs(tmp_path / "in", 3 * CHUNK + 7)
    a, b = (
        pack_folder(
            tmp_path / "in",
            tmp_path / f"out{n}",
            32,
            quality=quality,
            processes=n,
            **quiet,
        )
        for n in (0, 2)
    )
    assert digest(a.path) == digest(b.path)
    assert verify(a.path).meta["unread"] == []
    assert np.asarray(a.train.images[3]).shape == (3, 32, 32)
    assert a.train.images[1:5].shape == (4, 3, 32, 32)
    assert np.array_equal(a.train.images[np.array([2, 0])][1], a.train.images[0])


def test_jpegs_look_like_the_pixels(tmp_path):
    jpegs(tmp_path / "in", 20)
    raw, small = (
        pack_folder(tmp_path / "in", tmp_path / str(q), 64, quality=q, **quiet)
        for q in (None, 95)
    )
    assert np.abs(raw.train.images[:].astype(int) - small.train.images[:]).mean() < 4
    assert (raw.train.labels == small.train.labels).all()


PACK = """
import sys
from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import list_images
pack(list_images(sys.argv[1]), sys.argv[2], 64, processes=int(sys.argv[3]))
"""


def test_killed_at_any_moment_it_goes_on(tmp_path):
    """What is there after a kill is nothing or a whole set, and a second run makes the bytes of an undisturbed one."""
    jpegs(tmp_path / "in", 10 * CHUNK)
    whole = digest(pack_folder(tmp_path / "in", tmp_path / "whole", 64, **quiet).path)
    rng, resumed = np.random.default_rng(), 0
    for trial in range(3):
        out = tmp_path / f"out{trial}"
        process = subprocess.Popen(
            [sys.executable, "-c", PACK, tmp_path / "in", out, str(trial % 2 * 2)],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        partial = out.with_name(f".{out.name}.partial")
        while not (partial / "plan.json").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not out.exists() or digest(out) == whole
        resumed += any(partial.glob("*/journal.jsonl"))
        assert digest(pack_folder(tmp_path / "in", out, 64, **quiet).path) == whole
        assert sorted(
            p.name
            for p in tmp_path.iterdir()
            if p.name.startswith((out.name, f".{out.name}"))
        ) == [out.name]
    assert resumed  # at least one of them in the middle


def test_no_worker_outlives_a_killed_pack(tmp_path):
    jpegs(tmp_path / "in", 20 * CHUNK)
    process = subprocess.Popen(
        [sys.executable, "-c", PACK, tmp_path / "in", tmp_path / "out", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def group():
        return [
            p for p in os.listdir("/proc") if p.isdigit() and in_group(p, process.pid)
        ]

    deadline = time.monotonic() + 60
    while len(group()) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(group()) >= 3  # itself and two workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while group() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group()


def in_group(pid, group):
    try:
        return os.getpgid(int(pid)) == group
    except ProcessLookupError:
        return False


def test_a_torn_journal_is_cut(tmp_path):
    jpegs(tmp_path / "in", 3 * CHUNK)
    whole = digest(pack_folder(tmp_path / "in", tmp_path / "whole", 32, **quiet).path)

    class Stop(Exception):
        pass

    def stop(line):
        raise Stop

    with pytest.raises(Stop):
        pack_folder(
            tmp_path / "in", tmp_path / "out", 32, progress=stop
        )  # before the first file
    partial = tmp_path / ".out.partial"
    (partial / "train").mkdir()
    (partial / "train/journal.jsonl").write_text('{"end": 12')
    (partial / "train/images.npy").write_bytes(b"rubbish")
    assert (
        digest(pack_folder(tmp_path / "in", tmp_path / "out", 32, **quiet).path)
        == whole
    )


def test_never_overwrites_another_set(tmp_path):
    for name in ("a", "b"):
        jpegs(tmp_path / name)
    first = digest(pack_folder(tmp_path / "a", tmp_path / "out", 32, **quiet).path)
    for source, size in (("b", 32), ("a", 64)):
        with pytest.raises(FileExistsError, match="another data set"):
            pack_folder(tmp_path / source, tmp_path / "out", size, **quiet)
    assert (
        digest(pack_folder(tmp_path / "a", tmp_path / "out", 32, **quiet).path) == first
    )


def test_two_at_once(tmp_path):
    jpegs(tmp_path / "in", 3 * CHUNK)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PACK, tmp_path / "in", tmp_path / "out", "0"]
        )
        for _ in range(2)
    ]
    assert [p.wait(120) for p in both] == [0, 0]
    verify(tmp_path / "out")


def test_a_disk_that_is_too_small_is_refused(tmp_path, monkeypatch):
    jpegs(tmp_path / "in")
    monkeypatch.setattr(
        "alexnet_nb.data.packing.shutil.disk_usage",
        lambda path: type("", (), dict(free=1000)),
    )
    with pytest.raises(OSError, match=r"dest: got .* GB free, expected"):
        pack_folder(tmp_path / "in", tmp_path / "out", 32, **quiet)


SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from alexnet_nb.data.packed import verify
from alexnet_nb.data.packing import pack
from alexnet_nb.data.sources import list_images
source, disk = list_images(sys.argv[1]), sys.argv[2]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
filler = Path(disk, "filler")
def fill(line): filler.write_bytes(bytes(3_600_000))  # after pack has looked how much is free
try: pack(source, Path(disk, "out"), 64, processes=0, progress=fill)
except OSError as e: print(type(e).__name__, e.errno)
assert not Path(disk, "out").exists()
filler.unlink()
verify(pack(source, Path(disk, "out"), 64, processes=0, progress=lambda line: None).path)
print("whole")
"""


def test_a_disk_that_fills_on_the_way(tmp_path):
    """On a tmpfs of 4 MB: an error, and the next run goes on."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no permission for a mount of its own")
    jpegs(tmp_path / "in", 5 * CHUNK)
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [
            "unshare",
            "-rm",
            sys.executable,
            "-c",
            SMALL_DISK,
            tmp_path / "in",
            tmp_path / "disk",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["OSError 28", "whole"], done.stderr


def test_statistics_equal_two_passes():
    rng = np.random.default_rng()
    images = rng.integers(0, 256, (600, 3, 12, 12), np.uint8)
    for processes in (0, 2):
        mean, cov = pixel_statistics(images, processes)
        pixels = images.transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64)
        np.testing.assert_allclose(mean, images.mean(0, np.float64), rtol=1e-9)
        np.testing.assert_allclose(cov, np.cov(pixels, bias=True), rtol=1e-9)


def tar(path, folder, mode="w:gz"):
    with tarfile.open(path, mode) as t:
        t.add(folder, arcname=folder.name)
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_cifar10_in_miniature(tmp_path):
    """Torchvision's own archive layout, with a subclass that names the checksums; a damaged archive is refused."""
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
    packed = pack(list_cifar10(tmp_path, dataset=small), tmp_path / "out", 32, **quiet)
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
    """A miniature of ILSVRC-2012 as torchvision leaves it: folders by WordNet id, and meta.bin."""
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
    """From the three archives as they are downloaded, with checksums of their own; a damaged one is refused."""
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
    assert verify(pack(source, tmp_path / "out", 32, **quiet).path).meta["unread"] == []
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


def test_check_names_what_is_wrong(tmp_path):
    jpegs(tmp_path / "in")
    packed = pack_folder(tmp_path / "in", tmp_path / "out", 32, **quiet)
    verify(packed.path)
    np.save(packed.path / "val/labels.npy", np.array([7] * 9))
    with pytest.raises(
        ValueError,
        match=r"val/labels.npy is not what was written.*9 labels.*labels from 7 to 7",
    ):
        verify(packed.path)


def test_order_depends_on_the_seed_alone(tmp_path):
    jpegs(tmp_path / "in", 30)

    def order(seed):
        return [p.name for p, _ in list_images(tmp_path / "in", seed).splits["train"]]

    assert order(0) == order(0) != order(1)
    assert isinstance(list_images(tmp_path / "in"), ImageSource)
    packed = pack(list_images(tmp_path / "in", seed=1), tmp_path / "out", 32, **quiet)
    assert json.loads((packed.path / "meta.json").read_text())["seed"] == 1
