"""Registry of the transports that `exchange.transport` names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpcdistill.discovery import import_siblings
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.exchange.base import Exchange, Payload

Opener = Callable[[Groups, Payload, int, Path | None], Exchange]
"""Function that opens a transport: `(groups, payload, degree, folder)`, with the meaning of `open_exchange`."""

_openers: dict[str, Opener] = {}


def register_transport(name: str) -> Callable[[Opener], Opener]:
    """Return a decorator that registers a function which opens the transport `name`."""

    def register(opener: Opener) -> Opener:
        _openers[name] = opener
        return opener

    return register


def open_exchange(name: str, groups: Groups, payload: Payload, degree: int = 1, folder: Path | None = None) -> Exchange:
    """Open a transport. Collective over the world.

    Args:
        name: name under which the transport is registered, such as "window" or "files".
        groups: the world and its groups.
        payload: state that this group publishes.
        degree: number of peers that `Exchange.set_peers` will name.
        folder: folder that all groups share, for transports that need one.

    Raises:
        UserError: there is no such transport, the groups' payloads differ, or the transport cannot work here; on every
            rank.
    """
    if name not in _openers:
        import_siblings(__name__)
    if name not in _openers:
        raise UserError(f"there is no transport {name!r}; use one of {', '.join(sorted(_openers))}")
    return _openers[name](groups, payload, degree, folder)
