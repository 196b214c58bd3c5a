"""Vocab-parallel heads: each rank holds some of the classes, and all ranks have the same hidden states.

Shoeybi et al., "Megatron-LM" (arXiv 1909.08053), section 3, split the embedding of a language model in this way. Each
rank computes the logits of its own classes; from the other ranks it needs only their logsumexps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, count
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from hpcdistill.kernels.rows import Rows, Shard
from hpcdistill.losses import ops

SAME_ON_ALL_RANKS = (
    "the number of hidden's rows",
    "the number of hidden's columns",
    "the number of teachers with a weight > 0",
    "whether hidden requires grad",
    "the sum of target's labels",
)
"""Properties of a call that must not differ between the ranks, as the messages name them."""
_REFUSAL = -1


@dataclass(frozen=True, eq=False)
class VocabParallel:
    """Classes of this rank, and the collectives of the ranks that hold all classes together.

    `Groups.vocab_parallel` makes one for the ranks of a group.

    Args:
        first_class: Class of the first row of this rank's heads. The rows of all ranks are consecutive, in the order
            of ranks.
        classes: Number of classes V of all ranks together.
        all_gather: Function that returns the tensors of all ranks in their order, ``[ranks, ...]``. Its argument is a
            small tensor of the same shape and dtype (float64 or int64) on every rank. Collective.
        all_reduce: Function that overwrites a tensor (float32 or float64) with the sum of all ranks'. Collective.
    """

    first_class: int
    classes: int
    all_gather: Callable[[Tensor], Tensor]
    all_reduce: Callable[[Tensor], object]
    number: int = field(default_factory=count().__next__, init=False)

    def __post_init__(self) -> None:
        """Register this object under its number: the arguments of a torch operator are only numbers and tensors."""
        INSTANCES[self.number] = self

    def run(self, implementation: str, rows: Rows) -> None:
        """Fill the outputs of `rows`, which has this rank's classes as columns, as `Shard` says. Collective."""
        lse = rows.losses.new_empty(2 + len(rows.teachers), len(rows.losses), dtype=torch.float64)
        shard = Shard(self.first_class, self.classes, lse, is_merged=False)
        ops.run(implementation, replace(rows, shard=shard))
        # One collective rather than two, for a maximum and then a sum.
        merged = replace(shard, lse=self.all_gather(lse).logsumexp(0), is_merged=True)
        ops.run(implementation, replace(rows, shard=merged))

    def losses(self, parts: Tensor, scales: Tensor, temperature: float) -> Tensor:
        """Return the losses ``[rows]``, and replace `parts` ``[3, rows]`` of `run` by those of all classes. Collective.

        `scales` are those of `Rows`.
        """
        self.all_reduce(parts[:2])
        parts[1].clamp_(min=0)
        cross_entropy, divergence, lse = parts
        losses: Tensor = scales[0] * cross_entropy + scales[1] * temperature**2 * divergence + scales[2] * lse**2
        return losses

    def agree(self, device: torch.device, tokens: int, rows: int, properties: Sequence[int]) -> int:
        """Return the smallest `tokens` of all ranks, after checking that their calls fit together. Collective.

        Args:
            device: Device for the tensor that is exchanged.
            tokens: Number of tokens for whose logits this rank has memory.
            rows: Number of rows of this rank's heads.
            properties: Values of `SAME_ON_ALL_RANKS`.

        Raises:
            ValueError: The rows of all ranks are not consecutive or not all classes, `properties` differ, or a rank has
                refused its arguments. It is raised on every rank.
        """
        ranks = self._gather_numbers(device, [tokens, self.first_class, rows, self.classes, *properties])
        refusing = [rank for rank, numbers in enumerate(ranks) if numbers[0] == _REFUSAL]
        if refusing:
            raise ValueError(f"rank {refusing[0]} of the vocab-parallel ranks refused its arguments; see its message")
        columns: list[tuple[int, ...]] = list(zip(*ranks, strict=True))
        tokens_by_rank, firsts, sizes, classes, *others = columns
        if list(firsts) != [0, *accumulate(sizes)][:-1] or set(classes) != {sum(sizes)}:
            shards = ", ".join(f"{size} from {first} on" for first, size in zip(firsts, sizes, strict=True))
            raise ValueError(
                f"the ranks' heads hold these classes of {self.classes}: {shards}; pass on each rank the VocabParallel "
                "of its rows, so that each class is on exactly one rank, in the order of ranks"
            )
        for name, values in zip(SAME_ON_ALL_RANKS, others, strict=True):
            if len(set(values)) > 1:
                raise ValueError(
                    f"{name} differs between the vocab-parallel ranks: {', '.join(map(str, values))}; pass the same "
                    "arguments on all of them, except for the heads"
                )
        return min(tokens_by_rank)

    @contextmanager
    def raise_on_all_ranks(self, device: torch.device | None) -> Iterator[None]:
        """Turn an error in this context, which comes before `agree`, into an error on every rank.

        The other ranks would otherwise wait for this one in `agree`.
        """
        try:
            yield
        except Exception:
            self._gather_numbers(device, [_REFUSAL] * (4 + len(SAME_ON_ALL_RANKS)))
            raise

    def _gather_numbers(self, device: torch.device | None, numbers: list[int]) -> list[list[int]]:
        gathered: list[list[int]] = self.all_gather(torch.tensor(numbers, device=device)).tolist()
        return gathered


INSTANCES: WeakValueDictionary[int, VocabParallel] = WeakValueDictionary()
"""Instances by number. The references are weak: only callers keep an instance, which holds communicators."""
