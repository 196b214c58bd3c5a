"""Discovery of what the modules of a package register: a new file is enough to add to it."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules


def import_siblings(module: str) -> None:
    """Import every module of the package that `module`, a `__name__`, is in, so that each has registered itself."""
    package = module.rpartition(".")[0]
    for sibling in iter_modules(import_module(package).__path__):
        import_module(f"{package}.{sibling.name}")
