"""The wheel builds, installs and imports outside the repository.

A part such as LRN needs torch, torchvision and numpy only.
"""

import configparser
import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from helpers import ROOT

PIP = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini")
    return parser["DEFAULT"]


def checkout(folder):
    """Put what is committed, or about to be, into a folder of its own."""
    command = ["git", "-C", ROOT, "checkout-index", "-a", f"--prefix={folder}/"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, made from the source distribution as a release makes it."""
    tree = checkout(tmp_path_factory.mktemp("tree"))
    folder = tmp_path_factory.mktemp("wheel")
    build = (
        f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    )
    command = [sys.executable, "-c", build]
    subprocess.run(command, check=True, cwd=tree, stdout=subprocess.DEVNULL)
    (sdist,) = folder.glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([*PIP, "wheel", *options, sdist], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as files:
        (name,) = [n for n in files.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(files.read(name))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    command = [*PIP, "install", "--no-deps", "--target", site, wheel]
    subprocess.run(command, check=True)
    return site


REFUSED = (
    *("fastcore", "nbdev", "IPython", "matplotlib", "sklearn", "scipy", "papermill"),
    *("safetensors", "PIL", "execnb"),
)


@pytest.mark.slow
def test_lrn_needs_torch_torchvision_numpy_only(installed):
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in {REFUSED!r}:
            raise ImportError(name + " is not among the requirements")
sys.path.insert(0, {str(installed)!r})
sys.meta_path.insert(0, Refuse())
from alexnet_nb.lrn import LRN
import alexnet_nb, torch
assert alexnet_nb.__file__.startswith({str(installed)!r}), alexnet_nb.__file__
print(LRN()(torch.ones(1, 5, 1, 1)).shape)
import alexnet_nb.qualitative, alexnet_nb.engine.cli
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
    for name in ("figures.mplstyle", "lab.tsv", "lab.LICENSE", "py.typed"):
        assert (installed / "alexnet_nb" / name).exists(), name


def test_metadata_of_the_wheel(metadata, settings):
    assert metadata["Name"] == "alexnet_nb"
    assert metadata["Version"] == settings["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License"] is None
    assert metadata["Requires-Python"] == ">=3.11"
    assert dict(u.split(", ") for u in metadata.get_all("Project-URL")) == {
        "Homepage": "https://alexnet-nb.github.io/alexnet_nb",
        "Documentation": "https://alexnet-nb.github.io/alexnet_nb",
        "Source": "https://github.com/alexnet-nb/alexnet_nb",
        "Issues": "https://github.com/alexnet-nb/alexnet_nb/issues",
        "Changelog": "https://github.com/alexnet-nb/alexnet_nb/blob/main/CHANGELOG.md",
    }
    classifiers = metadata.get_all("Classifier")
    assert "Typing :: Typed" in classifiers
    assert sum(c.startswith("Development Status ::") for c in classifiers) == 1
    assert not [c for c in classifiers if c.startswith("License ::")]


def test_pypi_can_follow_the_links_of_the_readme(metadata):
    targets = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    assert targets
    assert not [t for t in targets if not t.startswith(("https://", "#"))]


def test_python_versions_are_the_tested_ones(metadata, settings):
    """A classifier for each Python that CI runs, and the oldest is the one required."""
    with open(ROOT / ".github/workflows/test.yml") as f:
        tested = yaml.safe_load(f)["jobs"]["test"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    named = [
        classifier.removeprefix(prefix)
        for classifier in metadata.get_all("Classifier")
        if classifier.startswith(prefix + "3.")
    ]
    assert named == tested
    assert named[0] == settings["min_python"]
    assert metadata["Requires-Python"] == f">={named[0]}"


def test_export_keeps_the_type_marker_and_the_metadata(tmp_path):
    """nbdev_export writes name and oldest Python to pyproject.toml, and no more."""
    tree = checkout(tmp_path)
    before = (ROOT / "pyproject.toml").read_text()
    changed = before.replace(">=3.11", ">=3.9")
    assert changed != before
    (tree / "pyproject.toml").write_text(changed)
    export = Path(sys.executable).with_name("nbdev_export")
    subprocess.run(export, check=True, cwd=tree, capture_output=True)
    assert (tree / "pyproject.toml").read_text() == before
    assert (tree / "alexnet_nb/py.typed").exists()


def test_citation_names_what_settings_name(metadata):
    with open(ROOT / "CITATION.cff") as f:
        citation = yaml.safe_load(f)
    urls = dict(u.split(", ") for u in metadata.get_all("Project-URL"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["repository-code"] == urls["Source"]
    assert citation["url"] == urls["Homepage"]
    assert citation["license"] == metadata["License-Expression"]
    assert citation["authors"] == [{"name": metadata["Author"]}]
    (paper,) = citation["references"]
    assert paper["year"] == 2012
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Krizhevsky", "Sutskever", "Hinton"]


def test_constraints_are_the_pins_of_settings(settings):
    pins = {
        w
        for k in ("dev_requirements", "train_requirements")
        for w in settings[k].split()
        if "==" in w
    }
    listed = {
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert listed == pins
