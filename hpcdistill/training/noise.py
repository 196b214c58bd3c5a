"""Gradient noise scale of a training, from the gradients of micro-batches and their average.

A step of P micro-batches, of b examples each, has the gradients g_1 … g_P, and their average is that of the batch. With
L = mean ‖D g_i‖² and T = ‖D mean g_i‖²

    |G|² = (P·T - L) / (P - 1)            square of the true gradient's norm
    tr Σ = b·P·(L - T) / (P - 1)          variance of the gradient of one example, summed over all parameters

are estimates without bias (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1). D is 1, or for Adam the diagonal
matrix 1 / max(√v, floor, ε), with v the corrected second moment: distances are then those that the optimizer sees
(Qiao et al. 2021, arXiv 2008.12260). The noise scale tr Σ / |G|² is the batch size at which a step gives half the
progress of one without noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpcdistill.storage.metrics import Record

DECAY = 0.95
"""Weight of the former measurements in the averages after one more."""

LARGEST = 1e9
"""Maximum noise scale, in examples: that of gradients in which no signal is found."""

FLOOR = 0.1
"""Minimum of an element's √v, relative to the root of its tensor's mean v. Without it a rare word's first gradients,
which Adam damps as they enter v themselves, outweigh all others a hundred times."""

OVERHEAD = 0.2
"""Share of examples, above the minimum, that a training with the critical batch takes to reach a loss."""


class Estimate(NamedTuple):
    """Estimates of |G|² and tr Σ from one step. That of |G|² may be negative."""

    square: float
    variance: float


def estimate(of_parts: float, of_average: float, parts: int, examples: float) -> Estimate:
    """Return estimates, without bias, of |G|² and tr Σ.

    Args:
        of_parts: mean squared norm of the micro-batches' gradients.
        of_average: squared norm of their average.
        parts: number of micro-batches of the group, at least 2.
        examples: number of examples in each of them.
    """
    square = (parts * of_average - of_parts) / (parts - 1)
    return Estimate(square, examples * parts * (of_parts - of_average) / (parts - 1))


class NoiseScale:
    """Noise scale from exponential averages of both estimates, in examples.

    The averages have the same weights, whose sum is therefore not needed.

    Args:
        parts: number of micro-batches of the group.
        examples: number of examples in each of them.
    """

    def __init__(self, parts: int, examples: float) -> None:
        self._parts = parts
        self._examples = examples
        self._square = self._variance = 0.0
        self._skipped = 0

    def add(self, of_parts: float, of_average: float) -> Record:
        """Add a measurement, and return its metrics; one that is not finite is skipped and counted.

        Args:
            of_parts: mean squared norm of the micro-batches' gradients.
            of_average: squared norm of their average.
        """
        found = estimate(of_parts, of_average, self._parts, self._examples)
        if not all(map(math.isfinite, found)):
            self._skipped += 1
            return {"noise_skipped": self._skipped}
        measured = {"gradient_square": found.square, "gradient_variance": found.variance}
        self.restore(measured)
        if self._variance <= 0:
            return measured
        scale = self._variance / max(self._square, self._variance / LARGEST)
        return measured | {"noise_scale": scale, "critical_batch": scale * OVERHEAD}

    def restore(self, record: Record) -> None:
        """Add the measurement of an earlier record of the metrics, if it has one."""
        self._skipped = record.get("noise_skipped", self._skipped)
        if {"gradient_square", "gradient_variance"} <= record.keys():
            self._square = DECAY * self._square + record["gradient_square"]
            self._variance = DECAY * self._variance + record["gradient_variance"]


class _Preconditioner(NamedTuple):
    """Divisor of a parameter's gradient, as Adam has it."""

    second_moment: Tensor
    correction: Tensor
    """Divisor of the second moment that corrects its bias, []."""
    floor: Tensor
    """Minimum of the second moment, []; infinite where there has been no gradient, which leaves it out."""

    def square(self, gradient: Tensor) -> Tensor:
        """Return the squared norm of the preconditioned gradient, []; without a root, which is slow on a CPU."""
        moment = self.second_moment
        if gradient.is_sparse:
            moment, gradient = moment.sparse_mask(gradient).values(), gradient.values()
        divisor = moment.float().clamp(min=self.floor)
        return torch.div(gradient, divisor, out=divisor).mul_(gradient).sum() * self.correction


