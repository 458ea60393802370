"""AlexNet (2012): the paper, the authors' released code, and what really happens.

The names below are imported when they are first used, so that `import alexnet_nb` and
`import alexnet_nb.lrn` load no more than they need.
"""

from importlib import import_module

__version__ = "0.1.0"

# name → the module that has it
_MODULES = {
    "AlexNet": "model",
    "LRN": "lrn",
    "Recipe": "recipes",
    "compare": "engine.compare",
    "load": "predict",
    "paper": "recipes",
    "source2012": "recipes",
    "train": "engine.launch",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> object:
    """Import a name of the list above from its module."""
    if name not in _MODULES:
        raise AttributeError(
            f"{__name__}: got the name {name!r}, expected one of"
            f" {', '.join(__all__)}; check the spelling"
        )
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
