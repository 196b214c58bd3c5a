"""The image models of the paper's ImageNet runs, which are those of Goyal et al. 2017 (arXiv 1706.02677)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

WIDTHS = (64, 128, 256, 512)
STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class ResNet(nn.Module):
    """A residual network of 18 or 50 layers (He et al. 2016, arXiv 1512.03385, Table 1).

    As in Goyal et al. 2017, Section 5.1: in a bottleneck it is the 3×3 convolution that strides, the last batch
    normalisation of each block begins with scale 0, so that the block begins as the identity, and the head with
    deviation 0.01.

    Args:
        layers: 18, of blocks with two 3×3 convolutions, or 50, of bottlenecks.
        classes: number of labels, K.
        channels: of the pictures, C.
        small: pictures have 64 pixels a side or less, which the usual first layers would make 4 times smaller: instead
            one 3×3 convolution without stride or pooling, as for CIFAR (He et al. 2016, Section 4.2).
    """

    def __init__(self, layers: Literal[18, 50], classes: int, channels: int, small: bool) -> None:
        super().__init__()
        stem = [_convolution(channels, WIDTHS[0], 3 if small else 7, 1 if small else 2), nn.ReLU(inplace=True)]
        if not small:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        blocks, inputs = [], WIDTHS[0]
        for stage, (width, count) in enumerate(zip(WIDTHS, STAGES[layers], strict=True)):
            for number in range(count):
                blocks.append(_Block(inputs, width, 2 if stage and not number else 1, bottleneck=layers == 50))
                inputs = blocks[-1].outputs
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits, float [batch, K], for float images [batch, C, height, width]."""
        logits: torch.Tensor = self.head(self.hidden(images))
        return logits

    def hidden(self, images: torch.Tensor) -> torch.Tensor:
        """What the head makes logits of, float [batch, width]."""
        features: torch.Tensor = self.blocks(self.stem(images)).mean((2, 3))
        return features


class _Block(nn.Module):
    """What a few convolutions add to their input."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.outputs = 4 * width if bottleneck else width
        first, last = (1, 1) if bottleneck else (3, 3)
        middle = [_convolution(width, width, 3, stride), nn.ReLU(inplace=True)] if bottleneck else []
        self.residual = nn.Sequential(
            _convolution(inputs, width, first, 1 if bottleneck else stride),
            nn.ReLU(inplace=True),
            *middle,
            _convolution(width, self.outputs, last, 1, scale=0),
        )
        changes_shape = stride > 1 or inputs != self.outputs
        self.shortcut = _convolution(inputs, self.outputs, 1, stride) if changes_shape else nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(features) + self.residual(features))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, scale: float = 1) -> nn.Module:
    """With its batch normalisation, which begins with `scale`."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    normalisation = nn.BatchNorm2d(outputs)
    nn.init.constant_(normalisation.weight, scale)
    return nn.Sequential(convolution, normalisation)
