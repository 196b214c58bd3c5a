"""The command plan: its table, its verdict and its JSON."""

import json
from pathlib import Path

import pytest

from hpcdistill.cli.main import main
from pilots import write_pilot

pytestmark = pytest.mark.alone


def test_table_inputs_verdict_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pilot, file = write_pilot(tmp_path / "pilot", noise_scale=320), tmp_path / "new" / "plan.json"
    command = ["plan", str(pilot), "--ranks", "8", "--link", "1.25,50", "--steps", "2000", "--json", str(file)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("To a validation loss of 1.5")
    assert lines[1].split("  ")[0] == "groups x ranks"
    assert [line[:5] for line in lines[2:10]] == [f"{each} x {ranks}" for each, ranks in ROWS]
    assert any(line.endswith("computed for --link") for line in lines)
    assert lines[-2].startswith("Verdict: more workers, because the gradient noise scale is ")
    assert lines[-1].startswith("If reproducible predictions (churn) are the aim, a second group pays")
    found = json.loads(file.read_text())
    assert found["verdict"]["answer"] == "more workers"
    assert [(row["groups"], row["ranks"]) for row in found["rows"]] == ROWS
    assert {"name", "value", "unit", "origin"} == found["inputs"][0].keys()


ROWS = [(1, 1), (1, 2), (2, 1), (1, 4), (4, 1), (1, 8), (2, 4), (4, 2)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--link", "1.25"], "--link 1.25 is not two numbers"),
        (["--ranks", "0"], "'0' is not an integer > 0"),
        (["--ranks", "4,x"], "'x' is not an integer > 0"),
    ],
)
def test_bad_options_are_named(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", str(write_pilot(tmp_path / "pilot")), *words])
    assert message in capsys.readouterr().err
