"""Image classifier of the paper's ImageNet runs, after Goyal et al. 2017 (arXiv 1706.02677)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from hpcdistill.config.section import MODEL_NAME, ModelConfig
from hpcdistill.data.images.store import ImageStore
from hpcdistill.models.registry import register


class ResNetConfig(ModelConfig):
    """ResNet image classifier, in its small form where the store has images of at most 64 pixels a side."""

    name: Literal["resnet"] = Field(description=MODEL_NAME)
    layers: Literal[18, 50] = 50
    """Number of layers, 18 or 50."""
    width: PositiveInt = 64
    """Channels of the first stage of a 'resnet'; each further stage has twice as many."""


STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class ResNet(nn.Module):
    """Residual network of 18 or 50 layers (He et al. 2016, arXiv 1512.03385, Table 1).

    After Goyal et al. 2017, Section 5.1: in a bottleneck the 3×3 convolution has the stride; the last batch
    normalization of each block is initialized with scale 0, so that the block is the identity at first; the weights of
    the head are initialized with standard deviation 0.01.

    Args:
        layers: 18, of blocks with two 3×3 convolutions, or 50, of bottlenecks.
        classes: number of labels, K.
        channels: number of channels of an image, C.
        small: begin with one 3×3 convolution without stride or pooling, as for CIFAR (He et al. 2016, Section 4.2).
            The usual first layers make images 4 times smaller, too small if they have only 64 pixels a side.
        width: channels of the first stage, of which a bottleneck puts out 4 times as many; each further stage has
            twice as many.
    """

    def __init__(self, layers: Literal[18, 50], classes: int, channels: int, small: bool, width: int = 64) -> None:
        super().__init__()
        stem = [_convolution(channels, width, 3 if small else 7, 1 if small else 2), nn.ReLU(inplace=True)]
        if not small:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        blocks, inputs = [], width
        for stage, count in enumerate(STAGES[layers]):
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(_Block(inputs, width << stage, stride, bottleneck=layers == 50))
                inputs = blocks[-1].outputs
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, float [batch, K], for float images [batch, C, height, width]."""
        logits: torch.Tensor = self.head(self.hidden(images))
        return logits

    def hidden(self, images: torch.Tensor) -> torch.Tensor:
        """Return the input of the head, float [batch, width]."""
        features: torch.Tensor = self.blocks(self.stem(images)).mean((2, 3))
        return features


class _Block(nn.Module):
    """Residual block of two or three convolutions."""

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
    """Return a convolution and its batch normalization, whose weights are initialized to `scale`."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    normalization = nn.BatchNorm2d(outputs)
    nn.init.constant_(normalization.weight, scale)
    return nn.Sequential(convolution, normalization)


@register(ResNetConfig, ImageStore)
def build(config: ResNetConfig, store: ImageStore) -> ResNet:
    """Build the model for the classes and the channels of `store`."""
    return ResNet(config.layers, len(store.kind.classes), store.kind.channels, store.is_small, config.width)
