"""Damaged files are refused or harmless, and the tool that checks it detects when they are not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repository import ROOT

pytestmark = pytest.mark.launch

TOOLS = ROOT / "tools"
WITHOUT_CHECKS = """
import sys
import fuzz_files
from hpcdistill.storage import hdf5
from hpcdistill.data import store as store_file

hdf5.VERSION = "v108"  # the superblock has a checksum, the index of chunks none
for name in ("digest", "require_whole"):
    setattr(store_file, name, lambda file: "")
sys.exit(fuzz_files.main())
"""


def fuzz(json_file: Path, *command: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the tool; return its exit code, and the outcomes of each damage to each kind of file."""
    command = (sys.executable, *command, "--tries=20", f"--json={json_file}")
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": f"{TOOLS}:{TOOLS.parent}"}, timeout=200)
    return result.returncode, json.loads(json_file.read_text())


def test_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    exit_code, found = fuzz(tmp_path / "found.json", str(TOOLS / "fuzz_files.py"))
    assert exit_code == 0
    assert len({tally["file"] for tally in found}) == 6
    for tally in found:
        assert tally.get("refused", 0) + tally.get("same", 0) == 20
        assert tally["refused"] > 10


def test_other_data_would_be_noticed(tmp_path: Path) -> None:
    exit_code, found = fuzz(tmp_path / "found.json", "-c", WITHOUT_CHECKS, "--kinds", "tokens")
    assert exit_code == 1
    assert sum(tally.get("DIFFERENT", 0) for tally in found) > 0
