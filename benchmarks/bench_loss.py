"""Speed and memory of the fused loss beside eager torch, torch.compile and other libraries: forward and backward.

    python benchmarks/bench_loss.py [--device cpu|cuda]

prints a table and writes the raw seconds as JSON. The rate counts the bytes that any implementation must move (student
and N teachers read once, one gradient written), and is compared with the rate of a copy in the same rounds.

On a GPU the kernels alone are timed as well, without autograd and reduction: each is a single launch.
"""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from device_events import Work, host_seconds, launches
from hpcdistill import codistillation_loss
from hpcdistill.kernels.rows import Rows, compute_dtype
from hpcdistill.losses import buffers
from measure import add_common_options, in_turns, make_parser, peak_extra_bytes, ratio, spread, sweep

Loss = Callable[[Tensor, Tensor, list[Tensor]], Tensor]

CLASSES = (1000, 32000, 128256, 262144)
TEACHERS = (0, 1, 3)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KERNELS = {"cpu": ("cpu", "torch"), "cuda": ("triton", "cuda")}
"""Implementations whose kernels are compared, by device type."""


class Setting(NamedTuple):
    """Parameters of one line of the table."""

    classes: int
    teachers: int
    dtype: str


def main() -> None:
    """Measure all settings; print the table and write the JSON file."""
    parser = make_parser(__doc__)
    add_common_options(parser, "loss")
    parser.add_argument("--megabytes", type=int, default=128, help="size of the student's logits in MiB (default: 128)")
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES, help="vocabulary sizes V")
    parser.add_argument("--teachers", type=int, nargs="+", default=TEACHERS, help="numbers of teachers N")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES, help="dtypes of the logits")
    parser.add_argument("--ours-only", action="store_true", help="leave out eager torch and torch.compile")
    options = parser.parse_args()
    settings = map(Setting._make, product(options.classes, options.teachers, options.dtypes))

    def measured(setting: Setting, device: torch.device) -> dict[str, Any]:
        result = measure(setting, options.megabytes, options.rounds, device, options.ours_only)
        wrong = wrong_launches(result)
        assert not wrong, f"each kernel is to be a single launch: {wrong}"
        return result

    sweep("loss", options, HEADER, settings, measured, line)


def measure(
    setting: Setting, megabytes: float, rounds: int, device: torch.device, ours_only: bool = False
) -> dict[str, Any]:
    """Measure seconds and peak memory of every contender in one setting.

    Args:
        setting: the line of the table.
        megabytes: size of the student's logits in MiB.
        rounds: calls of each contender.
        device: the device.
        ours_only: leave out eager torch and torch.compile.
    """
    torch._dynamo.reset()
    student, teachers, target = random_inputs(setting, megabytes, device)
    works: dict[str, Work] = {
        name: partial(step, loss, student, target, teachers) for name, loss in contenders(setting, device, ours_only)
    }
    buffers.release()
    peaks = {name: peak_extra_bytes(work, device) for name, work in works.items()}
    destination = torch.empty_like(student)
    works["copy"] = lambda: destination.copy_(student.detach())
    # The last work in a round, with its own logits, which it overwrites.
    overwritten = student.detach().clone()
    works["in place"] = partial(step_in_place, overwritten, target, teachers)
    facts: dict[str, Any] = {}
    if device.type == "cuda":
        alone, facts["absent"] = kernels(student.detach(), target, teachers)
        facts["launches"] = {
            name: dict(launches(work, device)) for name, work in (alone | {"ours": works["ours"]}).items()
        }
        facts["host_seconds"] = {name: host_seconds(work, device) for name, work in alone.items()}
        works = alone | works
    return {
        **setting._asdict(),
        "rows": len(student),
        "tensor_bytes": student.nbytes,
        "minimal_bytes": student.nbytes * (setting.teachers + 2),
        "peak_extra_bytes": peaks,
        "seconds": in_turns(works, device, rounds),
        **facts,
    }


