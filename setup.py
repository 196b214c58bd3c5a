"""What pyproject.toml cannot say; the metadata is there."""

from setuptools import setup

setup()
