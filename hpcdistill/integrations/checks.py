"""Checks that the integrations share."""

from __future__ import annotations

from typing import TypeVar

from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError

T = TypeVar("T", str, int)


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
