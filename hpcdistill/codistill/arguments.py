"""Checks of the arguments of a session."""

from __future__ import annotations

from typing import Any

from hpcdistill.distributed.groups import Groups

LOWEST = {"interval": 1, "burn_in": 0, "weight": 0, "ramp": 0, "degree": 1}
CHOICES = {"topology": ("all", "ring", "pairs", "k-random"), "teacher_precision": ("full", "bf16")}
SAME = ("interval", "burn_in", "transport", "topology", "degree", "seed", "max_staleness")


def check_arguments(groups: Groups, with_peers: bool, **arguments: Any) -> None:
    """Check the arguments of `Codistillation`. Collective over the world.

    Args:
        groups: the groups.
        with_peers: True if this group teaches others and learns from them.
        arguments: the other arguments by name.

    Raises:
        UserError: arguments that all ranks must share differ; on every rank.
        ValueError: an argument is out of range, or does not fit the groups or another argument.
    """
    for name, lowest in LOWEST.items():
        if not arguments[name] >= lowest:
            raise ValueError(f"{name} = {arguments[name]!r} is too low; use {lowest} or more")
    for name, choices in CHOICES.items():
        if arguments[name] not in choices:
            raise ValueError(f"{name} = {arguments[name]!r} is unknown; use one of {', '.join(map(repr, choices))}")
    teachers = arguments["teachers"]
    if isinstance(teachers, str) and teachers != "self":
        raise ValueError(f"teachers = {teachers!r} is unknown; use 'self', FixedTeachers(...), or None for peers")
    patience, interval = arguments["max_staleness"], arguments["interval"]
    if patience is not None and patience <= interval:
        raise ValueError(
            f"max_staleness = {patience} ends before the next snapshot, after interval = {interval} steps; "
            "use a few intervals, or None"
        )
    if with_peers:
        _check_network(groups, arguments)
    same = {"with peers": with_peers, "with its own model": teachers == "self"}
    same |= {name: arguments[name] for name in SAME}
    groups.require_same("Codistillation", ", ".join(f"{name} = {value!r}" for name, value in same.items()))


def _check_network(groups: Groups, arguments: dict[str, Any]) -> None:
    topology, degree = arguments["topology"], arguments["degree"]
    if topology == "pairs" and groups.count % 2:
        raise ValueError(f"topology = 'pairs' needs an even number of groups, not {groups.count}; use 'ring'")
    if topology == "k-random" and degree >= groups.count:
        raise ValueError(f"degree = {degree} is more than the peers of a group; use at most {groups.count - 1}")
