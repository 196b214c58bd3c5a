"""Speed of the loss of hidden states with vocab-parallel heads: forward and backward, beside the ranks' GEMMs.

    mpirun -np 2 python benchmarks/bench_vocab_parallel.py --threads 1

prints a table and writes the raw seconds of rank 0 as JSON. "alone" is the loss of a vocabulary that consists of the
rank's own classes: the additional time is for reading each logit twice, and for communication.
"""

import contextlib
import os
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench_linear_loss import Model, Setting, add_setting_options, gemms, ours, random_inputs, settings, step
from device_events import Work
from hpcdistill import Groups, linear_codistillation_loss
from hpcdistill.losses import buffers
from measure import (
    add_common_options,
    ends_all_ranks,
    in_turns,
    make_parser,
    peak_extra_bytes,
    ratio,
    spread,
    sweep,
)


@ends_all_ranks
def main() -> None:
    """Measure all settings; print the table and write the JSON file."""
    parser = make_parser(__doc__)
    add_common_options(parser, "vocab_parallel")
    add_setting_options(parser)
    options = parser.parse_args()
    groups = Groups.create(1)
    if not groups.is_leader:
        options.output = Path(os.devnull)
    with contextlib.redirect_stdout(sys.stdout if groups.is_leader else None):
        sweep(
            "vocab_parallel",
            options,
            HEADER,
            settings(options),
            lambda setting, device: measure(setting, groups, options.rounds, device),
            line,
        )


def measure(setting: Setting, groups: Groups, rounds: int, device: torch.device) -> dict[str, Any]:
    """Measure seconds and peak memory of every contender in one setting, on this rank."""
    student, teachers, target = random_inputs(setting, device)
    begin, end = (setting.classes * rank // groups.size for rank in (groups.rank, groups.rank + 1))
    student, *teachers = (
        Model(model.hidden, model.weight[begin:end].detach().clone().requires_grad_(model is student))
        for model in (student, *teachers)
    )
    vocab_parallel = groups.vocab_parallel(end - begin)

    def sharded(student: Model, target: Tensor, teachers: list[Model]) -> Tensor:
        hidden, weight = [model.hidden for model in teachers], [model.weight for model in teachers]
        return linear_codistillation_loss(
            student.hidden, student.weight, target, hidden, weight, vocab_parallel=vocab_parallel
        )

    works: dict[str, Work] = {
        "sharded": partial(step, sharded, student, target, teachers),
        "alone": partial(step, ours, student, target % (end - begin), teachers),
        "GEMMs": gemms(student, teachers),
    }
    works["sharded"]()
    buffers.release()
    peak = peak_extra_bytes(works["sharded"], device)
    seconds = in_turns(works, device, rounds)
    return {**setting._asdict(), "ranks": groups.size, "peak_extra_bytes": peak, "seconds": seconds}


HEADER = (
    "| ranks | tokens × D → V | N | dtype | seconds | spread | of alone | of the GEMMs | peak extra MB per rank |\n"
    + "|---" * 9
    + "|"
)


def line(result: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    seconds = result["seconds"]
    of_alone, of_gemms = (ratio(seconds, "sharded", other) for other in ("alone", "GEMMs"))
    return (
        f"| {result['ranks']} | {result['tokens']} × {result['width']} → {result['classes']} | {result['teachers']} "
        f"| {result['dtype']} | {statistics.median(seconds['sharded']):.4f} "
        f"| ± {100 * spread(seconds['sharded']):.1f} % | {of_alone:.2f}× | {of_gemms:.2f}× "
        f"| {result['peak_extra_bytes'] / 1e6:.0f} |"
    )


if __name__ == "__main__":
    main()
