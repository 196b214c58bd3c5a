"""Imports by name: objects of users' modules, and messages where there are none."""

from pathlib import Path

import pytest

from hpcdistill.discovery import import_named
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone


def test_a_named_object_is_returned() -> None:
    assert import_named(f"{__name__}:test_a_named_object_is_returned", "key") is test_a_named_object_is_returned


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no.such.module:make", "cannot be imported .*No module named 'no'"),
        ("math:make", "cannot be imported .*has no attribute 'make'"),
    ],
)
def test_a_name_that_cannot_be_imported_is_refused_with_its_key(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"model.factory = '{text}' {message}"):
        import_named(text, "model.factory")


def test_a_script_that_exits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script_that_exits.py").write_text("import sys\nsys.exit()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"data\.factory = .* importing script_that_exits ends the program"):
        import_named("script_that_exits:make", "data.factory")
