"""Runs that are killed at random and resumed: python benchmarks/kill_storm.py --rounds 60.

Each round trains a small model on two ranks, sends a random signal to a random process of the job at a random moment,
and resumes. The job must end by itself and leave no process behind; the resumed run must finish, with each step made
once; a run of one group must end with the same bits as an uninterrupted one. Prints a table by signal, and every
problem; exits with 1 if there was any. Needs MPICH's mpirun.
"""

import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hpcdistill.data.tokens.prepare_text import prepare_text
from hpcdistill.storage.metrics import read_metrics
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.state_file import State, load_state
from measure import make_parser

STEPS = 150
RUN = f"""
[data]
batch_size = 8
sequence_length = 16
[model]
hidden = 16
layers = 1
dropout = 0.1
[codistill]
burn_in = 20
exchange_interval = 10
[train]
steps = {STEPS}
validate_every = 50
[checkpoint]
interval = 25
"""
ALONE = ("--groups=1", "--codistill.weight=0")
KINDS = {"alone": ALONE, "windows": (), "files": ("--exchange.transport=files",)}
ROLES = ("rank 0", "rank 1", "both ranks", "mpirun", "its proxy")
SIGNALS = ("KILL", "KILL", "KILL", "TERM", "INT", "HUP", "STOP")
STOPPED_SECONDS = 3.0  # from SIGSTOP to SIGCONT
END_SECONDS = 90.0
"""Time for a job and its processes to end after a signal, which may come while they start."""


@dataclass
class Round:
    """Kill of a run, and its outcome."""

    kind: str
    role: str
    number: str
    delay: float
    """Seconds from the start of the job to the signal."""
    ended: float = 0.0
    """Seconds from the signal to the end of the job."""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.kind}: SIG{self.number} to {self.role} after {self.delay:.1f} s"


class Job:
    """Training in `run_dir`, under mpirun."""

    def __init__(self, folder: Path, run_dir: Path, kind: str, *options: str) -> None:
        self._mark = f"--run_dir={run_dir}".encode()
        self.log = run_dir.with_suffix(".log")
        command = ["mpirun", "-np", "2", sys.executable, "-m", "hpcdistill", "train", str(folder / "run.toml")]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, f"--run_dir={run_dir}", f"--data.path={folder / 'data.h5'}", *KINDS[kind], *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ranks(self) -> list[int]:
        """Return the process ids of the ranks, in the order of ranks."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            words, variables, state = (_read(folder / name) for name in ("cmdline", "environ", "stat"))
            if self._mark in words.split(b"\0") and b"python" in words.split(b"\0")[0] and b") Z" not in state:
                rank = next((each for each in variables.split(b"\0") if each.startswith(b"PMI_RANK=")), b"")
                found.append((rank, int(folder.name)))
        return [pid for _, pid in sorted(found)]

    def pids(self, role: str) -> list[int]:
        """Return the process ids of one of `ROLES`; none if they have not started yet."""
        if role == "mpirun":
            return [self.process.pid]
        if role == "its proxy":
            children = _read(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children"))
            return [int(pid) for pid in children.split()]
        return self.ranks()[{"rank 0": slice(0, 1), "rank 1": slice(1, 2)}.get(role, slice(None))]

    def ends(self, seconds: float) -> bool:
        """Wait for the job and return whether it ended in time; it is killed otherwise."""
        in_time = _is_soon(lambda: self.process.poll() is not None, seconds)
        in_time &= _is_soon(lambda: not self.ranks(), seconds if in_time else 0)
        for pid in [*self.ranks(), *([] if self.process.poll() is not None else [self.process.pid])]:
            _send(pid, signal.SIGKILL)
        self.process.wait()
        return in_time


def main() -> None:
    """Run all rounds and print their outcome."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="number of runs to kill (default: 60)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of kinds, signals, processes and moments (default: 0)"
    )
    options = parser.parse_args()
    rng = random.Random(options.seed)
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run.toml").write_text(RUN)
        prepare_text([Path(os.__file__).parent / "asyncio"], folder / "data.h5", include="*.py")
        begin = time.monotonic()
        undisturbed = Job(folder, folder / "undisturbed", "alone")
        if not undisturbed.ends(END_SECONDS) or undisturbed.process.returncode:
            raise SystemExit(f"no run ends here even without a signal:\n{undisturbed.log.read_text()}")
        duration = time.monotonic() - begin
        expected = _last_state(folder / "undisturbed", 0)
        for _ in range(options.rounds):
            kind, role, number = rng.choice(list(KINDS)), rng.choice(ROLES), rng.choice(SIGNALS)
            rounds.append(Round(kind, role, number, rng.uniform(0, 1.2 * duration)))
            _kill_and_resume(rounds[-1], folder, expected)
            print(f"{rounds[-1]}: {'; '.join(rounds[-1].problems) or 'no problem'}", file=sys.stderr, flush=True)
    print("| signal | rounds | s until the job has ended, median | maximum | problems |\n|---|---|---|---|---|")
    for number in dict.fromkeys(SIGNALS):
        matching = [each for each in rounds if each.number == number]
        if matching:
            seconds = [each.ended for each in matching]
            problems = sum(map(len, (each.problems for each in matching)))
            times = f"{statistics.median(seconds):.1f} | {max(seconds):.1f}"
            print(f"| SIG{number} | {len(matching)} | {times} | {problems} |")
    raise SystemExit(any(each.problems for each in rounds))


