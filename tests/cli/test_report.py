"""The command report."""

from pathlib import Path

import pytest

from hpcdistill.cli.main import main
from metrics_files import write


@pytest.mark.launch  # an error ends the whole job
def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    header = {"ranks_per_group": 1, "parameters": 1000}
    write(tmp_path / "run", 0, config={"data": {"batch_size": 16}}, **header)
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "run"), "--output", "/proc/self/report.html"])
    said = capsys.readouterr().err
    assert "--output" in said
    assert "/proc/self/report.html" in said
    assert "Traceback" not in said
