"""Processes that read a user's data and die while nothing is read."""

import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

import own_data
from hpcdistill.data.batches import Share
from hpcdistill.data.datasets.batches import DatasetBatches, DatasetValidation
from hpcdistill.data.datasets.factory import FactoryData
from hpcdistill.errors import UserError

pytestmark = [pytest.mark.alone, pytest.mark.launch]

DIED = r"a process of data.workers has died \(DataLoader worker \(pid \d+\) is killed by signal: Killed"


@pytest.fixture
def store() -> FactoryData:
    return FactoryData(own_data.config("numbers"), Share())


def kill_reader() -> None:
    """Kill the newest child of this process, and have Python handle the signal that reports its death."""
    child = max(multiprocessing.active_children(), key=lambda child: child.name)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # leaves its status to torch
    signal.raise_signal(signal.SIGCHLD)


def test_a_process_that_dies_in_a_training_step_fails_the_next_read(store: FactoryData) -> None:
    """The next read is in the thread that reads ahead."""
    batches = DatasetBatches(store, own_data.config("numbers", workers=1), Share())
    next(batches)
    kill_reader()
    with ThreadPoolExecutor(1) as thread, pytest.raises(UserError, match=f"batch 1 of the tra.* data failed: {DIED}"):
        thread.submit(next, batches).result()


def test_a_process_that_dies_between_validations_fails_the_next_one(store: FactoryData) -> None:
    validation = DatasetValidation(store, own_data.config("numbers", workers=1), 0, 1, None)
    assert len(list(validation)) == 3
    kill_reader()
    with pytest.raises(UserError, match=f"reading the validation data failed: {DIED}"):
        list(validation)
