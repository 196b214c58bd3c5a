"""Layout of a folder of images: one folder for each class, directly below it."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from hpcdistill.data.prepare.folder import PassedOver, children, mode_of
from hpcdistill.errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
TRAINING = ("train", "training")
VALIDATION = ("val", "valid", "validation", "test", "testing")  # in order of preference


def is_picture(name: str) -> bool:
    """Return whether a file should be an image, by its name."""
    return name.lower().endswith(SUFFIXES)


def class_names(folder: Path, passed_over: PassedOver) -> list[str]:
    """Return the names of the classes, which are the folders in `folder`, sorted.

    A folder may be a link. Files, hidden folders and links to parent folders are counted in `passed_over`.

    Raises:
        OSError: the folder cannot be read.
        UserError: there are no folders, or they are parts of the data, such as train and val, or contain the classes.
    """
    names = _folders(folder, passed_over)
    if not names:
        raise UserError(f"{folder} has no folders in it; it needs one for each class, with the pictures of it")
    _refuse_parts(folder, names)
    if len(names) > 1 and not any(_has_pictures(folder / name) for name in names):
        _refuse_classes_below(folder, names)
    return names


def require_two(folder: Path, names: list[str]) -> None:
    """Check that there are at least two classes.

    Raises:
        UserError: `folder` has only one class.
    """
    if len(names) == 1:
        one = folder / names[0]
        remedy = "add a folder for another one" if _has_pictures(one) else f"give {_options_below(one)}"
        raise UserError(f"{folder} has one class only, {names[0]!r}, and needs at least two; {remedy}")


def _refuse_parts(folder: Path, names: list[str]) -> None:
    parts = [name for name in names if name.lower() in TRAINING + VALIDATION]
    has_training = any(name.lower() in TRAINING for name in parts)
    is_class = has_training and len(parts) == 1 < len(names)  # the vehicle, beside a car and a bus
    if parts and not is_class:
        remedy = f"give {_options_below(folder)}" if has_training else f"take it out of {folder}"
        raise UserError(
            f"the folders of {folder} must be classes, and not parts of the data as {' and '.join(map(repr, parts))}; "
            f"{remedy}, or give it another name if it is a class"
        )


def _refuse_classes_below(folder: Path, names: list[str]) -> None:
    for name in names:
        if len(inner := _folders(folder / name, PassedOver())) > 1:
            raise UserError(
                f"the folders of {folder} have no pictures in them but only folders, as {folder / name / inner[0]}; if "
                f"those are the classes, give {_options_below(folder / name)}; if not, put the pictures of each class, "
                "or links to them, directly into its folder"
            )


def _folders(folder: Path, passed_over: PassedOver) -> list[str]:
    names = []
    for entry in children(folder):
        if entry.name.startswith("."):
            passed_over.add("hidden", entry.path)
        elif not mode_of(entry):
            passed_over.add("dangling links", entry.path)
        elif not stat.S_ISDIR(mode_of(entry)):
            passed_over.add("beside the folders of the classes", entry.path)
        elif entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve()):
            passed_over.add("links to parent folders", entry.path)
        else:
            names.append(entry.name)
    return names


def _has_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_picture(entry.name) and not stat.S_ISDIR(mode_of(entry)) for entry in entries)


def _options_below(folder: Path) -> str:
    """Return the options for data whose classes are in `folder` or below it, as far as the names show."""
    while True:
        names = _folders(folder, PassedOver())
        training, validation = ([name for name in names if name.lower() in part] for part in (TRAINING, VALIDATION))
        if training:
            validation.sort(key=lambda name: VALIDATION.index(name.lower()))
            options = [("--input", training[0]), *[("--validation", name) for name in validation[:1]]]
            return " ".join(f"{option} {shlex.quote(str(folder / name))}" for option, name in options)
        if len(names) != 1 or _has_pictures(folder / names[0]):
            return f"--input {shlex.quote(str(folder))}"
        folder = folder / names[0]
