"""Discovery of what the modules of a package register: a new file is enough to add to it."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages


def import_siblings(module: str) -> None:
    """Import every module in and below the package of `module`, a `__name__`, so that each has registered itself."""
    package = module.rpartition(".")[0]
    for sibling in walk_packages(import_module(package).__path__, f"{package}."):
        import_module(sibling.name)
