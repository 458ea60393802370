"""The rooms of the package: what imports what, and how large a room may be."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

from helpers import ROOT

PACKAGE = ROOT / "alexnet_nb"


LONGEST_MODULE = 500  # lines


LONGEST_FUNCTION = 40


WIDEST_LINE = 88


# From the ground up. A module imports its own floor, without a circle, and those below.
FLOORS = [
    {
        "base.figures",
        "base.files",
        "base.processes",
        "base.rng",
        "base.table",
        "kernels",
        "triton_kernels",
    },
    {
        "recipes",
        "relu",
        "lrn",
        "multigpu",
        "pooling",
        "data.workers",
        "data.journal",
    },
    {"lab", "preprocessing", "model", "augmentation", "dropout", "learning"},
    {
        "data.splitting",
        "data.packed",
        "data.sources",
        "data.packing",
        "data.datasets",
        "training",
        "weights",
    },
    {
        "engine.config",
        "engine.recipe_text",
        "engine.distributed",
        "engine.resume",
        "engine.run_dir",
        "engine.transfer",
        "engine.loader",
        "engine.capture",
        "engine.trainer",
        "engine.validation",
        "engine.metrics",
        "engine.checkpoint",
        "engine.early_stopping",
        "engine.verify",
        "engine.loop",
        "engine.frontend",
        "engine.launch",
        "engine.cli",
        "engine.plan",
    },
    {"evaluation", "qualitative"},
    {"engine.report", "engine.mistakes", "engine.compare"},
    {"predict"},
]


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def modules():
    paths = [p for p in PACKAGE.rglob("*.py") if not p.name.startswith("_")]
    return {module_name(path): ast.parse(path.read_text()) for path in paths}


def imports(name, tree):
    """Modules of the package that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        target = node.module or ""
        if [alias.name for alias in node.names] == ["__version__"]:
            continue  # of the package itself, which imports nothing
        if node.level:  # 1: from the folder of this module
            parts = name.split(".")[: -node.level]
            found.add(".".join([*parts, target]))
        elif target.startswith("alexnet_nb."):
            found.add(target.removeprefix("alexnet_nb."))
    return found


def test_every_module_has_a_floor():
    assert sorted(modules()) == sorted(set().union(*FLOORS))


def test_no_import_runs_up():
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    upward = []
    for name, tree in modules().items():
        for other in imports(name, tree):
            if floor[other] > floor[name]:
                upward.append(f"{name} imports {other}")
    assert upward == []


def test_imports_make_no_circle():
    graph = {name: imports(name, tree) for name, tree in modules().items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


def test_every_module_has_a_file_of_unit_tests():
    missing = []
    for name in modules():
        *folders, module = name.split(".")
        path = Path("tests/unit", *folders, f"test_{module}.py")
        if not (ROOT / path).exists():
            missing.append(str(path))
    assert missing == []


def wide_lines(text):
    """List the lines of a module that are too wide, without those of `__all__`."""
    names = re.search(r"^__all__ = \[.*?\]$", text, re.DOTALL | re.MULTILINE)
    if names:
        text = text.replace(names[0], "")
    return [line for line in text.splitlines() if len(line) > WIDEST_LINE]


def test_no_line_is_too_wide():
    """Ruff formats the notebooks; here is what nbdev makes of them."""
    for path in PACKAGE.rglob("*.py"):
        if path.name != "_modidx.py":
            assert wide_lines(path.read_text()) == [], path


def test_a_wide_line_is_found_beside_a_list_of_names():
    names = f"__all__ = ['a',\n{' ' * 90}'b']\n"
    assert wide_lines(names) == []
    assert wide_lines(names + "x" * 89) == ["x" * 89]


def test_no_module_is_too_long():
    long = []
    for path in PACKAGE.rglob("*.py"):
        lines = len(path.read_text().splitlines())
        if lines > LONGEST_MODULE and not path.name.startswith("_"):
            long.append(module_name(path))
    assert long == []


def test_no_function_is_too_long():
    long = []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{name}.{node.name}: {lines} lines")
    assert long == []


@pytest.mark.parametrize(
    "search",
    ["prefetch", "train_step", "is_main", "atomic_write", "num_classes", "file_lock"],
)
def test_what_the_field_calls_a_thing_finds_it(search):
    sources = [p.read_text() for p in PACKAGE.rglob("*.py") if p.name[0] != "_"]
    names = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            names.add(getattr(node, "name", None))
            names.add(getattr(node, "arg", None))
    assert search in names


def test_a_relative_import_within_a_function_is_found():
    tree = ast.parse("def f():\n    from ..engine.launch import train\n")
    assert imports("base.files", tree) == {"engine.launch"}


def errors_of(path):
    """Yield line and message of each error that a module makes, values as {}."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = getattr(node.func, "id", "")
        message = node.args[0]
        if name.endswith("Error") and isinstance(message, ast.JoinedStr | ast.Constant):
            parts = getattr(message, "values", [message])
            text = [getattr(part, "value", "") for part in parts]
            yield node.lineno, "".join(t if isinstance(t, str) else "{}" for t in text)


GRAMMAR = re.compile(r"[\w{}./]+: got .+, expected .+; .+", re.DOTALL)


@pytest.mark.parametrize("room", [".", "base", "data", "engine"])
def test_errors_have_one_grammar(room):
    """NAME: got VALUE, expected WHAT; do THIS."""
    errors = []
    for path in sorted((ROOT / "alexnet_nb" / room).glob("*.py")):
        errors += [(path.name, line, text) for line, text in errors_of(path)]
    assert len(errors) >= {".": 20, "base": 3, "data": 20, "engine": 20}[room]
    assert [error for error in errors if not GRAMMAR.fullmatch(error[2])] == []


@pytest.mark.parametrize(
    "message", ["size: found {}, not 3", "size: got {}, expected {}"]
)
def test_an_error_of_another_grammar_is_found(tmp_path, message):
    (tmp_path / "x.py").write_text(
        f"raise ValueError(f'{message.format('{x}', '{y}')}')"
    )
    ((_, text),) = errors_of(tmp_path / "x.py")
    assert text == message
    assert not GRAMMAR.fullmatch(text)
