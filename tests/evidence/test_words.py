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
NOT_YET: set[str] = set()


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


def relative(path):
    """Name a file as `NOT_YET` does."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_pages_use_the_words_of_the_field(path):
    if relative(path) in NOT_YET:
        pytest.skip("not rewritten yet")
    words = []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            words += private_words("".join(cell["source"]))
    assert words == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_docstrings_use_the_words_of_the_field(path):
    if relative(path) in NOT_YET:
        pytest.skip("not rewritten yet")
    words = []
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, documented):
            words += private_words(ast.get_docstring(node) or "")
    assert words == []


def test_names_say_what_a_value_is():
    """At most one name in two hundred is an everyday word."""
    everyday, total = [], 0
    for path in MODULES:
        names = bound_names(ast.parse(path.read_text()))
        total += len(names)
        everyday_names = filter(EVERYDAY_WORDS.fullmatch, names)
        everyday += [(relative(path), name) for name in everyday_names]
    assert len(everyday) <= 0.005 * total, everyday
