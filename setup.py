"""Everything comes from settings.ini, which nbdev reads too."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        *(f"Programming Language :: Python :: {v}" for v in ("3.11", "3.12", "3.13")),
    ],
    packages=find_packages(include=["alexnet_nb", "alexnet_nb.*"]),
    package_data={"alexnet_nb": ["*.mplstyle", "lab.tsv", "lab.LICENSE"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(),
    extras_require={
        "train": cfg["train_requirements"].split(),
        "dev": (cfg["train_requirements"] + " " + cfg["dev_requirements"]).split(),
    },
    entry_points={
        "nbdev": ["alexnet_nb=alexnet_nb._modidx:d"],
        "console_scripts": cfg["console_scripts"].split(),
    },
)
