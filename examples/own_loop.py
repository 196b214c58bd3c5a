"""Codistillation in a training loop of your own: mpirun -np 4 python examples/own_loop.py.

It is plain_loop.py with seven lines changed, one of them an import; docs/own_loop.md shows and explains them.
"""

from collections.abc import Iterator

import torch
from torch import nn

from hpcdistill import Codistillation, Groups, codistillation_loss


def batches(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield random points [64, 2] and the numbers of their sectors, int64 [64]."""
    for _ in range(steps):
        points = torch.randn(64, 2)
        turns = torch.atan2(points[:, 1], points[:, 0]) / (2 * torch.pi) % 1
        yield points, (turns * 10).long().clamp(max=9)


def main(steps: int = 400) -> None:
    """Train, and print the loss every 100 steps."""
    groups = Groups.create(2)
    torch.manual_seed(groups.world.rank)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model, optimizer = groups.distribute(model, optimizer)
    with Codistillation(model, groups, interval=20, burn_in=100, folder="runs/own_loop") as peers:
        for step, (inputs, target) in enumerate(batches(steps), start=1):
            loss = codistillation_loss(model(inputs), target, peers.predict(inputs), distill_weight=peers.weight)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            peers.step()
            if step % 100 == 0:
                print(f"step {step}: loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
