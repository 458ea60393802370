"""Figure 4 for a run on an image folder.

Five guesses for eight pictures, and the nearest training pictures of five.

    python figure4.py RUN FOLDER RESULTS

RUN: the folder of a run that has ended. FOLDER: the image folder it was trained on.
RESULTS: where figure4.json and figure4.jpg go, the pictures in a row, with the files
they are from. The queries are the first of the validation set as it was packed: nothing
is picked.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from alexnet_nb.augmentation import InputTransform
from alexnet_nb.data.datasets import load_dataset
from alexnet_nb.data.sources import list_images
from alexnet_nb.engine.run_dir import RunDir
from alexnet_nb.evaluation import load_model, probabilities
from alexnet_nb.qualitative import hidden_features, nearest

PREDICTED, QUERIES, NEAREST, SIDE = 8, 5, 6, 96


def figure4(run, folder, results):
    config = RunDir(run).config()
    data, model, files = (
        load_dataset(folder, config.image_size),
        load_model(run),
        list_images(folder, 0).splits,
    )
    see = InputTransform(model.recipe, data.mean, data.cov)

    def flat(split):
        return torch.tensor(split.images[:]).flatten(1).float()

    by = dict(
        fc7=nearest(
            hidden_features(model, see, data.val.images),
            hidden_features(model, see, data.train.images),
            NEAREST,
        ),
        pixels=nearest(flat(data.val), flat(data.train), NEAREST),
    )
    labels = {
        split: torch.tensor(getattr(data, split).labels) for split in ("train", "val")
    }
    same = {
        name: (labels["train"][found] == labels["val"][:, None]).float().mean().item()
        for name, found in by.items()
    }
    tiles = []

    def tile(split, i):
        if (split, i) not in tiles:
            tiles.append((split, i))
        return tiles.index((split, i))

    p = probabilities(model, see, data.val.images[:PREDICTED], model.recipe.views)
    record = dict(
        names=data.names,
        same_label=same,
        n=len(data.val),
        predictions=[
            dict(tile=tile("val", i), p=[round(v, 4) for v in row])
            for i, row in enumerate(p.tolist())
        ],
        queries=[
            dict(tile=tile("val", i))
            | {
                name: [tile("train", j) for j in found[i].tolist()]
                for name, found in by.items()
            }
            for i in range(QUERIES)
        ],
    )
    record["tiles"] = [
        dict(file=str(files[s][i][0].relative_to(folder)), label=int(labels[s][i]))
        for s, i in tiles
    ]
    small = [
        Image.fromarray(getattr(data, s).images[i].transpose(1, 2, 0)).resize(
            (SIDE, SIDE), Image.Resampling.LANCZOS
        )
        for s, i in tiles
    ]
    Image.fromarray(np.concatenate([np.asarray(im) for im in small], 1)).save(
        results / "figure4.jpg", quality=80
    )
    (results / "figure4.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    figure4(*map(Path, sys.argv[1:]))
