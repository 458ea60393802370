"""A day with one's own images, from a folder of them to a table of runs.

Everything is started as people start it: papermill, and the two commands.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_nb.engine.compare import compare
from alexnet_nb.weights import read_weights
from helpers import PATIENCE, ROOT
from helpers.textures import texture_folder

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

CLASSES = ("checked", "diagonal", "horizontal")
SIZE = dict(image_size=72, crop_size=64, width_mult=1 / 16)


def command(name, **options):
    """The words of a command with its options."""
    module, function = dict(
        train=("alexnet_nb.engine.cli", "main"), predict=("alexnet_nb.predict", "main")
    )[name]
    words = [sys.executable, "-c", f"from {module} import {function}; {function}()"]
    for option, value in options.items():
        words.append(f"--{option.replace('_', '-')}")
        words += [] if value is True else [str(value)]
    return words


class Day:
    """Where it happens, and what is run there."""

    def __init__(self, folder):
        self.work = folder / "work"
        self.elsewhere = folder / "elsewhere"
        self.cache = folder / "cache"
        self.work.mkdir()
        self.elsewhere.mkdir()

    def run(self, words):
        """Run a command in the folder of the work, and return what it prints."""
        environment = os.environ | {
            "ALEXNET_NB_CACHE": str(self.cache),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            words,
            cwd=self.work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def train_notebook(self, data, **parameters):
        """Train by papermill; return the texts of the executed notebook, in order."""
        words = [sys.executable, "-m", "papermill", str(ROOT / "nbs/train.ipynb")]
        words.append("out.ipynb")
        for name, value in dict(data=data, **parameters).items():
            words += ["-p", name, str(value)]
        self.run(words)
        notebook = json.loads((self.work / "out.ipynb").read_text())
        texts = []
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                found = output.get("text") or output["data"].get("text/markdown", "")
                texts.append("".join(found))
        return texts


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    return Day(tmp_path_factory.mktemp("day"))


def test_a_day_with_own_images(day):
    photos = texture_folder(day.elsewhere / "photos", CLASSES, count=40)
    texts = day.train_notebook(photos, batch_size=12, epochs=15, val_share=0.3, **SIZE)
    assert texts[0].startswith("**Verdict: learning")  # the first output of all
    run = day.work / "runs/photos-source2012-001"
    assert any(f'load("{run.relative_to(day.work)}")' in text for text in texts)

    # the images move, and their packed copy is gone
    moved = day.elsewhere / "moved"
    photos.rename(moved)
    shutil.rmtree(day.cache)
    check_predictions(day, run)

    others = texture_folder(day.elsewhere / "two", ("plain", "vertical"), count=20)
    tuned = day.work / "runs/tuned"
    printed = day.run(
        command(
            "train", weights=run, data=others, batch_size=12, epochs=4, out_dir=tuned
        )
    )
    assert "fc8 is new" in printed
    assert read_weights(tuned).names == ("plain", "vertical")

    printed = day.run(command("train", resume=True, out_dir=run, data=moved, epochs=18))
    assert "epochs 18 (was 15)" in printed
    assert "the images of" in printed  # which are now elsewhere
    assert "epoch 18/18" in printed
    table = str(compare(day.work / "runs" / "*"))
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = {row.split("|")[1].strip(): row for row in lines[2:]}
    assert {"photos-source2012-001", "tuned"} <= rows.keys()
    assert "18 of 18" in rows["photos-source2012-001"]
    assert "photos-source2012-001" in rows["tuned"].split("tuned", 1)[1]


def check_predictions(day, run):
    """Ask about new images of every class, and a file that is none."""
    new = texture_folder(day.elsewhere / "new", CLASSES, count=5, seed=7)
    (new / "broken.png").write_bytes(b"no image")
    day.run([*command("predict"), str(run), str(new), "--csv", "out.csv", "--top", "1"])
    with open(day.work / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    (broken,) = (row for row in rows if row["error"])
    assert broken["file"].endswith("broken.png")
    right = [r["class 1"] == Path(r["file"]).parent.name for r in rows]
    assert sum(right) >= 10  # by chance five
