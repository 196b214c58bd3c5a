"""The root of the repository, for tests of what lies beside the package."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
