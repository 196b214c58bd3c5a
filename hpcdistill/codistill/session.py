"""Codistillation in a training loop: the session that publishes a group's model and keeps its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpcdistill.codistill.arguments import check_arguments
from hpcdistill.codistill.fixed_teachers import FixedTeachers
from hpcdistill.codistill.peer_teachers import PeerTeachers
from hpcdistill.codistill.predictions import Outputs
from hpcdistill.codistill.quarantine import ExcessLoss, Quarantine
from hpcdistill.codistill.self_teacher import SelfTeacher
from hpcdistill.codistill.teachers import Teachers
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.exchange.base import Exchange
from hpcdistill.exchange.layout import Layout
from hpcdistill.exchange.registry import open_exchange
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.traffic import TrafficStats
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.models.outputs import model_outputs

PATIENCE = 20
"""Default of `max_staleness`, in exchange intervals."""


class Codistillation:
    """Codistillation of one model with those of the other groups, in any training loop; a context manager.

    ```python
    with Codistillation(model, groups, interval=100, burn_in=1000) as peers:
        for inputs, target in loader:
            loss = codistillation_loss(model(inputs), target, peers.predict(inputs), distill_weight=peers.weight)
            loss.backward(); optimizer.step(); optimizer.zero_grad()
            peers.step()
    ```

    The group's model is published every `interval` steps; after `burn_in` steps the newest snapshots of its peers are
    its teachers. No group waits for another, except at the end of the block, where the groups of a job close the
    exchange together. An exception in the block abandons the exchange at once.

    All ranks of a group make the same calls in the same order. Without peers (one group, `weight=0`, or a process
    without MPI) and other teachers it does nothing, and `predict` returns an empty list.

    Args:
        model: the student; under `DistributedDataParallel` or `torch.compile`, the module inside is used.
        groups: the groups.
        interval: steps between two publishes.
        burn_in: steps before peers teach.
        weight: weight of the distillation term after burn-in and ramp.
        ramp: steps after the burn-in in which the weight rises linearly.
        transport: "window" for groups of one MPI world; "files" for groups that share a file system only; None for
            "window" where the ranks communicate by MPI, and "files" elsewhere.
        topology: peers of a group: "all" others, the next in a "ring", its partner in "pairs", or "k-random".
        degree: number of peers that "k-random" draws for each interval.
        codec: how weights travel: "fp32", "bf16" or "int8".
        folder: folder of the snapshots, for "files"; a new training needs a new or empty one.
        outputs: function `(model, *inputs, **kwargs)` that returns what the loss takes of a model; by default what
            `model(*inputs, **kwargs)` returns, or its attribute `logits`.
        excess_loss: function `(outputs, target)` that returns a model's mean loss above that of a constant prediction,
            in nats. With it, a snapshot that is worse by half a nat does not teach, and `predict` needs the target.
        max_staleness: steps for which a snapshot teaches without a successor; None for 20 intervals.
        teacher_precision: "full", or "bf16" for teachers that predict under autocast to bfloat16.
        seed: seed of "k-random".
        published: model to publish in place of the student, such as an average of its weights.
        teachers: teachers in place of peers, with which nothing is exchanged: fixed teachers, or "self" for the model
            that would be published, at its last snapshot (self-distillation).

    Raises:
        UserError: the groups' models differ in structure, or the transport does not work here; on every rank.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        *,
        interval: int = 50,
        burn_in: int = 400,
        weight: float = 1.0,
        ramp: int = 0,
        transport: str | None = None,
        topology: str = "all",
        degree: int = 1,
        codec: str = "fp32",
        folder: str | Path | None = None,
        outputs: Outputs = model_outputs,
        excess_loss: ExcessLoss | None = None,
        max_staleness: int | None = None,
        teacher_precision: str = "full",
        seed: int = 0,
        published: nn.Module | None = None,
        teachers: FixedTeachers | Literal["self"] | None = None,
    ) -> None:
        transport = transport or ("window" if groups.has_mpi else "files")
        with_peers = groups.count > 1 and weight > 0 and teachers is None
        check_arguments(
            groups,
            with_peers,
            teachers=teachers,
            interval=interval,
            burn_in=burn_in,
            weight=weight,
            ramp=ramp,
            transport=transport,
            topology=topology,
            degree=degree,
            max_staleness=max_staleness,
            teacher_precision=teacher_precision,
            seed=seed,
        )
        student = _unwrap(model)
        self._layout = Layout.of(student)
        self._schedule = (weight, burn_in, ramp)
        self._step = 0
        self._has_ended = False
        self._exchange: Exchange | None = None
        source = student if published is None else _unwrap(published)
        if difference := self._layout.difference(Layout.of(source)):
            raise ValueError(f"published differs from the student: {difference}; publish an average of its weights")
        common: dict[str, Any] = {"interval": interval, "burn_in": burn_in}
        common |= {"outputs": outputs, "precision": teacher_precision}
        self._teachers: Teachers = FixedTeachers()
        if isinstance(teachers, FixedTeachers):
            self._teachers = teachers
        elif teachers == "self" and weight > 0:
            self._teachers = SelfTeacher(student, source, groups, **common)
        if not with_peers:
            return
        payload = WeightPayload(source, codec)
        network = Topology(topology, groups.group, groups.count, degree, seed)
        self._exchange = open_exchange(
            transport, groups, payload, len(network.peers(0)), None if folder is None else Path(folder)
        )
        self._teachers = PeerTeachers(
            student,
            self._exchange,
            payload,
            network,
            Quarantine(groups, max_staleness or PATIENCE * interval, excess_loss),
            **common,
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def predict(self, *inputs: Any, target: Tensor | None = None, **kwargs: Any) -> Sequence[Any]:
        """Return the outputs of each active teacher for a batch, without gradient.

        On a GPU the teachers compute on a side stream, and the first output that is read waits for it: call `predict`
        before the student's forward to overlap the two. Collective over the group.

        Args:
            inputs: what the student's forward takes.
            target: the batch's target; needed with `excess_loss` and with teachers that are constant predictions.
            kwargs: what the student's forward takes by name.

        Raises:
            UserError: a teacher cannot predict for these inputs.
            RuntimeError: the `with` block has ended.
        """
        self._require_open()
        return self._teachers.predict(*inputs, target=target, **kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def step(self, step: int | None = None) -> None:
        """Count an optimizer step; publish and adopt snapshots when due. Waits for no other group.

        Call it once after each optimizer step (with gradient accumulation, not after each micro-batch). Collective over
        the group.

        Args:
            step: number of optimizer steps made so far; by default one more than at the previous call.

        Raises:
            ValueError: the number is not larger than at the previous call.
            RuntimeError: the `with` block has ended.
        """
        self._require_open()
        if step is None:
            step = self._step + 1
        if step <= self._step:
            raise ValueError(f"step = {step} follows step {self._step}; call step() once after each optimizer step")
        self._step = step
        self._teachers.step(step)

    @property
    def weight(self) -> float:
        """Weight of the distillation term in the next step's loss: 0 during the burn-in, then rising to its value."""
        weight, burn_in, ramp = self._schedule
        if self._step < burn_in:
            return 0.0
        return weight * min(1.0, (self._step - burn_in + 1) / (ramp + 1))

    @property
    def staleness(self) -> dict[int, int]:
        """Number of steps by which each teacher is behind, by its group; negative if that is ahead."""
        return self._teachers.staleness(self._step)

    @property
    def quarantine(self) -> Mapping[int, str]:
        """Reasons why peers do not teach for now, by peer."""
        return self._teachers.quarantine

    @property
    def models(self) -> Mapping[int, nn.Module]:
        """Replicas of the peers' models at their last snapshots, by group, in eval mode; also during the burn-in.

        Those in quarantine are left out. They may be asked for predictions between two steps, and change in `step`.
        """
        return self._teachers.models

    @property
    def traffic(self) -> TrafficStats:
        """Bytes that this rank has published and fetched so far."""
        return TrafficStats() if self._exchange is None else self._exchange.traffic

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: the step, and the model's tensors by name, shape and dtype.

        With `teachers="self"` the snapshot is part of it. Peers' are not: the exchange brings newer ones.
        """
        state = {"step": self._step, "tensors": self._layout.signature}
        own = self._teachers.state_dict() if isinstance(self._teachers, SelfTeacher) else None
        return state if own is None else state | {"snapshot": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the step of `state`, a result of `state_dict`.

        Raises:
            UserError: the state is of another model, whose first difference it names, or no such state.
        """
        if not {"step", "tensors"} <= state.keys():
            raise UserError(
                f"a state of Codistillation holds 'step' and 'tensors', this one {sorted(state)}; "
                "load what state_dict() has returned"
            )
        mine, theirs = self._layout.signature, list(state["tensors"])
        if mine != theirs:
            difference = next(
                (f"{other} there against {one} here" for one, other in zip(mine, theirs, strict=False) if one != other),
                f"{len(theirs)} tensors there against {len(mine)} here",
            )
            raise UserError(f"the state is of another model: {difference}; load that of this model")
        self._step = int(state["step"])
        if isinstance(self._teachers, SelfTeacher):
            self._teachers.load_state_dict(state.get("snapshot"), self._step)

    def __enter__(self) -> Codistillation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_ended = True
        if self._exchange is not None:
            self._exchange.__exit__(kind, error, trace)

    def __deepcopy__(self, _: dict[int, Any]) -> Codistillation:
        return self  # a model may refer to its session; replicas of the model are copies, sessions are not

    def _require_open(self) -> None:
        if self._has_ended:
            raise RuntimeError("the `with Codistillation(...)` block has ended; predict and step inside it")


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside `DistributedDataParallel` and `torch.compile`."""
    while True:
        inside = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if inside is None:
            return model
        model = inside
