"""Imports of modules by name: what the modules of a package register, and objects of users' own modules."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import signature
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


class NamedCall:
    """Call of a function that a section of the configuration names by the key `factory`.

    Attributes:
        arguments: keyword arguments of the call.

    Args:
        section: name of the section.
        factory: the function, as package.module:function.
        args: keyword arguments by the section's key `args`.
        offered: further arguments. The function gets those that it has parameters for, unless `args` has them.

    Raises:
        UserError: the function cannot be imported, or does not take the arguments.
    """

    def __init__(self, section: str, factory: str, args: Mapping[str, Any], **offered: Any) -> None:
        self._function = import_named(factory, f"{section}.factory")
        self._what = f"{section}.factory = {factory!r} cannot be called with {section}.args = {args}"
        self._given = " and ".join(map(repr, offered))
        try:
            parameters = signature(self._function)
            taken = {name: value for name, value in offered.items() if name in parameters.parameters}
            self.arguments = {**taken, **args}
            parameters.bind(**self.arguments)
        except (TypeError, ValueError) as error:  # of something that cannot be called, or has no signature
            raise self._refusal(error) from None

    def __call__(self) -> Any:
        """Call the function, and return what it returns.

        Raises:
            UserError: a function to which it passes its keyword arguments does not take one of them.
        """
        try:
            return self._function(**self.arguments)
        except TypeError as error:
            if any(f"unexpected keyword argument {name!r}" in str(error) for name in self.arguments):
                raise self._refusal(error) from error
            raise

    def _refusal(self, error: Exception) -> UserError:
        return UserError(
            f"{self._what} ({error}); give what it takes by name; hpcdistill itself gives only {self._given}"
        )
