"""The loss of hidden states with vocab-parallel heads: real Horovod and MPI, on any number of ranks.

Where there is no Horovod, only the tests that need none run.
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcdistill import VocabParallel, linear_codistillation_loss
from hpcdistill.distributed.groups import Groups
from linear_oracle import LinearCase, assert_matches_reference, linear_cases, random_linear_case


@pytest.fixture(scope="module", params=[1, 2])
def group(request: pytest.FixtureRequest, world: Any) -> Iterator[Groups]:
    """Yield a group that is the whole world, or half of it."""
    hvd = pytest.importorskip("horovod.torch", exc_type=ImportError)
    if world.size % request.param:
        pytest.skip(f"ranks: {world.size} do not make {request.param} groups")
    yield Groups.from_world(request.param)
    hvd.shutdown()


def shard_of(case: LinearCase, group: Groups, sizes: list[int] | None = None) -> tuple[LinearCase, VocabParallel]:
    """Return this rank's part of `case`; ranks have equal numbers of classes, or `sizes`."""
    ranks, classes = group.size, case.case.logits.shape[1]
    sizes = sizes or [classes // ranks + (rank < classes % ranks) for rank in range(ranks)]
    begin = sum(sizes[: group.rank])
    end = begin + sizes[group.rank]
    return replace(case, classes=slice(begin, end)), group.vocab_parallel(end - begin)


@settings(max_examples=40)  # ranks wait for one another at each chunk
@given(
    case=linear_cases([4, 127]),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    chunk_tokens=st.sampled_from([1, 3, "auto"]),
    implementation=st.sampled_from(["cpu", "torch"]),
)
def test_loss_and_gradients_match_the_formula(
    group: Groups, case: LinearCase, reduction: str, chunk_tokens: int | str, implementation: str
) -> None:
    part, vocab_parallel = shard_of(case, group)
    factors = torch.linspace(-1, 2, len(case.case.target), dtype=torch.float64) if reduction == "none" else 0.5
    if reduction == "none" and not len(case.case.target):
        factors = 1.0
    assert_matches_reference(
        part,
        reduction,
        factors,
        chunk_tokens=chunk_tokens,
        implementation=implementation,
        vocab_parallel=vocab_parallel,
    )


def test_shards_of_any_size_and_different_chunk_sizes(group: Groups) -> None:
    case = random_linear_case(rows=20, temperature=2.0, label_smoothing=0.1, class_weight=torch.linspace(0.1, 1.1, 110))
    sizes = [1 + rank for rank in range(group.size - 1)]
    part, vocab_parallel = shard_of(case, group, [*sizes, 110 - sum(sizes)])
    assert_matches_reference(part, chunk_tokens=20 - 6 * group.rank, vocab_parallel=vocab_parallel)


def test_all_ranks_get_the_same_bits(group: Groups) -> None:
    part, vocab_parallel = shard_of(random_linear_case(rows=30), group)
    loss, (by_hidden, *_) = part.differentiated(vocab_parallel=vocab_parallel, chunk_tokens=7)
    for mine in (loss, by_hidden):
        assert all((mine.numpy() == theirs).all() for theirs in group.comm.allgather(mine.numpy()))


def test_a_shard_that_is_ruled_out_entirely(group: Groups) -> None:
    """Classes that only pad a vocabulary have logits of -inf."""
    case = random_linear_case(rows=7, V=112)
    for model in (case.student, *case.teachers):
        assert model.bias is not None
        model.bias[80:] = -torch.inf
    logits, teachers = case.student.logits, [teacher.logits for teacher in case.teachers]
    case = replace(case, case=replace(case.case, logits=logits, teachers=teachers))
    case.case.target.clamp_(max=79)
    part, vocab_parallel = shard_of(case, group)
    loss, gradients = part.differentiated(vocab_parallel=vocab_parallel)
    true_loss, true_gradients = part.reference()
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=0)
    for gradient, true in zip(gradients, true_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), true, rtol=1e-4, atol=1e-6)


def test_torch_compile_makes_one_graph(group: Groups) -> None:
    part, vocab_parallel = shard_of(random_linear_case(rows=30), group)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return linear_codistillation_loss(hidden, weight, target, vocab_parallel=vocab_parallel)

    student = part.part_of(part.student)
    results = []
    for loss_of in (compiled, linear_codistillation_loss):
        hidden, weight = student.hidden.clone().requires_grad_(), student.weight.clone().requires_grad_()
        options = {} if loss_of is compiled else {"vocab_parallel": vocab_parallel}
        loss = loss_of(hidden, weight, part.case.target, **options)
        results.append([loss.detach(), *torch.autograd.grad(loss, (hidden, weight))])
    torch.testing.assert_close(*results)