def _kill_and_resume(this: Round, folder: Path, expected: State) -> None:
    run_dir = folder / "run"
    job = Job(folder, run_dir, this.kind)
    time.sleep(this.delay)
    pids, begin = job.pids(this.role), time.monotonic()
    for pid in pids:
        _send(pid, signal.Signals[f"SIG{this.number}"])
    if this.number == "STOP":
        time.sleep(STOPPED_SECONDS)
        for pid in pids:
            _send(pid, signal.SIGCONT)
    if not job.ends(END_SECONDS):
        this.problems.append("the job hangs, or leaves processes behind")
    this.ended = time.monotonic() - begin
    again = Job(folder, run_dir, this.kind, "--resume")
    if not again.ends(2 * END_SECONDS) or again.process.returncode:
        this.problems.append(f"--resume ends with {again.process.returncode}")
    else:
        this.problems += _faults(run_dir, groups=1 if this.kind == "alone" else 2)
        if this.kind == "alone" and not _is_same(_last_state(run_dir, 0), expected):
            this.problems.append("not the bits of an uninterrupted run")
    log = job.log.read_text(errors="replace")
    if "Traceback" in log:
        this.problems.append("a traceback")
    if this.problems:
        print(log, file=sys.stderr)
    shutil.rmtree(run_dir, ignore_errors=True)
    job.log.unlink()


def _faults(run_dir: Path, groups: int) -> list[str]:
    """Return the faults in the records of a finished run."""
    faults = []
    for group in range(groups):
        _, records = read_metrics(RunDir(run_dir).metrics(group))
        losses = [record for record in records if "loss" in record]
        made = [step for record in losses for step in range(record["step"] - record["steps"], record["step"])]
        seconds = [record["seconds"] for record in records]
        if made != list(range(STEPS)):
            faults.append(f"group {group} has not made each step once")
        if seconds != sorted(seconds):
            faults.append(f"the time of group {group} goes backwards")
    return faults


def _last_state(run_dir: Path, group: int) -> State:
    path = RunDir(run_dir).checkpoint(group, STEPS)
    return {key: value for key, value in load_state(path, "checkpoint")["state"].items() if key != "config"}


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def _is_soon(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it has just ended
        pass


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # of a process that has just ended
        return b""


if __name__ == "__main__":
    main()
