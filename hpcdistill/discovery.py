"""Imports of modules by name: what the modules of a package register, and objects of users' own modules."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from hpcdistill.errors import UserError


def import_siblings(module: str) -> None:
    """Import every module of the package of `module`, a `__name__`, so that each has registered itself.

    Packages inside that package are not imported.
    """
    package = module.rpartition(".")[0]
    for sibling in iter_modules(import_module(package).__path__, f"{package}."):
        if not sibling.ispkg:
            import_module(sibling.name)


def import_named(text: str, key: str) -> Any:
    """Return the object that a configuration names, such as a function or a class.

    Args:
        text: module and name, as package.module:name.
        key: configuration key that holds `text`, for messages.

    Raises:
        UserError: the module cannot be imported, ends the program, or has no such name.
    """
    module, _, name = text.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{key} = {text!r} cannot be imported ({error}); name a function or class of an installed module, or one "
            "of the folder you start in"
        ) from None
    except SystemExit:  # on one rank alone it would leave the others waiting, on all it would pass for success
        raise UserError(
            f"{key} = {text!r}: importing {module} ends the program; move its script code under "
            "if __name__ == '__main__'"
        ) from None
