"""Imports by name: objects of users' modules, and messages where there are none."""

from pathlib import Path
from typing import Any

import pytest

from hpcdistill.discovery import NamedCall, import_named
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


def add(first: int, second: int = 0) -> int:
    return first + second


def add_any(**numbers: int) -> int:
    return add(**numbers)


def fail(**_: Any) -> None:
    add(third=3)  # type: ignore[call-arg]


def test_a_function_is_offered_what_it_has_parameters_for() -> None:
    assert NamedCall("data", f"{__name__}:add", {"first": 1}, second=2, third=3)() == 3
    assert NamedCall("data", f"{__name__}:add", {"first": 1, "second": 5}, second=2)() == 6
    assert NamedCall("data", f"{__name__}:add_any", {"first": 1}, second=2)() == 1


def test_arguments_that_a_function_does_not_take_are_refused() -> None:
    message = r"cannot be called with data.args = {'third': 3} \(.*\); give what it takes .* gives only 'second'"
    with pytest.raises(UserError, match=rf"data.factory = '{__name__}:add' {message}"):
        NamedCall("data", f"{__name__}:add", {"third": 3}, second=2)
    with pytest.raises(UserError, match=rf"data.factory = '{__name__}:add_any' {message}"):
        NamedCall("data", f"{__name__}:add_any", {"third": 3}, second=2)()


def test_an_error_within_a_function_is_its_own() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'third'"):
        NamedCall("data", f"{__name__}:fail", {"first": 1})()
