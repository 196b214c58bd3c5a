"""Speed and memory of the loss of hidden states beside losses that store all logits: forward and backward.

    python benchmarks/bench_linear_loss.py [--device cpu|cuda]

prints a table and writes the raw seconds as JSON. Every implementation needs the GEMMs for the logits of all models and
for the gradients by the student's hidden states and head; the table compares the seconds with theirs.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from bench_loss import DTYPES, TEACHERS, eager
from device_events import Work, launches
from hpcdistill import codistillation_loss, linear_codistillation_loss
from hpcdistill.losses import buffers
from measure import add_common_options, in_turns, make_parser, peak_extra_bytes, ratio, spread, sweep


class Model(NamedTuple):
    """Last hidden states ``[tokens, D]`` and head ``[V, D]`` of a model."""

    hidden: Tensor
    weight: Tensor


class Setting(NamedTuple):
    """Parameters of one line of the table."""

    tokens: int
    width: int
    classes: int
    teachers: int
    dtype: str


Loss = Callable[[Model, Tensor, list[Model]], Tensor]


def main() -> None:
    """Measure all settings; print the table and write the JSON file."""
    parser = make_parser(__doc__)
    add_common_options(parser, "linear_loss")
    add_setting_options(parser)
    parser.add_argument("--ours-only", action="store_true", help="leave out the losses that store all logits")
    options = parser.parse_args()
    sweep(
        "linear_loss",
        options,
        HEADER,
        settings(options),
        lambda setting, device: measure(setting, options.rounds, device, options.ours_only),
        lines,
    )


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """Add the options from which `settings` makes the lines of the table."""
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048], help="rows of hidden states (default: 2048)")
    parser.add_argument("--widths", type=int, nargs="+", default=[512], help="columns D of these (default: 512)")
    parser.add_argument("--classes", type=int, nargs="+", default=[32000], help="vocabulary sizes V (default: 32000)")
    parser.add_argument("--teachers", type=int, nargs="+", default=TEACHERS, help="numbers of teachers N")
    parser.add_argument(
        "--dtypes", nargs="+", default=["fp32"], choices=DTYPES, help="dtypes of hidden states and heads"
    )


def settings(options: argparse.Namespace) -> Iterator[Setting]:
    """Return all combinations of the options."""
    axes = (options.tokens, options.widths, options.classes, options.teachers, options.dtypes)
    return map(Setting._make, product(*axes))


def measure(setting: Setting, rounds: int, device: torch.device, ours_only: bool = False) -> dict[str, Any]:
    """Measure seconds and peak memory of every contender in one setting."""
    torch._dynamo.reset()
    student, teachers, target = random_inputs(setting, device)
    works: dict[str, Work] = {
        name: partial(step, loss, student, target, teachers) for name, loss in contenders(setting, device, ours_only)
    }
    peaks = {}
    for name, work in works.items():
        work()  # compiles, and allocates the workspace of a GPU's libraries
        buffers.release()
        peaks[name] = peak_extra_bytes(work, device)
    works["GEMMs"] = gemms(student, teachers)
    result = {**setting._asdict(), "peak_extra_bytes": peaks, "seconds": in_turns(works, device, rounds)}
    if device.type == "cuda":
        result["launches"] = {name: dict(launches(works[name], device)) for name in works if name.startswith("ours")}
    return result


def random_inputs(setting: Setting, device: torch.device) -> tuple[Model, list[Model], Tensor]:
    """Return a student that requires grad, teachers, and labels; the same on every rank."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, device=device, generator=generator).mul_(scale).to(DTYPES[setting.dtype])

    student, *teachers = (
        Model(random(setting.tokens, setting.width), random(setting.classes, setting.width, scale=setting.width**-0.5))
        for _ in range(1 + setting.teachers)
    )
    target = torch.randint(0, setting.classes, (setting.tokens,), device=device, generator=generator)
    for tensor in student:
        tensor.requires_grad_()
    return student, teachers, target


def step(loss: Loss, student: Model, target: Tensor, teachers: list[Model]) -> None:
    """Run forward and backward."""
    torch.autograd.grad(loss(student, target, teachers), student)


