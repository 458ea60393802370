"Experiments keep to the protocol that was written before them, and their notebooks show what their results hold."
import hashlib
import json
import math

import papermill
import pytest
from conftest import ROOT

EXPERIMENTS = sorted(p.stem for p in (ROOT / "nbs/experiments").glob("*.ipynb"))


@pytest.fixture
def cifar(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "nbs/experiments")
    import cifar
    return cifar


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_protocol_is_the_one_that_was_followed(name):
    folder = ROOT / "results" / name
    assert json.loads((folder / "env.json").read_text())["protocol"] == hashlib.sha256((folder / "protocol.md").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_redrawn_from_results_it_says_the_same(name, tmp_path):
    "Run again without training, every output is what is stored; pictures are compared by their presence."
    path = ROOT / f"nbs/experiments/{name}.ipynb"
    papermill.execute_notebook(path, tmp_path / "out.ipynb", cwd=path.parent, progress_bar=False)
    kept = lambda p: [(c["id"], sorted(o.get("data", {})), "".join(o.get("data", {}).get("text/markdown", "")), "".join(o.get("text", "")))
                      for c in json.loads(p.read_text())["cells"] for o in c.get("outputs", [])]
    again = {k[0]: k for k in kept(tmp_path / "out.ipynb")}
    for k in kept(path): assert again[k[0]] == k


def test_figure1_keeps_to_its_design(cifar):
    "Seeds of the arms were not used for the rates; the rate is the best of a grid that it lies inside; at most six runs an arm."
    jobs = [job for job, _ in cifar.read(ROOT / "results/figure1")]
    assert len({json.dumps(j, sort_keys=True) for j in jobs}) == len(jobs)
    rates = cifar.best(ROOT / "results/figure1")
    for arm, lr in rates.items():
        grid = sorted({j["lr"] for j in jobs if j["epochs"] == 3 and (j["activation"], j["start"]) == arm})
        assert grid[0] < lr < grid[-1] and all(b / a == pytest.approx(10**0.5, rel=0.06) for a, b in zip(grid, grid[1:]))
        main = [j for j in jobs if j["epochs"] == 60 and (j["activation"], j["start"]) == arm]
        assert all(j["lr"] == lr for j in main) and [j["seed"] for j in sorted(main, key=lambda j: j["seed"])] == sorted({j["seed"] for j in main}) and all(0 <= j["seed"] < 6 for j in main)


def test_crossing_is_interpolated(cifar):
    assert cifar.crossing([(1.0, 0.5), (2.0, 0.2)]) == pytest.approx(1 + 0.25 / 0.3)
    assert cifar.crossing([(1.0, 0.5), (2.0, 0.3)]) is None


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_calibrated_start_keeps_the_signal(cifar, activation):
    "Deviation times the root of the fan-in is the gain, in conv1 divided by the deviation of the pixels."
    net = cifar.three_convolutions(activation, "gain", 0, 63.0)
    for p in net.parameters():
        if p.dim() > 1:
            gain = p.std().item() * math.sqrt(p[0].numel()) * (63 if p is net.features[0].weight else 1)
            assert gain == pytest.approx(cifar.GAINS[activation], rel=0.05)