def wrong_launches(result: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return the launches of each kernel that is not a single one, by the kernel's name; none where not counted."""
    counted: dict[str, dict[str, int]] = result.get("launches", {})
    return {name: each for name, each in counted.items() if name.startswith("kernel ") and sum(each.values()) != 1}


def random_inputs(setting: Setting, megabytes: float, device: torch.device) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return the student's logits, which require grad, those of the teachers, and labels."""
    dtype = DTYPES[setting.dtype]
    rows = max(1, int(megabytes * 2**20) // (setting.classes * dtype.itemsize))
    generator = torch.Generator(device).manual_seed(0)
    student, *teachers = (
        torch.randn(rows, setting.classes, device=device, generator=generator).mul_(3).to(dtype)
        for _ in range(setting.teachers + 1)
    )
    target = torch.randint(0, setting.classes, (rows,), device=device, generator=generator)
    return student.requires_grad_(), teachers, target


def kernels(student: Tensor, target: Tensor, teachers: list[Tensor]) -> tuple[dict[str, Work], dict[str, str]]:
    """Return a call of each implementation's kernel by "kernel NAME", and by name why others cannot run here."""
    real = compute_dtype(student.dtype)
    losses = student.new_empty(len(student), dtype=real)
    rows = Rows(
        student,
        target,
        teachers,
        mixture=[1 / len(teachers)] * len(teachers) if teachers else [],
        teacher_lse=None,
        class_weight=None,
        scales=torch.ones(3, dtype=real, device=student.device),
        temperature=1.0,
        label_smoothing=0.0,
        ignore_index=-100,
        losses=losses,
        parts=torch.stack([losses] * 3),
        gradient=torch.empty_like(student),
    )
    works: dict[str, Work] = {}
    absent = {}
    for name in KERNELS[student.device.type]:
        try:
            run = import_module(f"hpcdistill.kernels.{name}_codistillation").run
            run(rows)
        except (ImportError, RuntimeError) as error:  # not built; the row does not fit
            absent[name] = str(error)
        else:
            works[f"kernel {name}"] = partial(run, rows)
    return works, absent


def step(loss: Loss, student: Tensor, target: Tensor, teachers: list[Tensor]) -> None:
    """Run forward and backward."""
    torch.autograd.grad(loss(student, target, teachers), student)


def step_in_place(logits: Tensor, target: Tensor, teachers: list[Tensor]) -> None:
    """Run forward and backward of our loss; the gradient overwrites `logits`."""
    leaf = torch.zeros((), dtype=logits.dtype, device=logits.device, requires_grad=True)
    output = _Output.apply(leaf, logits)
    torch.autograd.grad(codistillation_loss(output, target, teachers, inplace_grad=True), leaf)


class _Output(torch.autograd.Function):
    """Stand-in for a model: returns `logits` as its output, without computation."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, logits: Tensor) -> Tensor:
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0].new_zeros(()), None


def contenders(setting: Setting, device: torch.device, ours_only: bool) -> Iterator[tuple[str, Loss]]:
    """Yield the names and losses of all contenders, ours first."""
    yield "ours", codistillation_loss
    if not ours_only:
        yield "compile", torch.compile(eager, dynamic=False)
        yield "eager", eager
    if device.type == "cuda":
        yield from peers(setting)


def eager(logits: Tensor, target: Tensor, teachers: list[Tensor]) -> Tensor:
    """Compute the same loss as users write it in torch."""
    loss = F.cross_entropy(logits, target)
    if teachers:
        mean = torch.stack([teacher.softmax(-1) for teacher in teachers]).mean(0)
        loss = loss + F.kl_div(logits.log_softmax(-1), mean, reduction="batchmean")
    return loss


def peers(setting: Setting) -> Iterator[tuple[str, Loss]]:
    """Yield the most similar losses of other libraries, if these are installed; none averages teachers."""
    if setting.teachers == 0:
        try:
            from quack import cross_entropy
        except ImportError:
            pass
        else:
            yield "quack", lambda logits, target, _: cross_entropy(logits, target, reduction="mean")
    if setting.teachers <= 1:
        try:
            from liger_kernel.transformers.functional import liger_cross_entropy, liger_kl_div
        except ImportError:
            pass
        else:

            def liger(logits: Tensor, target: Tensor, teachers: list[Tensor]) -> Tensor:
                loss: Tensor = liger_cross_entropy(logits * 1, target)  # it overwrites its input
                for teacher in teachers:
                    loss = loss + liger_kl_div(logits.log_softmax(-1), teacher.softmax(-1))
                return loss

            yield "liger", liger


HEADER = (
    "|      V | N | dtype | minimal MB | copy GB/s | ours GB/s | spread | of copy | in place, of copy"
    " | kernels alone, of copy | slower than ours | extra memory / gradient |\n" + "|---" * 12 + "|"
)


def of_copy(result: dict[str, Any], name: str) -> float:
    """Return the rate of a contender as a fraction of the rate of a copy in the same rounds."""
    seconds: dict[str, list[float]] = result["seconds"]
    return ratio(seconds, "copy", name) * float(result["minimal_bytes"]) / (2 * float(result["tensor_bytes"]))


def line(result: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    seconds: dict[str, list[float]] = result["seconds"]
    nbytes: int = result["minimal_bytes"]
    tensor_bytes: int = result["tensor_bytes"]

    def rate(name: str, nbytes: int) -> float:
        return nbytes / statistics.median(seconds[name]) / 1e9

    alone = {name: name.removeprefix("kernel ") for name in seconds if name.startswith("kernel ")}
    kernels_alone = ", ".join(f"{label} {100 * of_copy(result, name):.0f} %" for name, label in alone.items())
    others = [name for name in seconds if name not in ("ours", "copy", "in place", *alone)]
    slower = ", ".join(f"{name} {ratio(seconds, name, 'ours'):.1f}×" for name in others)
    memory = ", ".join(f"{name} {extra / tensor_bytes:.2f}" for name, extra in result["peak_extra_bytes"].items())
    return (
        f"| {result['classes']:6} | {result['teachers']} | {result['dtype']} | {nbytes / 1e6:.0f} "
        f"| {rate('copy', 2 * tensor_bytes):.1f} | {rate('ours', nbytes):.1f} "
        f"| ± {100 * spread(seconds['ours']):.1f} % | {100 * of_copy(result, 'ours'):.0f} % "
        f"| {100 * of_copy(result, 'in place'):.0f} % | {kernels_alone} "
        f"| {slower} | {memory} |"
    )


if __name__ == "__main__":
    main()
