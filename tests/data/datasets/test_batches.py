"""Batches of a user's data: each example once, restarts at any batch, processes, and examples of a wrong form."""

import random
from collections import deque
from itertools import islice
from typing import Any

import pytest
import torch

import own_data
from hpcdistill.data.batches import Batch, Share
from hpcdistill.data.datasets.batches import DatasetBatches, DatasetValidation
from hpcdistill.data.datasets.factory import FactoryData
from hpcdistill.data.prefetch import Prefetch
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.errors import UserError

CPU = torch.device("cpu")
KINDS = ["numbers", "stream", "stateful_stream", "own_share", "loaders", "stateful_loaders"]


def open_batches(function: str, share: Share | None = None, **options: Any) -> DatasetBatches:
    config, share = own_data.config(function, **options), share or Share()
    return DatasetBatches(FactoryData(config, share), config, share)


def open_validation(function: str, rank: int, size: int, items: int | None = None, **options: Any) -> DatasetValidation:
    config = own_data.config(function, **options)
    return DatasetValidation(FactoryData(config, Share(rank=rank, size=size)), config, rank, size, items)


def numbers(batch: Batch) -> list[int]:
    """Return the numbers of a batch's examples; check that the targets are theirs."""
    found = [int(number) for number in batch.inputs[0].flatten().tolist()]
    assert batch.target.tolist() == [number % own_data.CLASSES for number in found]
    return found