def test_a_label_that_is_in_no_shard_is_an_error_on_every_rank(group: Groups) -> None:
    part, vocab_parallel = shard_of(random_linear_case(), group)
    part.case.target[3] = 110
    with pytest.raises(ValueError, match=r"target holds 110; labels lie in \[0, 110\)"):
        part.loss(vocab_parallel=vocab_parallel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shard: replace(shard, first_class=shard.first_class + 1), r"hold these classes of 110: .* from 1 on"),
        (lambda shard: replace(shard, classes=111), r"hold these classes of 111: "),
    ],
)
def test_shards_that_are_not_the_vocabulary(
    group: Groups, change: Callable[[VocabParallel], VocabParallel], message: str
) -> None:
    part, vocab_parallel = shard_of(random_linear_case(), group)
    case = replace(part.case, class_weight=None)
    with pytest.raises(ValueError, match=message):
        replace(part, case=case).loss(vocab_parallel=change(vocab_parallel))


def test_arguments_that_differ_between_ranks(group: Groups) -> None:
    if group.size == 1:
        pytest.skip("ranks: one cannot differ from others")
    part, vocab_parallel = shard_of(random_linear_case(rows=7 + group.rank), group)
    with pytest.raises(ValueError, match=r"number of hidden's rows differs between the vocab-parallel ranks: 7, 8"):
        part.loss(vocab_parallel=vocab_parallel)
    part, vocab_parallel = shard_of(random_linear_case(), group)
    part.case.target[0] = group.rank
    with pytest.raises(ValueError, match="sum of target's labels differs"):
        part.loss(vocab_parallel=vocab_parallel)
    part, vocab_parallel = shard_of(random_linear_case(N=group.rank), group)
    with pytest.raises(ValueError, match="number of teachers with a weight > 0 differs"):
        part.loss(vocab_parallel=vocab_parallel)


def test_an_error_on_one_rank_is_an_error_on_all(group: Groups) -> None:
    """The other ranks would otherwise wait for it."""
    last = group.size - 1
    part, vocab_parallel = shard_of(random_linear_case(), group)
    own = (
        r"chunk_tokens is 0" if group.rank == last else f"rank {last} of the vocab-parallel ranks refused its arguments"
    )
    with pytest.raises(ValueError, match=own):
        part.loss(vocab_parallel=vocab_parallel, chunk_tokens=0 if group.rank == last else "auto")
    assert_matches_reference(part, vocab_parallel=vocab_parallel)


def test_only_callers_and_pending_backwards_keep_an_instance(world: Any) -> None:

    def alone() -> VocabParallel:
        return VocabParallel(0, 110, lambda tensor: tensor.unsqueeze(0), lambda tensor: tensor)

    case = random_linear_case()
    hidden = case.student.hidden.clone().requires_grad_()
    vocab_parallel = alone()
    kept = weakref.ref(vocab_parallel)
    losses = case.loss(replace(case.student, hidden=hidden), reduction="none", vocab_parallel=vocab_parallel)
    del vocab_parallel
    (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    _, (expected, *_) = case.differentiated(reduction="none")
    torch.testing.assert_close(gradient, expected)
    del losses
    assert kept() is None


def test_torch_distributed_instead_of_horovod(world: Any, tmp_path: Path) -> None:
    """The collectives are those of docs/loss.md."""
    store = dist.FileStore(str(world.bcast(tmp_path / "store")), world.size)
    dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size)
    try:
        case = random_linear_case(rows=20)
        begin, end = (110 * rank // world.size for rank in (world.rank, world.rank + 1))

        def all_gather(tensor: Tensor) -> Tensor:
            gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
            dist.all_gather(gathered, tensor)
            return torch.stack(gathered)

        vocab_parallel = VocabParallel(begin, 110, all_gather, dist.all_reduce)
        assert_matches_reference(
            replace(case, classes=slice(begin, end)), vocab_parallel=vocab_parallel, chunk_tokens=6
        )
    finally:
        dist.destroy_process_group()