def gemms(student: Model, teachers: list[Model]) -> Callable[[], None]:
    """Return a function that runs the GEMMs alone, each for all tokens, into allocated memory."""
    logits = torch.empty(
        len(student.hidden), len(student.weight), dtype=student.hidden.dtype, device=student.hidden.device
    )
    by_hidden, by_weight = (torch.empty_like(tensor) for tensor in student)

    @torch.no_grad()
    def work() -> None:
        for model in (*teachers, student):
            torch.mm(model.hidden, model.weight.t(), out=logits)
        torch.mm(logits, student.weight, out=by_hidden)
        torch.mm(logits.t(), student.hidden, out=by_weight)

    return work


def contenders(setting: Setting, device: torch.device, ours_only: bool) -> Iterator[tuple[str, Loss]]:
    """Yield the names and losses of all contenders, ours first."""
    yield "ours", ours
    if device.type == "cuda" and DTYPES[setting.dtype].itemsize == 2:
        yield "ours, 16-bit logits", partial(ours, logits_dtype=None)
    if not ours_only:
        yield "fused", materialised(codistillation_loss)
        yield "compile", torch.compile(materialised(eager), dynamic=False)
        yield "eager", materialised(eager)
    if device.type == "cuda":
        yield from peers(setting)


def ours(
    student: Model, target: Tensor, teachers: list[Model], logits_dtype: torch.dtype | None = torch.float32
) -> Tensor:
    """Compute our loss of hidden states and heads."""
    hidden, weight = [model.hidden for model in teachers], [model.weight for model in teachers]
    return linear_codistillation_loss(student.hidden, student.weight, target, hidden, weight, logits_dtype=logits_dtype)


def materialised(loss: Callable[[Tensor, Tensor, list[Tensor]], Tensor]) -> Loss:
    """Return a function that computes `loss` from the logits of all tokens."""

    def of_models(student: Model, target: Tensor, teachers: list[Model]) -> Tensor:
        with torch.no_grad():
            teacher_logits = [F.linear(*model) for model in teachers]
        return loss(F.linear(*student), target, teacher_logits)

    return of_models


def peers(setting: Setting) -> Iterator[tuple[str, Loss]]:
    """Yield Liger's cross-entropy or its most similar distillation loss (Jensen-Shannon), if it is installed."""
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return
    if setting.teachers == 0:
        cross_entropy = LigerFusedLinearCrossEntropyLoss()
        yield "liger", lambda student, target, _: cross_entropy(student.weight, student.hidden, target)
    elif setting.teachers == 1:
        divergence = LigerFusedLinearJSDLoss(weight_hard_loss=1.0, weight_soft_loss=1.0)
        yield "liger", lambda student, target, teachers: divergence(*student, *teachers[0], target, None, None)


HEADER = (
    "| tokens × D → V | N | dtype | contender | seconds | spread | of the GEMMs | of eager "
    "| peak extra MB | of eager |\n" + "|---" * 10 + "|"
)


def lines(result: dict[str, Any]) -> str:
    """Return the rows of the Markdown table for one setting."""
    seconds, peaks = result["seconds"], result["peak_extra_bytes"]
    setting = (
        f"| {result['tokens']} × {result['width']} → {result['classes']} | {result['teachers']} | {result['dtype']}"
    )

    def row(name: str) -> str:
        time_of_eager = f"{ratio(seconds, name, 'eager'):.2f}×" if "eager" in peaks else ""
        peak_of_eager = f"{peaks[name] / peaks['eager']:.3f}" if "eager" in peaks else ""
        return (
            f"{setting} | {name} | {statistics.median(seconds[name]):.4f} | ± {100 * spread(seconds[name]):.1f} % "
            f"| {ratio(seconds, name, 'GEMMs'):.2f}× | {time_of_eager} | {peaks[name] / 1e6:.0f} | {peak_of_eager} |"
        )

    return "\n".join(map(row, peaks))


if __name__ == "__main__":
    main()
