"""Metrics: readable while they are written, without gaps or repetitions after a restart."""

import json
import math
import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.errors import UserError
from hpcdistill.reports.compare import compare
from hpcdistill.reports.status import status
from hpcdistill.storage.metrics import GroupMetrics, Metrics, read_metrics

pytestmark = pytest.mark.alone


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


def test_losses_that_are_not_finite_are_null_in_the_file_and_nan_for_readers(tmp_path: Path) -> None:
    path = tmp_path / "metrics-g0.jsonl"
    first = Metrics(path, {"group": 0}, step=0)
    for step, loss in ((10, math.nan), (20, math.inf), (30, 1.5)):
        first.record(step, {"validation_loss": loss})
    first.close()
    Metrics(path, {"group": 0}, step=30).close()  # rewrites the file
    _, *lines = path.read_text().splitlines()
    assert [json.loads(one, parse_constant=pytest.fail)["validation_loss"] for one in lines] == [None, None, 1.5]
    metrics = GroupMetrics(path, 0, *read_metrics(path))
    steps, losses = metrics.column("validation_loss")
    assert steps == [10, 20, 30]
    assert [math.isnan(loss) for loss in losses] == [True, True, False]
    assert metrics.best == 1.5


def line(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "seconds": step / 10, "loss": 2.0, "steps": 10, "staleness": {"1": 10}, **values}


def write(path: Path, *lines: dict[str, Any] | bytes) -> None:
    path.write_bytes(b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines))


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics-g0.jsonl"
    write(path, {"group": 0}, line(1))
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(path) == ({"group": 0}, [line(1)])
    assert read_metrics(tmp_path / "none.jsonl") == ({}, [])
    assert capsys.readouterr().err == ""


ODD = (
    {"seconds": 1},
    {"step": 2},
    line(2) | {"step": "2"},
    line(2) | {"step": -2},
    line(2) | {"step": True},
    line(2) | {"step": 2.5},
    line(2) | {"step": 10**30},
    line(2, seconds="1"),
    line(2, seconds=None),
    line(2, seconds=-1),
    line(2, seconds=math.nan),
    line(2, seconds=10**400),
    line(2, loss="low"),
    line(2, loss=None),
    line(2, validation_loss=[]),
    line(2, checkpoint_seconds={}),
    line(2, staleness=[1]),
    line(2, staleness={"peer": 1}),
    line(2, staleness={"1": "old"}),
    line(2, quarantine={"1": 7}),
    line(2, part_seconds={"exchange": "long"}),
    line(2, noise_scale="large"),
    line(2, members_loss=[]),
    line(2, members_loss=[1.0, None]),
)
NO_RECORDS = (b"", bytes(100), bytes(range(14, 256)), b'{"step": 2, "se', b"[" * 100_000, b"[]", b"null", b"7", b'"a"')


@pytest.mark.parametrize("bad", [*NO_RECORDS, *(json.dumps(odd).encode() for odd in ODD)])
def test_a_bad_line_is_left_out_and_the_good_ones_after_it_are_not(
    bad: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics-g0.jsonl"
    header, good = {"config": {"groups": 1, "train": {"steps": 40}}}, [line(10), line(20), line(30)]
    write(path, header, good[0], bad, *good[1:])
    assert read_metrics(path) == (header, good)
    assert f"{path}: 1 of 5 lines are damaged and left out, the first is line 3" in capsys.readouterr().err
    assert "30 / 40" in status(tmp_path)
    resumed = Metrics(path, {"group": 0}, step=30)
    resumed.record(40, {"loss": 1.0})
    resumed.close()
    header, records = read_metrics(path)
    assert records[:-1] == good
    assert records[-1]["step"] == 40
    assert records[-1]["seconds"] >= 3.0
    assert header["group"] == 0


@pytest.mark.parametrize("bad", [b'{"config": {"gro', b"[]", b'{"starts": 7}', b'{"starts": [7]}', b"{}"])
def test_a_damaged_header_costs_no_record_and_is_written_anew(bad: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics-g0.jsonl"
    write(path, bad, line(10), line(20))
    assert read_metrics(path) == ({}, [line(10), line(20)])
    with pytest.raises(UserError, match=rf"{path} does not tell config\.groups in its first line, .*--resume"):
        status(tmp_path)
    with pytest.raises(UserError, match=rf"{path} does not tell config\."):
        compare([tmp_path], target=1.0)
    Metrics(path, {"config": {"groups": 1, "train": {"steps": 40}}}, step=20).close()
    assert "20 / 40" in status(tmp_path)


@pytest.mark.parametrize("value", [None, "2", 0, -2, 2.5, True, {}])
def test_a_header_that_tells_no_number_is_named(value: object, tmp_path: Path) -> None:
    write(tmp_path / "metrics-g0.jsonl", {"config": {"groups": 1, "train": {"steps": value}}}, line(10))
    with pytest.raises(UserError, match=r"does not tell config\.train\.steps in its first line"):
        status(tmp_path)


@given(data=st.data())
def test_whatever_becomes_of_a_byte_readers_have_a_word_for_it(data: st.DataObject) -> None:
    header = {"config": {"groups": 1, "data": {"batch_size": 8}, "train": {"steps": 40}}, "ranks_per_group": 1}
    lines = [{**header, "starts": [{"step": 0}]}, line(10), line(20, validation_loss=2.5, quarantine={"1": "worse"})]
    content = bytearray(b"".join(json.dumps(one).encode() + b"\n" for one in lines))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    with TemporaryDirectory() as folder:
        (Path(folder) / "metrics-g0.jsonl").write_bytes(content)
        for read in (status, lambda run: compare([run]).table()):
            with suppress(UserError):
                assert read(Path(folder))


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    losses = [math.nan, 2.0, math.nan, -math.inf, 3.0, math.inf]
    records = [line(step, validation_loss=loss) for step, loss in enumerate(losses)]
    assert GroupMetrics(tmp_path, 0, {}, records).best == 2.0
    assert math.isnan(GroupMetrics(tmp_path, 0, {}, records[:1]).best)


def test_metrics_that_are_no_file_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics-g0.jsonl")
    (tmp_path / "metrics-g1.jsonl").mkdir()
    with pytest.raises(UserError, match="holds no metrics of a run"):
        status(tmp_path)


def test_records_of_a_folder_that_was_removed_are_missed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics(tmp_path / "run" / "metrics-g0.jsonl", {"group": 0}, step=0)
    metrics.record(1, {"loss": 1.0})
    shutil.rmtree(tmp_path / "run")
    for step in (2, 3):
        metrics.record(step, {"loss": 1.0})
    metrics.close()
    said = capsys.readouterr().err
    assert said.count("records are missing from") == 1
    assert "from step 2 on: [Errno 2] it was removed while the run goes on" in said
