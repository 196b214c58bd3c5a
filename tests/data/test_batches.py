"""Batches of one rank."""

import pytest
import torch

from hpcdistill.data.batches import Batch

pytestmark = pytest.mark.alone


def test_a_batch_is_split_in_order_with_all_that_it_holds() -> None:
    numbers = torch.arange(7)
    parts = Batch((numbers, numbers.view(7, 1)), -numbers, {"mask": numbers > 3}).split(3)
    assert [len(part.target) for part in parts] == [3, 2, 2]
    assert torch.equal(torch.cat([part.inputs[0] for part in parts]), numbers)
    assert torch.equal(torch.cat([part.inputs[1] for part in parts]), numbers.view(7, 1))
    assert torch.equal(torch.cat([part.target for part in parts]), -numbers)
    assert torch.equal(torch.cat([part.named["mask"] for part in parts]), numbers > 3)


def test_a_batch_moves_with_all_that_it_holds() -> None:
    meta = Batch((torch.zeros(2),), torch.zeros(2), {"mask": torch.zeros(2)}).to(torch.device("meta"))
    assert all(tensor.is_meta for tensor in (*meta.inputs, meta.target, meta.named["mask"]))