@pytest.mark.alone
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("parts", "size"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_each_example_is_drawn_once_in_a_pass(kind: str, parts: int, size: int) -> None:
    shares = [Share(part, parts, rank, size, (7, part)) for part in range(parts) for rank in range(size)]
    ranks = [open_batches(kind, share, batch_size=2 * size) for share in shares]
    drawn = 40 // (2 * len(shares))
    for _ in range(2):
        found = [number for batches in ranks for _ in range(drawn) for number in numbers(next(batches))]
        assert sorted(found) == [*range(40)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_of_a_world_share_a_pass(kind: str, world: Communicator) -> None:
    for share in (Share(world.rank, world.size, seed=(world.rank,)), Share(rank=world.rank, size=world.size)):
        batches = open_batches(kind, share, batch_size=2 * share.size)
        mine = [number for _ in range(40 // (2 * world.size)) for number in numbers(next(batches))]
        assert sorted(number for each in world.allgather(mine) for number in each) == [*range(40)]


@pytest.mark.alone
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cursor", [3, 10, 23])  # within a pass, at its end, in a later one
def test_a_restart_continues_at_any_batch(kind: str, cursor: int, capsys: pytest.CaptureFixture[str]) -> None:
    straight, resumed = open_batches(kind), open_batches(kind)
    for _ in range(cursor):
        next(straight)
    resumed.drawn, resumed.reader_state = straight.drawn, straight.reader_state
    expected = [numbers(next(straight)) for _ in range(15)]
    assert [numbers(next(resumed)) for _ in range(15)] == expected
    warning = f"no state_dict and load_state_dict: reading {cursor} batches again, to continue after them"
    assert (warning in capsys.readouterr().err) == (kind in ("stream", "own_share", "loaders"))


@pytest.mark.alone
def test_what_was_drawn_is_not_read_again() -> None:
    straight, resumed = open_batches("stateful_stream"), open_batches("stateful_stream")
    for _ in range(9):
        next(straight)
    resumed.drawn, resumed.reader_state = 9, straight.reader_state
    assert numbers(next(resumed)) == [36, 37, 38, 39]
    assert resumed._data.read == 4
    order = open_batches("numbers", bad={"7": "raises"}, count=8)
    order.drawn = 1 if 7 in order._order.numbers(0) else 0
    next(order)


@pytest.mark.alone
def test_a_state_that_no_checkpoint_can_hold_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    batches = open_batches("stateful_stream")
    batches._data.extra = random.Random()  # an object whose making could run code
    assert numbers(next(batches)) == [0, 1, 2, 3]
    assert batches.reader_state is None
    assert "the state_dict of the data, a StatefulStream, cannot be kept in checkpoints (" in capfd.readouterr().err


@pytest.mark.alone
def test_the_pass_is_told() -> None:
    batches = open_batches("stream")
    for _ in range(11):
        next(batches)
    assert batches._data.epochs == [0, 1]


@pytest.mark.alone
def test_inputs_by_name_and_targets_that_are_ignored() -> None:
    batch = next(open_batches("words"))
    assert batch.inputs == ()
    assert {name: (value.dtype, value.shape) for name, value in batch.named.items()} == {
        "tokens": (torch.int64, (4, 6)),
        "mask": (torch.bool, (4, 6)),
    }
    assert (batch.target.shape, batch.counted.item()) == ((4, 6), 16)


@pytest.mark.alone
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("items", [None, 5])
def test_ranks_share_the_validation_examples(kind: str, items: int | None) -> None:
    shares = [open_validation(kind, rank, 2, items) for rank in range(2)]
    for _ in range(2):  # they can be iterated again
        found = sorted(number for share in shares for batch in share for number in numbers(batch))
        if items is None:
            assert found == [*range(12)]
        elif "loaders" in kind:  # whose batches are not cut
            assert set(found) >= {*range(4)}
        else:
            assert found == ([0, 2, 5, 8, 11] if kind == "numbers" else [*range(5)])
    assert all(len([*share]) <= len(share) for share in shares)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("numbers", {"count": 3}, r"gives each of 2 groups 1 examples, fewer than data.batch_size = 4; prepare more"),
        ("stream", {"workers": 2}, r"workers = 2, but data.factory = 'own_data:stream' returned an iterable dataset"),
        (
            "unshared_loaders",
            {},
            r"returned a loader, and all 2 ranks would get the same batches; .* share.shard of sh",
        ),
        ("stream", {"count": 1}, r"the training data has no example for this rank, number 1 of 2; give it more data"),
        ("loaders", {"count": 2}, r"the training data has no example for this rank, number 1 of 2; give it more data"),
    ],
)
def test_data_that_cannot_be_shared_out_is_refused(function: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(open_batches(function, Share(1, 2), **options))


@pytest.mark.alone
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no target", r"a batch is float32 \[4, 1\]; expected \(inputs, target\), where inputs is a tensor, a tuple"),
        ("dictionary", r"a batch is a dictionary of 'input_ids', 'labels'; expected \(inputs, target\)"),
        ("text", r"input 0 of a batch is a tuple of str \(4\), expected a tensor|input 0 of a batch is str"),
        ("by name, text", r"input 'a' of a batch is a list of str \(4\), expected a tensor"),
        ("float target", r"the target is float64 \[4\], expected int64, numbers of the data.classes = 5 classes"),
        ("int32 target", r"the target is int32 \[4\], expected int64"),
        ("class 5", r"a target is 5, expected 0 to 4, as data.classes = 5, or -100 for no target"),
        ("class -1", r"a target is -1, expected 0 to 4"),
        ("unequal", r"(?s)reading batch 0 of the training data failed: .*stack expects each tensor to be equal size"),
    ],
)
def test_an_example_of_a_wrong_form_is_named(kind: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(open_batches("examples", kind=kind))


@pytest.mark.alone
def test_binary_targets_are_floats_from_0_to_1() -> None:
    assert next(open_batches("examples", classes=None, kind="float target")).target.dtype == torch.float32
    with pytest.raises(UserError, match=r"the target is int64 \[4\], expected floats, 0 or 1; for a choice .*classes"):
        next(open_batches("examples", classes=None, kind="class 5"))


@pytest.mark.alone
def test_a_batch_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"a batch has 5 examples, expected 4, .* gets this number as `batch_size`"):
        next(open_batches("loaders_of_five"))


@pytest.mark.alone
def test_an_example_that_raises_is_told_with_the_place_in_the_user_s_code() -> None:
    batches = open_batches("numbers", bad={str(number): "raises" for number in range(40)})
    with pytest.raises(
        UserError, match=r"(?s)batch 0 of the tra.* failed: .*own_data.py.*ValueError: example \d+ is bad"
    ):
        next(batches)


@pytest.mark.alone
@pytest.mark.launch
def test_processes_read_the_same_batches_and_repeat_what_is_random_in_them() -> None:
    def draw(begin: int, end: int, workers: int) -> list[Batch]:
        batches = open_batches("drawn", Share(1, 2, seed=(3,)), workers=workers)
        batches.drawn = begin
        with Prefetch(batches, CPU) as ahead:
            ahead.drawn = begin
            return [next(ahead) for _ in range(begin, end)]

    straight, resumed, thread = draw(0, 6, 2), draw(3, 6, 1), draw(0, 6, 0)
    assert [numbers(batch) for batch in straight] == [numbers(batch) for batch in thread]
    for before, after in zip(straight[3:], resumed, strict=True):
        assert torch.equal(before.inputs[0], after.inputs[0])
        assert torch.equal(before.inputs[1], after.inputs[1])
    assert len({value for batch in straight for value in batch.inputs[1].flatten().tolist()}) == 24


@pytest.mark.alone
@pytest.mark.launch
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", r"(?s)batch \d of the training data failed: .*own_data.py.*ValueError: example \d+ is bad"),
        (
            "dies",
            r"batch \d of the training data failed: a process of data.workers has died \(DataLoader worker .*exit",
        ),
    ],
)
def test_an_error_in_a_process_is_raised_in_the_training(kind: str, message: str) -> None:
    batches = open_batches("numbers", bad={str(number): kind for number in range(10, 14)}, workers=1)
    with Prefetch(batches, CPU) as ahead, pytest.raises(UserError, match=message):
        deque(islice(ahead, 20))


@pytest.mark.alone
@pytest.mark.launch
def test_data_that_cannot_be_sent_to_a_process_is_told() -> None:
    batches = open_batches("numbers", workers=1)
    batches._data.bad = {0: lambda: None}
    with pytest.raises(UserError, match=r"cannot be sent to the processes of data.workers \(.*; define its classes in"):
        next(batches)
