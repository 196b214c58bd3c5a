"""Traces of the configured steps."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

from hpcdistill.training.profiler import StepProfiler

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(("steps", "traced"), [(7, [3, 4]), (3, [3]), (2, [])])
def test_a_trace_has_the_configured_steps(
    steps: int, traced: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End the training within them, too."""
    monkeypatch.setenv("KINETO_LOG_LEVEL", "6")
    with StepProfiler(begin=3, steps=2, folder=tmp_path / "profile" / "g0") as profiler:
        for step in range(1, steps + 1):
            profiler.before(step)
            with record_function(f"step {step}"):
                torch.ones(3).sum()
    files = list(tmp_path.rglob("*.json.gz"))
    assert [file.name for file in files] == ([f"steps-3-{traced[-1]}.json.gz"] if traced else [])
    for file in files:
        with gzip.open(file, "rt") as text:
            names = {event.get("name") for event in json.load(text)["traceEvents"]}
        assert [step for step in range(1, 8) if f"step {step}" in names] == traced


def test_no_trace_without_steps(tmp_path: Path) -> None:
    with StepProfiler(begin=1, steps=0, folder=tmp_path / "profile") as profiler:
        profiler.before(1)
    assert not list(tmp_path.iterdir())