class GradientNorms:
    """Squared norms of the gradients of a step: of each micro-batch on this rank, and of the group's average.

    Gradients are read only, and the host waits for no GPU. Sparse ones are the exception: a GPU is waited for.

    Args:
        model: the model; parameters that are frozen, or get no gradient, count as zero.
        optimizer: optimizer of the model. Its second moments precondition if it has them for each parameter that it has
            updated.
        micro_batches: backward passes of this rank in each step, whose gradients are added.

    Attributes:
        of_parts: mean squared norm of this rank's micro-batches in the last step watched, float64 []; None before.
        of_average: squared norm of the average over the group, float64 []; None before.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, micro_batches: int) -> None:
        self._parameters = list(model.parameters())
        self._optimizer = optimizer
        self._micro_batches = micro_batches
        self._preconditioners: dict[nn.Parameter, _Preconditioner] | None = None
        self.of_parts: Tensor | None = None
        self.of_average: Tensor | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Measure the gradients of the backward passes in the block.

        Hooks of tensors see them before those of Horovod and DistributedDataParallel, which are at the accumulation.
        Autograd calls hooks without recording what they compute.
        """
        self._preconditioners = _preconditioners(self._optimizer)
        squares: list[Tensor] = []

        def note(parameter: nn.Parameter, gradient: Tensor) -> None:
            squares.append(self._square(parameter, gradient))

        trained = [each for each in self._parameters if each.requires_grad]
        handles = [parameter.register_hook(partial(note, parameter)) for parameter in trained]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        # The step's gradient is the sum of the micro-batches', each of which is 1 / micro_batches of its own.
        self.of_parts = self._micro_batches * self._sum(squares)

    def measure_average(self) -> None:
        """Measure the gradients of the parameters, which are averages now, after a block of `watch`."""
        squares = [self._square(each, each.grad) for each in self._parameters if each.grad is not None]
        self.of_average = self._sum(squares)

    def clear(self) -> None:
        """Forget the norms."""
        self.of_parts = self.of_average = None

    def _square(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        """Return the squared norm of a parameter's gradient, preconditioned, []."""
        if gradient.is_sparse:
            gradient = gradient.coalesce()
        if self._preconditioners is None:
            return (gradient.values() if gradient.is_sparse else gradient).float().square().sum()
        if parameter in self._preconditioners:
            return self._preconditioners[parameter].square(gradient)
        return torch.zeros((), device=gradient.device)  # of its first gradient nothing is known

    def _sum(self, squares: list[Tensor]) -> Tensor:
        """Return the sum, float64 [], on the device of the parameters."""
        return torch.stack(squares).double().sum() if squares else torch.zeros((), device=self._parameters[0].device)


def _preconditioners(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, _Preconditioner] | None:
    """Return the preconditioner of each parameter that has been updated; None if the optimizer is not one like Adam."""
    found: dict[nn.Parameter, _Preconditioner] = {}
    for group in optimizer.param_groups:
        parameters = [each for each in group["params"] if optimizer.state.get(each)]
        states = [optimizer.state[each] for each in parameters]
        moments = [state.get("max_exp_avg_sq", state.get("exp_avg_sq")) for state in states]
        if not {"betas", "eps"} <= group.keys() or [getattr(moment, "shape", None) for moment in moments] != [
            each.shape for each in parameters
        ]:
            return None
        if not parameters:
            continue
        means = torch.stack([moment.mean(dtype=torch.float32) for moment in moments])
        floors = torch.where(means > 0, (FLOOR**2 * means).clamp(min=group["eps"] ** 2), torch.inf)
        steps = torch.stack([torch.as_tensor(state.get("step", torch.inf)).float() for state in states])
        corrections = 1 - group["betas"][1] ** steps
        values = map(_Preconditioner, moments, corrections.unbind(), floors.unbind())
        found |= dict(zip(parameters, values, strict=True))
    return found or None
