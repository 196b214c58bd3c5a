"""Cost of reading for training: the step time with slow reads, beside that of data in memory.

    python benchmarks/bench_reading.py

Blocks of steps of the demo's model, in turn: batches that are in memory; batches whose reading takes 10 ms, in the
training thread; both, as `hpcdistill train` reads, with a thread for what is slow; and by one process
(`data.workers = 1`).
"""

import itertools
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset

from hpcdistill.config.data import DataConfig
from hpcdistill.data.arrays import Numbers
from hpcdistill.data.batches import Batch, Batches, Share, TrainingBatches
from hpcdistill.data.datasets.batches import DatasetBatches
from hpcdistill.data.datasets.factory import FactoryData
from hpcdistill.data.prefetch import Prefetch
from hpcdistill.models.lstm import LSTMLanguageModel
from measure import in_turns, machine, make_parser, ratio, write_json

CPU = torch.device("cpu")
BATCH, LENGTH, VOCABULARY = 16, 64, 256


class Slow(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Random tokens; a batch of them takes some time to read."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.tokens = torch.randint(VOCABULARY, (1024, LENGTH + 1))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tokens[number, :-1], self.tokens[number, 1:]

    def __getitems__(self, numbers: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        time.sleep(self.seconds)
        return [self[number] for number in numbers]


def slow_data(seconds: float) -> tuple[Slow, Slow]:
    """Return training and validation data; what `data.factory` names."""
    return Slow(seconds), Slow(seconds)


def read_in_place(seconds: float) -> TrainingBatches:
    """Return batches that the training thread reads."""
    data = Slow(seconds)

    def read(numbers: Numbers, _: np.random.Generator) -> Batch:
        examples = data.__getitems__(numbers.tolist())
        return Batch((torch.stack([one for one, _ in examples]),), torch.stack([other for _, other in examples]))

    return Batches(len(data), read, BATCH, Share(), "sequences")


def read_by_process(seconds: float) -> Prefetch:
    """Return batches that one process reads."""
    config = DataConfig(
        factory="bench_reading:slow_data", args={"seconds": seconds}, classes=VOCABULARY, workers=1, batch_size=BATCH
    )
    return Prefetch(DatasetBatches(FactoryData(config, Share()), config, Share()), CPU)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: TrainingBatches, steps: int) -> None:
    """Make some steps."""
    for batch in itertools.islice(batches, steps):
        logits = model(*batch.inputs).flatten(0, 1)
        functional.cross_entropy(logits, batch.target.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    """Measure, print and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--milliseconds", type=float, default=10.0, help="time of a read (default: 10)")
    parser.add_argument("--steps", type=int, default=50, help="steps of a block (default: 50)")
    parser.add_argument("--rounds", type=int, default=9, help="blocks of each contender, in turn (default: 9)")
    default = Path(__file__).parent / "results" / "reading-cpu.json"
    parser.add_argument("--output", type=Path, default=default, help=f"raw results as JSON (default: {default})")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = LSTMLanguageModel(VOCABULARY, 128, layers=2, projection=0, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters())
    seconds = options.milliseconds / 1e3
    contenders: dict[str, TrainingBatches] = {
        "in memory": read_in_place(0.0),
        "slow, in place": read_in_place(seconds),
        "in memory, as in training": Prefetch(read_in_place(0.0), CPU),
        "slow, as in training": Prefetch(read_in_place(seconds), CPU),
        "slow, by a process": read_by_process(seconds),
    }
    blocks = in_turns(
        {name: partial(train, model, optimizer, batches, options.steps) for name, batches in contenders.items()},
        CPU,
        options.rounds,
    )
    for batches in contenders.values():
        batches.close()
    print(f"{machine(CPU)}\n\n{'':<26}{'ms per step':>12}{'more, ms':>10}{'ratio':>8}")
    for name, times in blocks.items():
        more = statistics.median(a - b for a, b in zip(times, blocks["in memory"], strict=True)) / options.steps
        step = statistics.median(times) / options.steps
        print(f"{name:<26}{1e3 * step:>12.2f}{1e3 * more:>10.2f}{ratio(blocks, name, 'in memory'):>8.3f}")
    settings = {"milliseconds": options.milliseconds, "steps": options.steps}
    write_json(options.output, {"machine": machine(CPU), **settings, "seconds": blocks})


if __name__ == "__main__":
    main()
