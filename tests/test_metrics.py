"""Metrics: readable while they are written, and without gap or repetition after a restart."""

import json
import os
from pathlib import Path

from hpcdistill.metrics import Metrics, read_metrics


def test_a_restart_forgets_the_steps_it_will_repeat(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics-g0.jsonl"
    first = Metrics(path, {"group": 0}, step=0)
    for step in (10, 20, 30):
        first.record(step, {"loss": 1.0 / step})
    first.close()
    second = Metrics(path, {"group": 0, "again": True}, step=20)
    second.record(30, {"loss": 0.5})
    second.close()
    header, records = read_metrics(path)
    starts = header.pop("starts")
    assert [start["step"] for start in starts] == [0, 20]
    assert {start["pid"] for start in starts} == {os.getpid()}
    assert header == {"group": 0, "again": True}
    assert [(record["step"], record["loss"]) for record in records] == [(10, 0.1), (20, 0.05), (30, 0.5)]
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics-g0.jsonl"
    path.write_text(json.dumps({"group": 0}) + "\n" + json.dumps({"step": 1}) + "\n" + '{"step": 2, "lo')
    assert read_metrics(path) == ({"group": 0}, [{"step": 1}])
    assert read_metrics(tmp_path / "none.jsonl") == ({}, [])


def test_what_a_power_cut_has_damaged_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics-g0.jsonl"
    path.write_bytes(b'{"group": 0}\n{"step": 1}\n' + bytes(100) + b'\n{"step": 3}\n')
    assert read_metrics(path) == ({"group": 0}, [{"step": 1}])
