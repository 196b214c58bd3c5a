"""Root of the repository, for tests of files beside the package."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
