"""The command compare: its table, its JSON and its page."""

import json
from pathlib import Path

import pytest

from hpcdistill.cli.main import main
from metrics_files import write_losses

pytestmark = pytest.mark.alone


def test_table_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        str(write_losses(tmp_path / name, losses)) for name, losses in (("a", [3.0, 2.0]), ("b", [3.0, 2.6]), ("c", []))
    ]
    found, page = tmp_path / "new" / "found.json", tmp_path / "page" / "page.html"
    command = ["compare", *runs, "--target", "2.5", "--json", str(found), "--output", str(page)]
    assert main(command) == 0
    titles, *rows = capsys.readouterr().out.splitlines()[:4]
    assert "steps to 2.5000" in titles
    assert [row.split()[5:] for row in rows] == [
        ["2.0000", "200", "1.0000", "20.0", "3,200"],
        ["2.6000", "not", "reached", "-", "-", "-"],
        ["-", "not", "reached", "-", "-", "-"],
    ]
    result = json.loads(found.read_text())
    assert result["runs"][0]["reached"] == {"group": 0, "steps": 200, "seconds": 20.0, "examples": 3200}
    assert [(run["reached"], run["ratio"], run["best"]) for run in result["runs"][1:]] == [
        (None, None, 2.6),
        (None, None, None),
    ]
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "a &lt;book&gt;" in text
    assert '<td class="number">not reached</td>' in text
