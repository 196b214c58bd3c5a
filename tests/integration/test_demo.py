"""Sentences of the demo, from results whose answer is known."""

import sys
from pathlib import Path

import pytest

from repository import ROOT

sys.path.append(str(ROOT / "tools"))

from demo_report import describe_churn, describe_steps

from hpcdistill.reports.compare import compare
from metrics_files import write_losses

pytestmark = pytest.mark.alone


def test_churn_is_described_by_the_change_and_both_losses() -> None:
    text = describe_churn(0.04, 0.03, 0.4661, 0.4655)
    assert "by 4.00 percentage points on average" in text
    assert "by 3.00: 25 % less, at a log loss of 0.4655 against 0.4661." in text
    assert ": 50 % more, at" in describe_churn(0.04, 0.06, 0.4661, 0.4655)


def test_the_language_model_is_described_at_a_loss_that_both_reached(tmp_path: Path) -> None:
    plain = write_losses(tmp_path / "plain", [3.0, 2.5, 2.0, 1.5])
    taught = write_losses(tmp_path / "taught", [3.0, 2.0, 1.9], [2.8, 2.4, 2.1])
    text = describe_steps(compare([plain, taught]))
    assert "1.900 nats per token, took a codistilled group 300 steps and the plain run 400." in text
    assert "both groups had read 9,600 sequences together, the plain run 6,400." in text
    assert "are 1.900 and 1.500." in text
