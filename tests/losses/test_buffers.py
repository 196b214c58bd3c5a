import gc
import threading

import pytest
import torch

from hpcdistill.losses import buffers

pytestmark = pytest.mark.alone

ROWS = buffers.SMALLEST // 4000 + 1  # of 1000 float32: just large enough


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    gc.collect()
    buffers.release()


def test_memory_is_reused_for_a_tensor_of_about_the_same_size() -> None:
    tensor = buffers.empty((ROWS, 1000), torch.float32)
    assert (tensor.shape, tensor.dtype) == ((ROWS, 1000), torch.float32)
    where = tensor.fill_(7.0).data_ptr()
    del tensor
    again = buffers.empty((ROWS * 2, 1000), torch.bfloat16)
    assert again.data_ptr() == where


def test_memory_in_use_is_not_reused() -> None:
    first = buffers.empty((ROWS, 1000), torch.float32).fill_(1.0)
    view = first[5:]
    del first
    second = buffers.empty((ROWS, 1000), torch.float32).fill_(2.0)
    assert (view == 1.0).all()
    assert (second == 2.0).all()


@pytest.mark.parametrize(("kept", "wanted"), [(3 * ROWS, ROWS), (ROWS, 3 * ROWS)])
def test_a_block_of_another_size_is_returned(kept: int, wanted: int) -> None:
    """The block is too small, or most of it would be unused."""
    tensor = buffers.empty((kept, 1000), torch.float32)
    del tensor
    assert len(buffers._free) == 1
    tensor = buffers.empty((wanted, 1000), torch.float32).fill_(1.0)
    assert len(buffers._free) == 0
    del tensor
    assert len(buffers._free[0]) == wanted * 4000


def test_at_most_one_block_is_kept() -> None:
    tensors = [buffers.empty((ROWS, 1000), torch.float32) for _ in range(3)]
    tensors.clear()
    assert len(buffers._free) == 1
    buffers.release()
    assert len(buffers._free) == 0


def test_small_tensors_come_from_malloc() -> None:
    tensor = buffers.empty((10, 10), torch.float64)
    del tensor
    assert len(buffers._free) == 0
    assert buffers.empty((0, 5), torch.float32).shape == (0, 5)


def test_freed_by_another_thread() -> None:
    """Autograd frees tensors in threads of its own."""
    holder = [buffers.empty((ROWS, 1000), torch.float32)]
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    assert len(buffers._free) == 1
