"""A trained network is asked about files, images and folders."""

import csv
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet_nb
from alexnet_nb import load
from alexnet_nb.evaluation import load_input, load_model, probabilities
from alexnet_nb.predict import list_files, main, predict_files, write_csv
from alexnet_nb.preprocessing import load_image
from helpers.images import PHOTO
from helpers.runs import fit_one


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One epoch of digits."""
    folder = tmp_path_factory.mktemp("run")
    fit_one(folder)
    return folder


@pytest.fixture(scope="module")
def model(run):
    return load(run)


@pytest.fixture
def photos(tmp_path):
    """Three images of several kinds below a folder, and one that is none."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    PHOTO.save(folder / "a.jpg")
    PHOTO.convert("L").save(folder / "b.png")
    PHOTO.convert("RGBA").save(folder / "more/c.webp")
    (folder / "d.jpg").write_bytes(b"not a photograph")
    (folder / "notes.txt").write_text("hello")
    return folder


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_an_image_goes_the_way_of_the_training_images(run, model, photos):
    """The probabilities of the network by hand, for a file and for what is in it."""
    network = load_model(run)
    square = load_image(photos / "a.jpg", 72)
    expected = probabilities(network, load_input(run, network), square[None], 1)[0]
    found = model.predict(photos / "a.jpg", top=10)
    assert [name for name, _ in found] == [
        model.names[i] for i in expected.argsort(descending=True)
    ]
    values = torch.tensor([p for _, p in found]).double()
    torch.testing.assert_close(values, expected.double().sort(descending=True).values)
    assert model.predict(str(photos / "a.jpg"), top=10) == found
    pixels = np.array(Image.open(photos / "a.jpg"))
    for image in (Image.open(photos / "a.jpg"), pixels):
        assert [n for n, _ in model.predict(image, top=2)] == [n for n, _ in found[:2]]


def test_five_crops_are_averaged_and_ten_need_a_mirror(model, photos):
    one = model.predict(photos / "a.jpg", top=10)
    five = model.predict(photos / "a.jpg", top=10, crops=5)
    assert dict(one) != dict(five)
    with pytest.raises(ValueError, match="crops: got 10, expected one of 1, 5"):
        model.predict(photos / "a.jpg", crops=10)


def test_several_images_give_a_list_each(model, photos):
    files = [photos / "a.jpg", photos / "b.png"]
    both = model.predict(files, top=3)
    assert [len(found) for found in both] == [3, 3]
    assert model.predict([]) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("d.jpg", r"image: got .*d\.jpg \(cannot identify"),
        ("nothing.jpg", r"image: got .*nothing\.jpg"),
        (np.zeros((8, 8, 3)), r"got an array 8 × 8 × 3 of float64, expected H × W × 3"),
        (np.zeros((3, 8, 8), np.uint8), "got an array 3 × 8 × 8 of uint8"),
        (np.zeros((0, 8, 3), np.uint8), "got an array 0 × 8 × 3 of uint8"),
        (torch.zeros(3, 8, 8), "^image: got a Tensor, expected the path of a file"),
        (b"JFIF", "^image: got a bytes, expected the path of a file"),
        ("more", "which is a folder, expected a file; .* alexnet-predict"),
    ],
)
def test_what_is_no_image_is_refused_by_name(model, photos, image, message):
    with pytest.raises(ValueError, match=message):
        model.predict(photos / image if isinstance(image, str) else image)


def test_a_folder_becomes_a_table_with_a_row_for_a_broken_file(model, photos, tmp_path):
    files = list_files([photos])
    assert [f.name for f in files] == ["a.jpg", "b.png", "d.jpg", "c.webp"]
    for batch_size in (1, 3, 64):
        rows = predict_files(model, files, batch_size=batch_size)
        assert write_csv(tmp_path / "out.csv", rows) == 1
        table = rows_of(tmp_path / "out.csv")
        assert [row["file"] for row in table] == list(map(str, files))
        assert "cannot identify" in table[2]["error"]
        assert table[2]["class 1"] == ""
        for row, file in ((table[0], files[0]), (table[3], files[3])):
            name, probability = model.predict(file)[0]
            assert row["class 1"] == name
            assert float(row["probability 1"]) == pytest.approx(probability, abs=1e-3)
            assert row["error"] == ""


