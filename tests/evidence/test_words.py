"""The field's words, in names, docstrings and prose.

A stranger searches for image, learning rate and training step. The pages that are not
listed in `NOT_YET` use these words, and so do the names and docstrings of the package.
"""

import ast
import json
import re

import pytest

from helpers import ROOT

# what to write instead
PRIVATE_WORDS = {
    r"\bpictures?\b": "image",
    r"(?<!standard )\bdeviations?\b": "standard deviation",
    r"(?<!learning )(?<!error )(?<!sampling )\brates?\b(?! of error)": "learning rate",
    r"\bupdates?\b": "training step",
    r"\bthe source\b": "the released code",
    r"\bviews?\b": "crop",
    r"\bgo(?:es)? on with\b": "resume",
    r"\bin the test\b": "at test time",
    r"\bdivided pixels?\b": "normalized pixels",
    r"\b(?:lies?|lying|stands?|standing|speaks?|wants?)\b": "is, has, shows, needs",
    r"\b\w*isation\b|\b(?:colours?|greys?|normalis\w+|initialis\w+)\b": "American",
    r"\bthe start\b": "initialization, beginning",
}
# names that say nothing about the value behind them
EVERYDAY_WORDS = re.compile(
    r"words?|what|found|where|there|see|say|said|need|every|alone|"
    r"theirs|told|take|taken|like|end|ahead|agree|meet|swap|hold|"
    r"lost|kept|mine|whole|some|other|another|things?|begin|begun|"
    r"gone|wanted|given|asked|known|near|far|same|pair|show|tell|"
    r"spoke|places?|enough|written|wide|here|now|then|how|why|who",
    re.I,
)
MODULES = sorted((ROOT / "alexnet_nb").rglob("[a-z]*.py"))
PAGES = sorted((ROOT / "nbs").rglob("*.ipynb"))
# Whoever has rewritten a page, or the docstrings of a module, removes it from here.
NOT_YET = {
    "nbs/00_recipes.ipynb",
    "nbs/01_preprocessing.ipynb",
    "nbs/02_relu.ipynb",
    "nbs/03_multigpu.ipynb",
    "nbs/04_lrn.ipynb",
    "nbs/05_pooling.ipynb",
    "nbs/06_model.ipynb",
    "nbs/07_augmentation.ipynb",
    "nbs/08_dropout.ipynb",
    "nbs/09_learning.ipynb",
    "nbs/10_training.ipynb",
    "nbs/11_evaluation.ipynb",
    "nbs/12_qualitative.ipynb",
    "nbs/evidence/claims.ipynb",
    "nbs/evidence/experiments/analogues.ipynb",
    "nbs/evidence/experiments/figure1.ipynb",
    "nbs/evidence/experiments/plateau.ipynb",
    "nbs/evidence/lab.ipynb",
    "nbs/evidence/pitfalls.ipynb",
    "nbs/evidence/survived.ipynb",
    "nbs/guides/scale.ipynb",
    "nbs/guides/train.ipynb",
    "nbs/guides/troubleshooting.ipynb",
    "nbs/index.ipynb",
    "nbs/tour.ipynb",
}


def relative(path):
    """Name a file as `NOT_YET` does."""
    return str(path.relative_to(ROOT))


def rewritten(paths):
    """Leave out the files that are not rewritten yet."""
    return [path for path in paths if relative(path) not in NOT_YET]


def private_words(text):
    """Find the private words of a text outside of code, formulas and links."""
    code = r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)]*\)|<[^>]*>"
    text = re.sub(code, " ", text, flags=re.S)
    words = []
    for pattern, instead in PRIVATE_WORDS.items():
        for match in re.finditer(pattern, text, re.I):
            context = text[max(0, match.start() - 30) : match.end() + 20]
            words.append(f"{context!r}: write {instead}")
    return words


def page_words(path):
    """Find the private words in the prose of a page."""
    words = []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            words += private_words("".join(cell["source"]))
    return words


def docstring_words(path):
    """Find the private words in the docstrings of a module."""
    words = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            words += private_words(ast.get_docstring(node) or "")
    return words


def bound_names(tree):
    """List the names of two letters and more that a module binds."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            is_bound = isinstance(node.ctx, ast.Store)
            name = node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            is_bound, name = True, node.arg
        else:
            is_bound = isinstance(node, ast.FunctionDef | ast.ClassDef)
            name = node.name if is_bound else ""
        if is_bound and len(name) > 1:
            names.append(name)
    return names


def test_what_is_rewritten_leaves_the_list():
    """A page or module of the list has a private word still, or does not exist."""
    clean = []
    for name in NOT_YET:
        if (ROOT / name).suffix == ".py":
            words = docstring_words(ROOT / name)
        else:
            words = page_words(ROOT / name)
        if not words:
            clean.append(name)
    assert clean == []


@pytest.mark.parametrize("path", rewritten(PAGES), ids=relative)
def test_pages_use_the_words_of_the_field(path):
    assert page_words(path) == []


@pytest.mark.parametrize("path", rewritten(MODULES), ids=relative)
def test_docstrings_use_the_words_of_the_field(path):
    assert docstring_words(path) == []


def test_names_say_what_a_value_is():
    """At most one name in two hundred is an everyday word."""
    everyday, total = [], 0
    for path in MODULES:
        names = bound_names(ast.parse(path.read_text()))
        total += len(names)
        everyday_names = filter(EVERYDAY_WORDS.fullmatch, names)
        everyday += [(relative(path), name) for name in everyday_names]
    assert len(everyday) <= 0.005 * total, everyday
