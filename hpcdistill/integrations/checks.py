"""Checks that the integrations share."""

from __future__ import annotations

from typing import TypeVar

from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError

T = TypeVar("T", str, int)


def require_ranks_of_mpi(groups: Groups) -> None:
    """Refuse ranks without MPI: other libraries would take all of them, and not only a group, for their world.

    Raises:
        UserError: the ranks communicate by torch.distributed; on every rank.
    """
    if not (groups.has_mpi or groups.is_single):
        raise UserError(
            "these ranks communicate without MPI, which the loops of other libraries cannot; start them with mpirun or "
            "srun where there is MPI, or write a loop of your own (docs/own_loop.md)"
        )


def require_different(groups: Groups, name: str, value: T) -> None:
    """Check that no two groups of this world have the same `value`. Collective over the world.

    Raises:
        UserError: two groups have the same; on every rank.
    """
    owners: dict[T, int] = {}
    for group, other in groups.world.allgather((groups.group, value)):
        if owners.setdefault(other, group) != group:
            raise UserError(
                f"{name} = {other!r} is the same in groups {owners[other]} and {group}; give each group its own, by "
                "groups.group"
            )
