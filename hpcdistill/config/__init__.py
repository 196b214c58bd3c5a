"""Configuration: a file for each section but `model`, and the reader of files. Imports: errors."""

from hpcdistill.config.load import load_config
from hpcdistill.config.schema import Config

__all__ = ["Config", "load_config"]
