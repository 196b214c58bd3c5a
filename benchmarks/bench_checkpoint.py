"""Cost of a checkpoint for training: the time for which training waits, beside a plain copy of the same bytes.

    python benchmarks/bench_checkpoint.py

Then blocks of steps of the demo's model, in turn: without a checkpoint, with one that is written while the steps go on,
and with one that is waited for.
"""

import statistics
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI
from torch.nn import functional

from hpcdistill.data.batches import Batch, TrainingBatches
from hpcdistill.distributed.groups import Groups
from hpcdistill.models.lstm import LSTMLanguageModel
from hpcdistill.models.registry import config_class
from hpcdistill.training.restart import Restart
from measure import in_turns, machine, make_parser, ratio, write_json

CPU = torch.device("cpu")
INTERVAL = 100
HIDDEN = {"the demo's model": 128, "a larger one": 1024}


class NoBatches(TrainingBatches):
    """Training data that is not read."""

    def __next__(self) -> Batch:
        raise NotImplementedError


class Training:
    """Training of a language model on random tokens, and its checkpoints."""

    def __init__(self, hidden: int, folder: str) -> None:
        self.model = LSTMLanguageModel(vocabulary=256, hidden=hidden, layers=2, projection=0, dropout=0.0)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        config = config_class()(run_dir=folder, data={"path": "none"}, groups=1, codistill={"weight": 0})
        groups = Groups.alone(MPI.COMM_WORLD, 0, 1, CPU)
        self.restart = Restart(config, groups, self.model, None, self.optimizer, NoBatches(), "")
        self._tokens = torch.randint(256, (16, 64))
        self._numbers = count(1)
        self.step()  # makes the optimizer's state

    def step(self) -> None:
        """Make one step of the optimizer."""
        logits = self.model(self._tokens).flatten(0, 1)
        functional.cross_entropy(logits, self._tokens.flatten()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self) -> float:
        """Make a checkpoint; return the seconds for which training would have waited."""
        begin = time.perf_counter()
        self.restart.save(next(self._numbers))
        return time.perf_counter() - begin

    def wait(self) -> None:
        """Wait until the checkpoint is on disk."""
        if self.restart._writing:
            self.restart._writing.join()

    def state(self) -> list[torch.Tensor]:
        """Return the tensors that a checkpoint copies."""
        moments = [value for values in self.optimizer.state.values() for value in values.values()]
        return [*self.model.state_dict().values(), *moments]


def main() -> None:
    """Measure, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each contender, in turn (default: 9)")
    default = Path(__file__).parent / "results" / "checkpoint-cpu.json"
    parser.add_argument("--output", type=Path, default=default, help=f"raw results as JSON (default: {default})")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine(CPU)}\n\n{'':<18}{'bytes':>12}{'waits, ms':>11}{'GB/s':>7}{'% of copy':>11}{'written in, ms':>16}")
    with tempfile.TemporaryDirectory() as folder:
        copies = [measure_wait(name, Training(hidden, folder), options.rounds) for name, hidden in HIDDEN.items()]
        blocks = measure_blocks(Training(HIDDEN["the demo's model"], folder), options.rounds)
    print(summary(copies[0], blocks))
    write_json(options.output, {"machine": machine(CPU), "copies": copies, "blocks": blocks})


def measure_wait(name: str, training: Training, rounds: int) -> dict[str, Any]:
    """Measure the wait for a checkpoint, its writing and a plain copy, in seconds; print a line of the table."""
    state = training.state()
    seconds: dict[str, list[float]] = {"wait": [], "write": [], "copy": []}
    for _ in range(rounds):
        begin = time.perf_counter()
        seconds["wait"].append(training.save())
        training.wait()
        seconds["write"].append(time.perf_counter() - begin)
        begin = time.perf_counter()
        kept = [tensor.clone() for tensor in state]
        seconds["copy"].append(time.perf_counter() - begin)
        del kept
    nbytes = sum(tensor.nbytes for tensor in state)
    wait = statistics.median(seconds["wait"])
    print(
        f"{name:<18}{nbytes:>12,}{1e3 * wait:>11.2f}{2 * nbytes / wait / 1e9:>7.1f}"
        f"{100 / ratio(seconds, 'wait', 'copy'):>11.0f}{1e3 * statistics.median(seconds['write']):>16.1f}"
    )
    return {"name": name, "nbytes": nbytes, "seconds": seconds}


def measure_blocks(training: Training, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each block of `INTERVAL` steps, by kind of block."""

    def steps() -> None:
        for _ in range(INTERVAL):
            training.step()

    def beside() -> None:
        training.save()
        steps()

    def waited_for() -> None:
        training.save()
        training.wait()
        steps()

    return in_turns({"none": steps, "beside": beside, "waited for": waited_for}, CPU, rounds)


def summary(copies: dict[str, Any], blocks: dict[str, list[float]]) -> str:
    """Describe the results."""
    step = statistics.median(blocks["none"]) / INTERVAL
    share = statistics.median(copies["seconds"]["wait"]) / INTERVAL / step
    lost = {name: 100 * (ratio(blocks, name, "none") - 1) for name in ("beside", "waited for")}
    return (
        f"\nOne checkpoint in {INTERVAL} steps of {1e3 * step:.1f} ms: training waits {100 * share:.2f} % of them.\n"
        f"Blocks of {INTERVAL} steps take {lost['beside']:+.1f} % with a checkpoint beside them, "
        f"{lost['waited for']:+.1f} % if it is waited for."
    )


if __name__ == "__main__":
    main()
