"""Wire format and quantization of published weights.

A teacher is stale anyway, so its weights tolerate rounding (Anil et al. 2018 suggest aggressive quantization). Buffers,
such as BatchNorm's statistics and counters, are small and sensitive: they are always sent unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from hpcdistill.errors import UserError
from hpcdistill.exchange.layout import Layout, Piece, aligned

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CODECS = {"fp32": FLOATS, "bf16": (torch.float64, torch.float32, torch.bfloat16), "int8": FLOATS}
"""Dtypes of the parameters that each codec carries."""

BLOCK = 256
"""Parameters that share one scale under `int8`. The scale costs 4 bytes in 256; an outlier affects its block only."""

TINY = torch.finfo(torch.float32).tiny

CHUNK = 1024
"""Blocks quantized at a time: 1 MiB of float32, which stays in a core's cache between the passes over it."""


@dataclass
class _Chunk:
    """Consecutive blocks [begin, end) of a shard, and the pieces in them; each piece begins with a new block."""

    begin: int
    end: int
    pieces: list[tuple[int, Piece]]
    """Pieces, each with the index of its first element in the chunk."""

    def of(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the pieces as views of the model's tensors."""
        return [piece.of(tensors) for _, piece in self.pieces]

    def runs(self, blocks: torch.Tensor) -> list[torch.Tensor]:
        """Return the pieces as views of `blocks`, float32 [end - begin, BLOCK]."""
        flat = blocks.view(-1)
        return [flat[first : first + piece.numel] for first, piece in self.pieces]


class Packing:
    """Encoding of one shard of a model as flat bytes.

    Codecs: `fp32` sends parameters unchanged, float64 rounded to float32. `bf16` rounds to bfloat16; the relative error
    is at most 2⁻⁸. `int8` rounds each block of `BLOCK` consecutive elements of a parameter to the nearest of 255
    multiples of the block's largest magnitude / 127; the error is at most 1/254 of that magnitude. NaN and infinity
    stay non-finite under every codec (under `int8`, somewhere in their block).

    Args:
        layout: layout of the model.
        codec: a key of `CODECS`.
        rank: number of the shard.
        size: number of shards.

    Attributes:
        nbytes: length of the encoded shard in bytes, a multiple of 64.
    """

    def __init__(self, layout: Layout, codec: str, rank: int, size: int) -> None:
        pieces = layout.shard(rank, size)
        quantises = codec == "int8"
        self._copied = [piece for piece in pieces if not (quantises and piece.entry.is_weight)]
        self._dtypes = [_dtype_on_the_wire(piece, codec) for piece in self._copied]
        self._chunks = _chunks([piece for piece in pieces if quantises and piece.entry.is_weight])
        self._blocks = blocks = self._chunks[-1].end if self._chunks else 0
        # Scales, blocks, then the pieces that are only copied, each aligned for its dtype.
        lengths = [blocks * 4, blocks * BLOCK]
        lengths += [piece.numel * dtype.itemsize for piece, dtype in zip(self._copied, self._dtypes, strict=True)]
        offsets = [0, *accumulate(map(aligned, lengths))]
        self._spans = [(offset, offset + length) for offset, length in zip(offsets, lengths, strict=False)]
        self.nbytes = offsets[-1]

    def encode(self, tensors: list[torch.Tensor], wire: torch.Tensor) -> None:
        """Encode the shard of a model into `wire`.

        Args:
            tensors: tensors of the model, in layout order.
            wire: memory to write to, uint8 [nbytes], 16-byte aligned, on the tensors' device.
        """
        if self._copied:
            torch._foreach_copy_(self._copies(wire), [piece.of(tensors) for piece in self._copied])
        scratch = torch.empty(min(self._blocks, CHUNK), BLOCK, device=wire.device)
        for chunk in self._chunks:
            blocks = scratch[: chunk.end - chunk.begin].zero_()
            torch._foreach_copy_(chunk.runs(blocks), chunk.of(tensors))
            largest = torch.maximum(blocks.amax(1, keepdim=True), blocks.amin(1, keepdim=True).neg_())
            scales = largest.div_(127).clamp_min_(TINY)  # never 0, so that a block of zeros can be divided by it
            self._scales(wire, chunk).copy_(scales)
            self._integers(wire, chunk).copy_(blocks.div_(scales).round_())

    def decode(self, wire: torch.Tensor, tensors: list[torch.Tensor]) -> None:
        """Decode the shard in `wire` into the `tensors` of a model, on any device.

        If `wire` is in pinned memory, a GPU may read it until it has done its present work.
        """
        wire = wire.to(tensors[0].device, non_blocking=True)  # in one copy rather than tensor by tensor
        if self._copied:
            torch._foreach_copy_([piece.of(tensors) for piece in self._copied], self._copies(wire))
        scratch = torch.empty(min(self._blocks, CHUNK), BLOCK, device=wire.device)
        for chunk in self._chunks:
            integers, scales = self._integers(wire, chunk), self._scales(wire, chunk)
            blocks = scratch[: chunk.end - chunk.begin].copy_(integers).mul_(scales)
            torch._foreach_copy_(chunk.of(tensors), chunk.runs(blocks))

    def _copies(self, wire: torch.Tensor) -> list[torch.Tensor]:
        spans = zip(self._spans[2:], self._dtypes, strict=True)
        return [wire[begin:end].view(dtype) for (begin, end), dtype in spans]

    def _scales(self, wire: torch.Tensor, chunk: _Chunk) -> torch.Tensor:
        begin, end = self._spans[0]
        return wire[begin:end].view(torch.float32)[chunk.begin : chunk.end].view(-1, 1)

    def _integers(self, wire: torch.Tensor, chunk: _Chunk) -> torch.Tensor:
        begin, end = self._spans[1]
        return wire[begin:end].view(torch.int8).view(-1, BLOCK)[chunk.begin : chunk.end]


def require_codec(codec: str, layout: Layout) -> None:
    """Raise a `UserError` if `codec` does not carry the dtype of a parameter."""
    for entry in layout.entries:
        if entry.is_weight and entry.dtype not in CODECS[codec]:
            able = [name for name, dtypes in CODECS.items() if entry.dtype in dtypes]
            remedy = f"use exchange.codec = {' or '.join(able)}" if able else "convert it to float32"
            raise UserError(f"exchange.codec = {codec} does not carry the parameter {entry}; {remedy}")


def _chunks(pieces: list[Piece]) -> list[_Chunk]:
    """Divide the pieces among chunks of `CHUNK` blocks; cut a piece where a chunk is full."""
    chunks: list[_Chunk] = []
    for piece in pieces:
        first = piece.first
        while first < piece.last:
            if not chunks or chunks[-1].end - chunks[-1].begin == CHUNK:
                end = chunks[-1].end if chunks else 0
                chunks.append(_Chunk(end, end, []))
            chunk = chunks[-1]
            used = chunk.end - chunk.begin
            last = min(piece.last, first + (CHUNK - used) * BLOCK)
            chunk.pieces.append((used * BLOCK, replace(piece, first=first, last=last)))
            chunk.end += -(-(last - first) // BLOCK)
            first = last
    return chunks


def _dtype_on_the_wire(piece: Piece, codec: str) -> torch.dtype:
    dtype = piece.entry.dtype
    if not piece.entry.is_weight:
        return dtype
    widest = torch.bfloat16 if codec == "bf16" else torch.float32
    return min(dtype, widest, key=lambda each: each.itemsize)
