"""A LightningModule that codistils, in two groups: mpirun -np 4 python examples/lightning_module.py runs/lightning.

The model learns which of ten sectors around the origin a point lies in.
"""

import sys

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from hpcdistill import Codistillation, Groups, codistillation_loss
from hpcdistill.integrations.lightning import CodistillationCallback, HorovodStrategy


class Sectors(LightningModule):
    """Classifier of points, with two lines that are new: the teachers' predictions, and the loss that takes them."""

    peers: Codistillation

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, points: Tensor) -> Tensor:
        """Return logits [batch, 10] for points [batch, 2]."""
        logits: Tensor = self.layers(points)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the loss with the distillation term."""
        points, sector = batch
        teachers = self.peers.predict(points)
        return codistillation_loss(self(points), sector, teachers, distill_weight=self.peers.weight)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Log the loss, as its mean over the group."""
        points, sector = batch
        self.log("validation_loss", cross_entropy(self(points), sector), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def loader(points: int, seed: int, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """Return batches of 16 random points and the numbers of their sectors."""
    inputs = torch.randn(points, 2, generator=torch.Generator().manual_seed(seed))
    turns = torch.atan2(inputs[:, 1], inputs[:, 0]) / (2 * torch.pi) % 1
    return DataLoader(TensorDataset(inputs, (turns * 10).long().clamp(max=9)), batch_size=16, shuffle=shuffle)


def main(folder: str, epochs: int = 5) -> Trainer:
    """Train the model of this process's group."""
    groups = Groups.create(2)
    seed_everything(groups.group, verbose=False)  # other weights and another order of the data for each group
    trainer = Trainer(
        strategy=HorovodStrategy(groups),
        callbacks=[CodistillationCallback(groups, interval=10, burn_in=50)],
        default_root_dir=f"{folder}/group-{groups.group}",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        logger=False,
    )
    trainer.fit(Sectors(), loader(2048, groups.group, shuffle=True), loader(512, 2))
    return trainer


if __name__ == "__main__":
    main(sys.argv[1])
