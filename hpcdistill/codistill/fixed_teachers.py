"""Teachers that do not change: trained models and constant predictions, the baselines of codistillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hpcdistill.codistill.predictions import Outputs
from hpcdistill.models.outputs import model_outputs


class FixedTeachers:
    """`Teachers` that need no exchange.

    Trained models make the loss that of two-phase distillation (Hinton et al., arXiv 1503.02531); constant predictions
    make it label smoothing, to which the paper compares (Anil et al. 2018, Section 3).

    Args:
        models: trained models on the student's device, in eval mode.
        outputs: computes a model's outputs, as for `Codistillation`.
        constants: functions that return the same prediction for every element of a target; each is a teacher.
    """

    quarantine: ClassVar[dict[int, str]] = {}
    models: ClassVar[dict[int, nn.Module]] = {}

    def __init__(
        self,
        models: Sequence[nn.Module] = (),
        outputs: Outputs = model_outputs,
        constants: Sequence[Callable[[Tensor], Any]] = (),
    ) -> None:
        self._models = models
        self._outputs = outputs
        self._constants = constants

    @torch.no_grad()
    def predict(self, *inputs: Any, target: Tensor | None = None, **kwargs: Any) -> list[Any]:
        """Return the models' outputs, then the constant predictions.

        Raises:
            ValueError: there are constant predictions, whose shape depends on the target, but no target.
        """
        outputs = [self._outputs(model, *inputs, **kwargs) for model in self._models]
        if not self._constants:
            return outputs
        if target is None:
            raise ValueError("constant predictions have the target's shape: call predict(..., target=target)")
        return outputs + [constant(target) for constant in self._constants]

    def step(self, step: int) -> None:
        """Do nothing: there is no exchange."""

    def staleness(self, step: int) -> dict[int, int]:
        """Return an empty dictionary: there are no peers."""
        return {}
