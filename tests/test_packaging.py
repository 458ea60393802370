"""The wheel builds, installs and imports outside the repository, and needs torch, torchvision and numpy only."""

import configparser
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        ["git", "-C", ROOT, "checkout-index", "-a", f"--prefix={folder}/tree/"],
        check=True,
    )
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run(
        [
            *pip,
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            folder,
            folder / "tree",
        ],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True
    )
    return folder / "site"


def test_lrn_needs_torch_torchvision_numpy_only(installed):
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in ("fastcore", "nbdev", "IPython", "matplotlib", "sklearn", "scipy", "papermill", "safetensors", "PIL", "execnb"):
            raise ImportError(name + " is not among the requirements")
sys.path.insert(0, {str(installed)!r})
sys.meta_path.insert(0, Refuse())
from alexnet_nb.lrn import LRN
import alexnet_nb, torch
assert alexnet_nb.__file__.startswith({str(installed)!r}), alexnet_nb.__file__
print(LRN()(torch.ones(1, 5, 1, 1)).shape)
import alexnet_nb.qualitative, alexnet_nb.training
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        capture_output=True,
        text=True,
        cwd=installed,
    )
    assert "torch.Size([1, 5, 1, 1])" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


def test_data_files_are_in_the_wheel(installed):
    for name in ("figures.mplstyle", "lab.tsv", "lab.LICENSE"):
        assert (installed / "alexnet_nb" / name).exists(), name


def test_constraints_are_the_pins_of_settings():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    pins = {
        w
        for k in ("dev_requirements", "train_requirements")
        for w in settings["DEFAULT"][k].split()
        if "==" in w
    }
    listed = {
        l
        for l in (ROOT / "constraints.txt").read_text().splitlines()
        if l and not l.startswith("#")
    }
    assert listed == pins
