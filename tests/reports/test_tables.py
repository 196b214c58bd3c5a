"""Results as text and as JSON."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcdistill.errors import UserError
from hpcdistill.reports.tables import cell, print_result

pytestmark = pytest.mark.alone


@dataclass
class Finding:
    scores: dict[str, list[float]]


def test_numbers_that_are_not_finite_are_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "new" / "found.json"
    print_result("a table", Finding({"a": [math.nan, 0.5, math.inf]}), found)
    assert capsys.readouterr().out == "a table\n"
    assert json.loads(found.read_text()) == {"scores": {"a": [None, 0.5, None]}}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--json {tmp_path} cannot be written: Is a directory; choose another file"):
        print_result("a table", Finding({}), tmp_path)


def test_cells() -> None:
    assert [cell(value) for value in (1.23456, math.nan, math.inf)] == ["1.2346", "-", "inf"]
