"""Registration of the transport through MPI one-sided windows, whose own package imports MPI."""

from __future__ import annotations

from pathlib import Path

from hpcdistill.distributed.checks import require_mpi
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.exchange.base import Exchange, Payload
from hpcdistill.exchange.registry import register_transport


@register_transport("window")
def _open(groups: Groups, payload: Payload, degree: int, folder: Path | None) -> Exchange:
    if len(groups.sizes) < groups.count:
        raise UserError("transport 'window' joins groups of one job; use 'files' for groups that are jobs of their own")
    require_mpi(groups.world, "exchange.transport = window")
    from hpcdistill.exchange.window.exchange import WindowExchange

    return WindowExchange(groups, payload, degree)
