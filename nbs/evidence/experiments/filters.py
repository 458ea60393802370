"""Keep the kernels of conv1 of a run on photographs, and what the run has reached.

    python filters.py RUN FOLDER RESULTS

RUN: the folder of a run, which may have been interrupted. FOLDER: the image folder it
was trained on. RESULTS: results/filters, where conv1.npy (the kernels, float16),
run.json, epochs.tsv and flower.json (an answer about one photograph) go.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.engine.report import epoch_means, read_metrics
from alexnet_nb.engine.run_dir import RunDir
from alexnet_nb.evaluation import load_input, load_model, probabilities
from alexnet_nb.learning import error_rates
from alexnet_nb.preprocessing import resize_center_crop
from alexnet_nb.weights import newest_weights

ASKED = "recipe", "width_mult", "image_size", "crop_size", "batch_size", "precision"


def epoch_rows(folder):
    """List epoch, training loss, and validation loss and error on one crop.

    What an interrupted run did after its last checkpoint is left out.
    """
    rows = read_metrics(folder)
    kept = newest_weights(folder).parent.name  # such as step-0010004
    if kept.startswith("step-"):
        rows = [r for r in rows if r["step"] <= int(kept.removeprefix("step-"))]
    means = epoch_means(rows, "loss")
    validated = [row for row in rows if row["split"] == "val"]
    return [
        [r["epoch"], round(means[r["epoch"]], 4), round(r["loss"], 4), r["top1"]]
        for r in validated
    ]


def keep_filters(folder, images, results):
    """Write the four files."""
    config = RunDir(folder).config()
    data = load_dataset(str(images), config.image_size)
    model = load_model(folder)
    transform = load_input(folder, model)
    labels = torch.tensor(data.val.labels)
    results.mkdir(exist_ok=True)
    np.save(results / "conv1.npy", model.conv1.weight.detach().half().numpy())

    rows = epoch_rows(folder)
    with open(results / "epochs.tsv", "w", newline="") as f:
        out = csv.writer(f, delimiter="\t", lineterminator="\n")
        out.writerow(["epoch", "training loss", "validation loss", "top-1 error"])
        out.writerows(rows)
    steps = [r for r in read_metrics(folder) if r["split"] == "train"]
    seconds = sum(r["seconds"] for r in steps if r["epoch"] <= rows[-1][0])
    record = {name: getattr(config, name) for name in ASKED}
    record |= dict(
        epochs_planned=config.epochs,
        epochs=rows[-1][0],
        minutes=round(seconds / 60, 1),
        seed=config.seed,
        images=len(data.train),
        n=len(data.val),
        names=list(data.names),
    )
    for crops in (1, 10):
        p = probabilities(model, transform, data.val.images, crops)
        record[f"top1 on {crops}"] = round(error_rates(p, labels)[0], 4)
    (results / "run.json").write_text(json.dumps(record, indent=1) + "\n")

    photo = Image.fromarray(load_sample_image("flower.jpg"))
    square = np.asarray(resize_center_crop(photo, config.image_size))
    p = probabilities(model, transform, square.transpose(2, 0, 1)[None], 10)[0]
    answer = dict(zip(data.names, (round(x, 4) for x in p.tolist()), strict=True))
    (results / "flower.json").write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    keep_filters(*map(Path, sys.argv[1:4]))
