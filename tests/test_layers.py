"""Layers of the package: imports go one way, and files and functions stay small."""

import ast
from collections.abc import Callable, Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

from repository import ROOT

pytestmark = pytest.mark.alone

# Each folder, or file beside them, may import itself and those before it.
LAYERS = (
    "errors output discovery kernels losses config storage distributed data models tasks exchange codistill "
    "integrations training evaluation planning reports doctor __init__ cli __main__"
)
USERS_OF_MPI = ("distributed", "exchange.window", "doctor")
LINES_OF_A_FILE = 350
LINES_OF_A_BODY = 60
# The public names; and the configuration, which is declared in several files.
HAND_ON_NAMES = ("hpcdistill", "hpcdistill.config")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# `hpcdistill/kernels` is a link, which ** does not follow.
PATHS = {module_name(path): path for part in ("**", "kernels") for path in ROOT.glob(f"hpcdistill/{part}/*.py")}
TREES = {module: ast.parse(path.read_text()) for module, path in PATHS.items()}
PACKAGES = {module_name(path.parent) for path in PATHS.values()}


def imported(module: str) -> set[str]:
    """Return what a module imports, in functions and for type checkers too, and modules of which it has the name."""
    package = module if module in PACKAGES else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in TREES else source for name in names}
        elif isinstance(node, ast.Constant) and node.value in TREES:
            found.add(node.value)
    return found


IMPORTS = {module: imported(module) for module in TREES}


def layer(module: str) -> int:
    return LAYERS.split().index(f"{module}.__init__".split(".")[1])


def reachable(module: str) -> set[str]:
    found: set[str] = set()
    new = {module}
    while new:
        new = {other for each in new for other in IMPORTS.get(each, ())} - found
        found |= new
    return found


def upward_imports() -> Iterator[str]:
    for module, others in IMPORTS.items():
        yield from (f"{module}: {other}" for other in others & TREES.keys() if layer(other) > layer(module))


def circular_imports() -> Iterator[str]:
    return (module for module in TREES if module in reachable(module))


def imports_of_the_own_package() -> Iterator[str]:
    return (module for module, others in IMPORTS.items() if module.rpartition(".")[0] in others)


def imports_of_mpi() -> Iterator[str]:
    allowed = tuple(f"hpcdistill.{each}." for each in USERS_OF_MPI)
    for module, others in IMPORTS.items():
        if {"mpi4py", "horovod"} & {other.split(".")[0] for other in others} and not f"{module}.".startswith(allowed):
            yield module


def packages_with_more_than_a_docstring() -> Iterator[str]:
    for package in PACKAGES - set(HAND_ON_NAMES):
        if package not in TREES or len(TREES[package].body) != 1 or not ast.get_docstring(TREES[package]):
            yield package


def long_files() -> Iterator[str]:
    return (module for module, path in PATHS.items() if len(path.read_text().splitlines()) > LINES_OF_A_FILE)


def long_functions() -> Iterator[str]:
    for module in TREES.keys() - {each for each in TREES if each.startswith("hpcdistill.kernels.")}:
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and node.end_lineno - body[0].lineno >= LINES_OF_A_BODY:
                    yield f"{module}.{node.name}"


RULES = [
    upward_imports,
    circular_imports,
    imports_of_the_own_package,
    imports_of_mpi,
    packages_with_more_than_a_docstring,
    long_files,
    long_functions,
]


@pytest.mark.parametrize("rule", RULES)
def test_layers(rule: Callable[[], Iterator[str]]) -> None:
    found = sorted(rule())
    assert not found, "\n".join(found)
