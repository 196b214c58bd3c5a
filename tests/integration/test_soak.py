"""Soak test of the exchange, shortened; it finds torn and mixed snapshots once a safeguard is removed."""

import re
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from repository import ROOT

pytestmark = pytest.mark.launch

Run = Callable[..., CompletedProcess[str]]

BENCHMARKS = ROOT / "benchmarks"

ACCEPT_ONE_VERSION_TOO_LATE = """
import soak_exchange
from hpcdistill.exchange.window.reader import SLOTS, Reader, total_nbytes

def fetch(reader, version):
    peer, shards = reader._held
    yield from reader._slots(version)
    reader._traffic.fetched[peer] += total_nbytes(shards)
    return max((yield from reader._headers())) - version <= SLOTS - 1

Reader._fetch = fetch
soak_exchange.main()
"""

ADOPT_WITHOUT_AGREEMENT = """
import numpy as np
import soak_exchange
from mpi4py import MPI
from hpcdistill.exchange.window.exchange import WindowExchange

def compare_staged(exchange):
    versions = [min(reader.staged, reader.epoch + 1) for reader in exchange._readers]  # all equal
    extremes = np.array([versions, [-version for version in versions]])
    return extremes, exchange._group_comm.Iallreduce(MPI.IN_PLACE, extremes, op=MPI.MIN)

WindowExchange._compare_staged = compare_staged
soak_exchange.main()
"""


def test_nothing_torn_or_mixed_is_delivered(mpirun: Run) -> None:
    result = mpirun(4, BENCHMARKS / "soak_exchange.py", "--slot-bytes", 4096, 2**20, "--fetches", 2000, 200)
    assert result.returncode == 0, result.stderr
    for nbytes, least in ((4096, 2000), (2**20, 200)):
        row = re.search(rf"^\| {nbytes} \| (\d+) \| (\d+) \| (\d+) \| \d+ \| \d+ \| 0 \| 0 \|", result.stdout, re.M)
        assert row, result.stdout
        published, fetches, delivered = map(int, row.groups())
        assert fetches >= least
        assert 0 < delivered <= published


@pytest.mark.parametrize(
    ("change", "found"),
    [(ACCEPT_ONE_VERSION_TOO_LATE, "torn|mixed"), (ADOPT_WITHOUT_AGREEMENT, "mixed")],
    ids=["accepting", "adopting"],
)
def test_the_soak_finds_bad_snapshots_without_a_safeguard(mpirun: Run, change: str, found: str) -> None:
    arguments = ("--slot-bytes", 2**20, "--fetches", 100_000)
    result = mpirun(4, "-c", change, *arguments, env={"PYTHONPATH": str(BENCHMARKS)})
    assert result.returncode == 1
    assert re.search(rf"({found}): step \d+ of group [01] is \d+; its shards hold \[\[", result.stderr), result.stderr


def test_options_that_do_not_fit_are_refused(mpirun: Run) -> None:
    result = mpirun(1, BENCHMARKS / "soak_exchange.py")
    assert result.returncode == 2
    assert "1 ranks do not make two equal groups" in result.stderr
