"""Names of the package are the field's standard terms, not everyday words.

Pages, docstrings and printed lines have a test of their own, tests/site/test_prose.py.
"""

import ast
import re

from helpers import ROOT

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


def relative(path):
    """Name a file from the top of the repository."""
    return str(path.relative_to(ROOT))


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


def test_names_say_what_a_value_is():
    """At most one name in two hundred is an everyday word."""
    everyday, total = [], 0
    for path in MODULES:
        names = bound_names(ast.parse(path.read_text()))
        total += len(names)
        everyday_names = filter(EVERYDAY_WORDS.fullmatch, names)
        everyday += [(relative(path), name) for name in everyday_names]
    assert len(everyday) <= 0.005 * total, everyday
