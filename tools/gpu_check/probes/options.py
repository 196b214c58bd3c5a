"""Options that all programs of the check share."""

import argparse
from pathlib import Path


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the device, the size and the file of results."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--dry-run", action="store_true", help="small shapes")
    return parser
