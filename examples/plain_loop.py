"""A plain training loop of torch, to compare with own_loop.py: python examples/plain_loop.py.

The model learns which of ten sectors around the origin a point lies in.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy


def batches(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield random points [64, 2] and the numbers of their sectors, int64 [64]."""
    for _ in range(steps):
        points = torch.randn(64, 2)
        turns = torch.atan2(points[:, 1], points[:, 0]) / (2 * torch.pi) % 1
        yield points, (turns * 10).long().clamp(max=9)


def main(steps: int = 400) -> None:
    """Train, and print the loss every 100 steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step, (inputs, target) in enumerate(batches(steps), start=1):
        loss = cross_entropy(model(inputs), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    main()
