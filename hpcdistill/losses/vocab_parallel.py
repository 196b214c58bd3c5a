"""A head that is split by classes over ranks which all have the same hidden states.

So Shoeybi et al., "Megatron-LM" (arXiv 1909.08053), section 3, split a language model's embedding. Each rank makes the
logits of its own classes; of those of the others it needs nothing but their logsumexp.
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

SAME = (
    "the number of hidden's rows",
    "the number of hidden's columns",
    "the number of teachers that have a share",
    "whether hidden requires grad",
    "the sum of target's labels",
)
"""What a call must not bring otherwise on one rank than on another: as many are added up."""
_REFUSAL = -1


@dataclass(frozen=True, eq=False)
class VocabularyShard:
    """A rank's classes, and how to talk with the ranks that have the others: see `Groups.vocab_parallel` for Horovod.

    Args:
        first: the class of the first row of this rank's heads. The shards follow each other in the order of ranks.
        classes: V, of all ranks together.
        gather: of a small tensor that has the same shape and dtype (float64 or int64) on every rank, all ranks' in
            their order, ``[ranks, ...]``. Collective.
        sum_: replaces a tensor (float32 or float64) by the sum of all ranks'. Collective.
    """

    first: int
    classes: int
    gather: Callable[[Tensor], Tensor]
    sum_: Callable[[Tensor], object]
    number: int = field(default_factory=count().__next__, init=False)

    def __post_init__(self) -> None:
        """Let operators of torch, whose arguments are numbers and tensors, find this one by its number."""
        SHARDS[self.number] = self

    def run(self, implementation: str, rows: Rows) -> None:
        """Fill the outputs of `rows`, which has the columns of this shard's classes, as `Shard` says. Collective."""
        lse = rows.losses.new_empty(2 + len(rows.teachers), len(rows.losses), dtype=torch.float64)
        alone = Shard(self.first, self.classes, lse, is_merged=False)
        ops.run(implementation, replace(rows, shard=alone))
        # One exchange instead of a maximum's and then a sum's.
        merged = replace(alone, lse=self.gather(lse).logsumexp(0), is_merged=True)
        ops.run(implementation, replace(rows, shard=merged))

    def losses(self, parts: Tensor, scales: Tensor, temperature: float) -> Tensor:
        """Those of rows, of whose `parts` ``[3, rows]``, as `run` left them, it makes those of all classes. Collective.

        `scales` as in `Rows`.
        """
        self.sum_(parts[:2])
        parts[1].clamp_(min=0)
        cross_entropy, divergence, lse = parts
        losses: Tensor = scales[0] * cross_entropy + scales[1] * temperature**2 * divergence + scales[2] * lse**2
        return losses

    def agree(self, device: torch.device, tokens: int, head_rows: int, facts: Sequence[int]) -> int:
        """The least `tokens` of any rank, if what else they bring, `facts` of `SAME`, fits together. Collective.

        Raises:
            ValueError: the shards are not all classes, one after the other, `facts` differ, or a rank has refused its
                arguments; on every rank.
        """
        ranks = self._gather_numbers(device, [tokens, self.first, head_rows, self.classes, *facts])
        refusing = [rank for rank, numbers in enumerate(ranks) if numbers[0] == _REFUSAL]
        if refusing:
            raise ValueError(f"rank {refusing[0]} of those that share a vocabulary was called wrongly; it says how")
        columns: list[tuple[int, ...]] = list(zip(*ranks, strict=True))
        room, firsts, sizes, classes, *others = columns
        if list(firsts) != [0, *accumulate(sizes)][:-1] or set(classes) != {sum(sizes)}:
            shards = ", ".join(f"{size} from {first} on" for first, size in zip(firsts, sizes, strict=True))
            raise ValueError(
                f"the ranks' heads have these classes of {self.classes}: {shards}; pass each rank's rows with a shard "
                "that says which they are, so that each class is in one of them"
            )
        for name, values in zip(SAME, others, strict=True):
            if len(set(values)) > 1:
                raise ValueError(
                    f"{name} differs between the ranks that share a vocabulary: {', '.join(map(str, values))}; all "
                    "but the heads must be the same on all of them"
                )
        return min(room)

    @contextmanager
    def refusing_for_all(self, device: torch.device | None) -> Iterator[None]:
        """What comes before `agree`: an error in it is one of every rank, for the others would wait for this one."""
        try:
            yield
        except Exception:
            self._gather_numbers(device, [_REFUSAL] * (4 + len(SAME)))
            raise

    def _gather_numbers(self, device: torch.device | None, mine: list[int]) -> list[list[int]]:
        everyone: list[list[int]] = self.gather(torch.tensor(mine, device=device)).tolist()
        return everyone


SHARDS: WeakValueDictionary[int, VocabularyShard] = WeakValueDictionary()
"""By number, for as long as a caller has them: they hold communicators."""
