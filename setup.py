"""Build the package from settings.ini, the one place that names its metadata.

nbdev reads settings.ini, too, and copies the version to `alexnet_nb/__init__.py` and
name and oldest Python to `pyproject.toml`; nothing is typed twice.
"""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
settings = ini["DEFAULT"]

STATUS = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
source = settings["git_url"]
branch = settings["branch"]
site = settings["doc_host"] + settings["doc_baseurl"]
train_requirements = settings["train_requirements"].split()
dev_requirements = settings["dev_requirements"].split()


def describe():
    """Return the README with addresses in place of paths, which PyPI cannot follow."""
    readme = (here / "README.md").read_text(encoding="utf-8")
    relative = r"\]\((?!https?:|#)"
    images = re.sub(r"(!\[[^\]]*)" + relative, rf"\1]({source}/raw/{branch}/", readme)
    return re.sub(relative, f"]({source}/blob/{branch}/", images)


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=describe(),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license_expression=settings["license"],
    license_files=["LICENSE", "alexnet_nb/*.LICENSE"],
    keywords=settings["keywords"].split(),
    project_urls={
        "Homepage": site,
        "Documentation": site,
        "Source": source,
        "Issues": f"{source}/issues",
        "Changelog": f"{source}/blob/{branch}/CHANGELOG.md",
    },
    classifiers=[
        f"Development Status :: {STATUS[settings['status']]}",
        f"Intended Audience :: {settings['audience']}",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        f"Natural Language :: {settings['language']}",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        *(
            f"Programming Language :: Python :: {version}"
            for version in settings["python_versions"].split()
        ),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["alexnet_nb", "alexnet_nb.*"]),
    package_data={"alexnet_nb": ["py.typed", "*.mplstyle", "lab.tsv", "lab.LICENSE"]},
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={
        "train": train_requirements,
        "dev": train_requirements + dev_requirements,
    },
    entry_points={
        "nbdev": ["alexnet_nb=alexnet_nb._modidx:d"],
        "console_scripts": settings["console_scripts"].split(),
    },
)
