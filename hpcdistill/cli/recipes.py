"""Configurations that are installed with the package."""

from __future__ import annotations

import logging
import re
from argparse import ArgumentTypeError
from pathlib import Path

from hpcdistill.config.paths import input_path
from hpcdistill.distributed.launch import is_first_rank

logger = logging.getLogger(__name__)

RECIPES = Path(__file__).parents[1] / "configs"


def config_path(text: str) -> Path:
    """Return the path of a configuration file, or of the recipe that is meant; an argparse type.

    A recipe is named `demo`, or `configs/demo.toml` as in the repository, and used where there is no such file.
    """
    path = input_path(text)
    named = re.fullmatch(r"(?:configs/)?(\w+)(\.toml)?", text)
    if named is None or path.exists():
        return path
    recipe = RECIPES / f"{named[1]}.toml"
    if recipe.exists():
        if is_first_rank():
            logger.info(f"there is no file {text} in this folder; using the recipe {recipe}")
        return recipe
    if named[2]:
        return path
    recipes = ", ".join(sorted(each.stem for each in RECIPES.glob("*.toml")))
    raise ArgumentTypeError(f"{text!r} is neither a file nor a recipe; name a file, or one of {recipes}")
