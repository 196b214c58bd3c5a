"""Steps of a command, each within its own time and all within the command's; results are on the disk after each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu_check.page import page
from gpu_check.report import Report

Action = Callable[[Report, float], None]
"""Body of a step: fills the report within the seconds that it is given. An exception is a failure."""

Command = Sequence[str | Path]
"""Program and its arguments."""

LOG_BYTES = 8 << 20
"""Largest size of a log; what is older is removed."""


class NotRunError(Exception):
    """Reason why a step cannot run here."""


class Steps:
    """Steps of one command, and their results in `folder`: COMMAND.json, COMMAND.md and COMMAND.log.

    Args:
        command: its name.
        folder: where the results go.
        seconds: time for all steps together.
        only: names of the steps to run; empty for all.
        note: sentence on the run, for the page.
    """

    def __init__(self, command: str, folder: Path, seconds: float, only: Sequence[str] = (), note: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = {"command": command, "note": note, "steps": []}
        self.log = folder / f"{command}.log"
        self.log.write_bytes(b"")
        self._folder, self._only = folder, only
        self._end = time.monotonic() + seconds
        self._parts = 0

    @property
    def left(self) -> float:
        """Seconds that are left of the command's time."""
        return self._end - time.monotonic()

    @property
    def passed(self) -> bool:
        """True if no step has failed."""
        return all(step["status"] in ("pass", "done", "not run") for step in self.results["steps"])

    def run(self, name: str, action: Action, *, limit: float, least: float = 10, needs: Sequence[str] = ()) -> None:
        """Run a step, or say why it is not run.

        Args:
            name: its name.
            action: what it does.
            limit: seconds that it may take.
            least: seconds below which it is not begun.
            needs: names of steps without whose success it is not run.
        """
        begin, report = time.monotonic(), Report()
        without = [each for each in needs if self._status(each) not in ("pass", "done")]
        try:
            if self._only and name not in self._only:
                raise NotRunError("it was not asked for")
            if without:
                raise NotRunError(f"it needs {', '.join(without)}")
            if self.left < least:
                raise NotRunError(f"{self.left:.0f} s are left of the command's time, it takes {least:.0f} s or more")
            action(report, min(limit, self.left))
        except NotRunError as reason:
            status, note = "not run", str(reason)
        except TimeoutError as error:
            status, note = "not finished", str(error)
        except Exception as error:
            status, note = "FAIL", f"{type(error).__name__}: {error}"
        else:
            missed = [bar for bar in report.bars if not bar["passed"]]
            status, note = "FAIL" if missed else "pass" if report.bars else "done", ""
        seconds = round(time.monotonic() - begin, 1)
        step = {"name": name, "status": status, "seconds": seconds, "note": note, **report.as_dict}
        self.results["steps"].append(step)
        print(f"{self.results['command']}: {name}: {status} ({seconds} s) {note}", flush=True)
        self._save()

    def probe(self, report: Report, command: Command, seconds: float, variables: dict[str, str]) -> None:
        """Run a program that writes a report to the file after `--json`, and add its results, also if it fails.

        Raises:
            RuntimeError: its exit status is not 0.
            TimeoutError: it had not ended in time, and was killed.
        """
        self._parts += 1
        part = self._folder / f".{self.results['command']}-{self._parts}.json"
        try:
            self.call([*command, "--json", part], seconds, variables)
        finally:
            if part.exists():
                report.add(json.loads(part.read_text()))
                part.unlink()
            part.with_suffix(".part").unlink(missing_ok=True)

    def call(self, command: Command, seconds: float, variables: dict[str, str], cwd: Path | None = None) -> None:
        """Run a program with its output in the log.

        Raises:
            RuntimeError: its exit status is not 0; with the end of its output.
            TimeoutError: it had not ended in time, and was killed with all its children.
        """
        status, output = self.output_of(command, seconds, variables, cwd)
        if status:
            raise RuntimeError(f"{Path(command[0]).name} ended with status {status}: {output[-400:].strip()}")

    def output_of(
        self, command: Command, seconds: float, variables: dict[str, str], cwd: Path | None = None
    ) -> tuple[int, str]:
        """Run a program; return its exit status and its output, which is kept in the log, too.

        Raises:
            TimeoutError: it had not ended in time, and was killed with all its children.
        """
        words = [str(word) for word in command]
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(words)}\n".encode())
            log.flush()
            before = log.tell()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=variables,
                cwd=cwd,
                start_new_session=True,
            )
            try:
                status = process.wait(timeout=max(1.0, seconds))
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"{words[0]} had not ended after {seconds:.0f} s") from None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return status, self.log.read_bytes()[before:].decode(errors="replace")

    def _status(self, name: str) -> str:
        return next((str(step["status"]) for step in self.results["steps"] if step["name"] == name), "absent")

    def _save(self) -> None:
        command = self.results["command"]
        (self._folder / f"{command}.json").write_text(json.dumps(self.results, indent=1, default=str) + "\n")
        (self._folder / f"{command}.md").write_text(page(self.results))
        if self.log.stat().st_size > LOG_BYTES:
            self.log.write_bytes(self.log.read_bytes()[-LOG_BYTES:])
