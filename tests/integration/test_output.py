"""Output that cannot be printed stops nothing; warnings go to the log."""

import errno
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typing_extensions import override

from hpcdistill.output import ForgivingStream, forgive_output
from metrics_files import write

pytestmark = pytest.mark.alone


class Broken(io.StringIO):
    """Text stream whose disk is full, or whose reader has ended."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @override
    def write(self, _: str) -> int:
        raise OSError(self.number, os.strerror(self.number))

    @override
    def flush(self) -> None:
        self.write("")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Broken(errno.ENOSPC), Broken(errno.EPIPE), Broken(errno.EIO), closed(), None])
def test_a_warning_that_cannot_be_printed_is_left_out(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    logging.getLogger("hpcdistill.anything").warning("lost")
    forgive_output()
    print("lost", file=sys.stderr, flush=True)
    logging.getLogger("hpcdistill.anything").warning("lost")
    if stream is None:
        sys.stderr.close()  # of /dev/null
    assert "lost" not in capsys.readouterr().err
    if stream is None:
        sys.stderr.close()


def test_the_first_failure_is_kept_and_what_can_be_written_arrives() -> None:
    failing, whole = ForgivingStream(Broken(errno.ENOSPC)), ForgivingStream(io.StringIO())
    for stream in (failing, whole):
        assert stream.write("text") == 4
        stream.flush()
    assert isinstance(failing.error, OSError)
    assert failing.error.errno == errno.ENOSPC
    assert whole.error is None
    assert whole.getvalue() == "text"


def run(arguments: list[str], redirection: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "hpcdistill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, **variables})


@pytest.mark.launch
@pytest.mark.parametrize(
    ("name", "redirection", "status", "told"),
    [
        ("run", ">/dev/full", 1, "standard output cannot be written: [Errno 28] No space left on device"),
        ("nowhere", "2>/dev/full", 2, ""),
        ("nowhere", "2>&-", 2, ""),
        ("nowhere", "0>&- 1>&-", 2, "nowhere holds no metrics"),
    ],
)
def test_the_exit_status_is_about_the_work(name: str, redirection: str, status: int, told: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write(tmp_path / "run", 0)
    result = run(["status", str(tmp_path / name)], redirection)
    assert result.returncode == status
    assert told in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.launch
@pytest.mark.parametrize(("command", "rank"), [("status", "0"), ("train", "0"), ("train", "1")])
def test_a_child_of_a_rank_ends_itself_alone(command: str, rank: str) -> None:
    """End the child only: it has the rank's variables, but not its connection to the launcher."""
    result = run([command, "nowhere"], PMI_SIZE="4", PMI_RANK=rank, PMI_FD="99")
    assert result.returncode == 2
    assert result.stderr.startswith("hpcdistill: error: ")
    assert "nowhere" in result.stderr


WARN = """
import sys
from pathlib import Path
from hpcdistill.storage.metrics import read_metrics
read_metrics(Path(sys.argv[1]))
"""
DAMAGED = "1 of 2 lines are damaged and left out"


@pytest.mark.launch
@pytest.mark.parametrize(("debug", "prefix"), [("", ""), ("0", ""), ("1", "hpcdistill: warning: ")])
def test_a_script_sees_warnings_and_has_the_programs_log_on_request(debug: str, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics-g0.jsonl"
    path.write_text('{"starts": []}\nx\n')
    command = [sys.executable, "-c", WARN, str(path)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "HPCDISTILL_DEBUG": debug}
    )
    assert result.stderr.startswith(f"{prefix}{path}: {DAMAGED}")
    assert result.stderr.count(DAMAGED) == 1
