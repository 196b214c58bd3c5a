"""Sections `codistill` and `exchange` of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hpcdistill.config.paths import UserPath
from hpcdistill.config.section import Section


class CodistillConfig(Section):
    """Distillation between groups (Anil et al. 2018, Algorithm 1)."""

    weight: NonNegativeFloat = 1.0
    """Weight of the distillation term; 0 turns codistillation off."""
    ramp: NonNegativeInt = 0
    """Steps after the burn-in in which the weight of the distillation term rises linearly to its full value."""
    lr_scale: PositiveFloat = 1.0
    """Factor on the learning rate once distillation has begun, reached with the ramp: the distillation term multiplies
    the curvature of the loss by up to 1 + `weight`."""
    weight_decay: NonNegativeFloat | None = None
    """Weight decay once distillation has begun, reached with the ramp. Without it, that of the optimizer."""
    normalize: bool = False
    """Divide the loss by 1 + the weight of the distillation term."""
    teachers: Literal["peers", "self", "checkpoints", "uniform", "unigram"] = "peers"
    """Teachers: the other groups ('peers'); the group's own model at its last snapshot, taken every
    `exchange_interval` steps ('self', self-distillation); trained models ('checkpoints', two-phase distillation); or,
    as label smoothing, the same probability for every class ('uniform') or its frequency in the training data
    ('unigram')."""
    checkpoints: tuple[UserPath, ...] = ()
    """Trained models to learn from, such as runs/a/checkpoints/g0-best.h5; with teachers 'checkpoints'."""
    temperature: PositiveFloat = 1.0
    """Temperature of both distributions in the distillation term."""
    burn_in: NonNegativeInt = 400
    """Steps before distillation begins."""
    exchange_interval: PositiveInt = 50
    """Steps between two snapshots of a group's weights."""
    max_staleness: PositiveInt | None = None
    """Steps after which a teacher is excluded if no new snapshot of it has arrived. Without it, 20 exchange
    intervals."""
    fused_linear: bool = False
    """Fuse the loss with the model's head, so that the logits of a large vocabulary are never all in memory."""
    teacher_precision: Literal["full", "bf16"] = "full"
    """Precision of the teachers' forward pass: 'full' is that of the student, 'bf16' may be faster."""

    @property
    def with_peers(self) -> bool:
        """True if groups learn from each other."""
        return self.weight > 0 and self.teachers == "peers"


class ExchangeConfig(Section):
    """Exchange of snapshots between groups."""

    transport: Literal["window", "files"] = "window"
    """'window': MPI one-sided windows, between groups of one job; 'files': a folder in run_dir, between groups that may
    be separate jobs."""
    topology: Literal["all", "ring", "pairs", "k-random"] = "all"
    """Peers of a group: 'all' other groups, the next one in a 'ring', its partner in 'pairs' (0, 1; 2, 3; ...), or
    `degree` others drawn at random for each exchange interval ('k-random')."""
    degree: PositiveInt = 1
    """Number of peers that 'k-random' draws."""
    codec: Literal["fp32", "bf16", "int8"] = "fp32"
    """Encoding of published weights: 'fp32' unchanged; 'bf16' in half the bytes, with a relative error of 0.4 %; 'int8'
    in a quarter of the bytes, with an error of 0.4 % of the largest of 256 neighbours. Running statistics are always
    sent unchanged."""
