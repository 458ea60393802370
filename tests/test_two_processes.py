"Two processes of one column each train the net that one process trains."
import json

import pytest

from alexnet_nb.training import Config, check, train


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in rows if r["split"] == "train"]


@pytest.mark.parametrize("precision, epochs, tolerance, first", [("float64", None, 1e-8, None), ("float32", 1, 1e-5, 10)])
def test_every_loss_of_the_digits_run_agrees(tmp_path, precision, epochs, tolerance, first):
    runs = []
    for gpus in (1, 2):
        folder = train(check(Config(gpus=gpus, precision=precision, epochs=epochs, out_dir=str(tmp_path / str(gpus)))))
        runs.append(losses(folder)[:first])
    one, two = runs
    assert len(one) == len(two) == (first or 480)
    worst = max(abs(a - b) for a, b in zip(one, two))
    print(f"largest difference of {len(one)} losses in {precision}: {worst:.1e}")
    assert worst <= tolerance
