"""The command train, apart from training."""

from pathlib import Path

import pytest

from hpcdistill.cli.train import write_run_report

pytestmark = pytest.mark.alone


def test_a_run_whose_report_cannot_be_written_has_not_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run_report(tmp_path / "gone")
    assert "warning: no report: " in capsys.readouterr().err
