"""Codistillation in a training loop of one's own: mpirun -np 4 python examples/own_loop.py.

Two groups learn to tell which of ten directions a point lies in. What codistillation adds is marked with #.
"""

import torch
from torch import nn

from hpcdistill import codistillation_loss
from hpcdistill.codistill.peer_teachers import Teachers
from hpcdistill.config.schema import CodistillConfig
from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.launch import end_job
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.exchange.window.exchange import WindowExchange
from hpcdistill.tasks.objective import Softmax


def main(steps: int = 400) -> None:
    """Train, and say now and then how it goes."""
    groups = Groups.create(count=2)  # instead of hvd.init(): Horovod works inside each group
    torch.manual_seed(groups.group)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 10))
    model, optimizer = groups.distribute(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    torch.manual_seed(groups.world.rank)
    peers = Topology("all", groups.group, groups.count)  #
    payload = WeightPayload(model)  #
    with WindowExchange(groups, payload, degree=1) as exchange:  #
        config = CodistillConfig(burn_in=100, exchange_interval=20)  #
        teachers = Teachers(config, model, exchange, payload, peers, groups, Softmax(10))  #
        for step in range(1, steps + 1):
            points = torch.randn(64, 2)
            turns = torch.atan2(points[:, 1], points[:, 0]) / (2 * torch.pi) % 1
            batch = Batch((points,), (turns * 10).long().clamp(max=9))
            teachers.predict(batch)  #
            advice = teachers.outputs()
            loss = codistillation_loss(model(points), batch.target, advice)  # instead of cross_entropy
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            teachers.advance(step)  #
            if step % 100 == 0 and groups.is_leader:
                print(f"group {groups.group}, step {step}: loss {loss.item():.3f}, {len(advice)} teachers", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (Exception, KeyboardInterrupt) as error:
        end_job(error)  # on all ranks, rather than leave the others waiting