def test_a_table_that_is_not_finished_is_not_there(model, tmp_path):
    """A row that fails leaves the table of before."""
    (tmp_path / "out.csv").write_text("before")

    def rows():
        yield dict(file="a.jpg", classes=[("x", 1.0)], error="")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_csv(tmp_path / "out.csv", rows())
    assert (tmp_path / "out.csv").read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def test_the_command_predicts_files_and_folders(run, photos, tmp_path):
    """In a process of its own, on the file of weights alone."""
    command = [sys.executable, "-c", "from alexnet_nb.predict import main; main()"]
    command += [str(run / "model.safetensors"), str(photos)]
    done = subprocess.run(
        [*command, "--csv", str(tmp_path / "out.csv"), "--top", "2"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "4 images, 1 of them unreadable" in done.stdout
    assert list(rows_of(tmp_path / "out.csv")[0]) == [
        *("file", "class 1", "probability 1", "class 2", "probability 2", "error")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing", "a.jpg"], "weights: got nothing, which does not exist"),
        (["RUN", "nowhere"], "images: got nowhere, which does not exist"),
        (["RUN", "EMPTY"], "without an image"),
        (["RUN", "a.jpg", "--crops", "3"], "crops: got 3"),
    ],
)
def test_the_command_ends_with_a_sentence(
    run, photos, monkeypatch, capsys, words, message
):
    (photos / "EMPTY").mkdir()
    monkeypatch.chdir(photos)
    words = [str(run) if word == "RUN" else word for word in words]
    monkeypatch.setattr(sys, "argv", ["alexnet-predict", *words, "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_package_has_its_best_known_names():
    assert alexnet_nb.load is load
    assert alexnet_nb.AlexNet.__module__ == "alexnet_nb.model"
    assert alexnet_nb.paper.name == "paper"
    assert {"load", "train", "LRN"} <= set(dir(alexnet_nb))
    with pytest.raises(AttributeError, match="got the name 'nothing'"):
        alexnet_nb.nothing  # noqa: B018


def test_importing_the_package_or_a_layer_imports_no_more():
    script = (
        "import sys, alexnet_nb.lrn;"
        "print([n for n in sys.modules if n.startswith('alexnet_nb.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert "predict" not in done.stdout
    assert "engine" not in done.stdout


def test_an_image_of_pil_that_breaks_off_is_refused_by_name(model, photos):
    cut = photos / "cut.jpg"
    cut.write_bytes((photos / "a.jpg").read_bytes()[:3000])
    with Image.open(cut) as image, pytest.raises(ValueError, match="got a PIL image"):
        model.predict(image)


def test_an_empty_file_is_named_once(model, photos):
    (photos / "e.jpg").touch()
    with pytest.raises(
        ValueError, match=r"^image: got .*e\.jpg, an empty file, expect"
    ):
        model.predict(photos / "e.jpg")


@pytest.mark.parametrize("top", [0, -1, 2.5, "x"])
def test_a_number_of_classes_is_above_0(model, photos, top):
    with pytest.raises(ValueError, match=f"^top: got {top!r}, expected a whole number"):
        model.predict(photos / "a.jpg", top=top)


def test_a_device_that_is_not_there_is_refused_by_name(run):
    with pytest.raises(ValueError, match=r"^device: got 'nothing' \(.*expected one"):
        load(run, "nothing")


def test_an_image_of_another_format_has_a_row(model, photos):
    """A photograph from a phone is not left out in silence."""
    (photos / "phone.HEIC").write_bytes(b"no image that PIL reads")
    files = list_files([photos])
    assert "phone.HEIC" in [file.name for file in files]
    row = next(r for r in predict_files(model, files) if r["file"].endswith("HEIC"))
    assert row["error"].endswith("expected an image; convert it to JPEG or PNG")


def test_a_table_is_no_folder(run, photos, monkeypatch, capsys):
    """Which is said before the images are read."""
    command = ["alexnet-predict", str(run), str(photos), "--csv", str(photos)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit):
        main()
    assert "csv: got " in capsys.readouterr().err
