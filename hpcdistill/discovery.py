"""Discovery of what a package's modules register: a new file is enough to add to it."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules


def import_modules(package: str) -> None:
    """Import every module of `package`, so that each has registered what it provides."""
    for module in iter_modules(import_module(package).__path__):
        import_module(f"{package}.{module.name}")
