"""Topologies: the peers of each group."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.exchange.topology import Topology

pytestmark = pytest.mark.alone

NETWORKS = [
    ("all", 3, [[1, 2], [0, 2], [0, 1]]),
    ("ring", 4, [[1], [2], [3], [0]]),
    ("ring", 2, [[1], [0]]),
    ("pairs", 4, [[1], [0], [3], [2]]),
]


@pytest.mark.parametrize(("name", "groups", "expected"), NETWORKS)
def test_fixed_networks(name: str, groups: int, expected: list[list[int]]) -> None:
    for interval in (0, 7):
        assert [Topology(name, group, groups).peers(interval) for group in range(groups)] == expected


@given(st.integers(2, 9), st.data())
def test_random_peers_are_others_and_as_many_as_asked_for(groups: int, data: st.DataObject) -> None:
    group, degree = data.draw(st.integers(0, groups - 1)), data.draw(st.integers(1, groups - 1))
    topology = Topology("k-random", group, groups, degree, seed=data.draw(st.integers(0, 9)))
    for interval in range(5):
        peers = topology.peers(interval)
        assert len(set(peers)) == degree
        assert set(peers) <= set(range(groups)) - {group}
        assert peers == topology.peers(interval)  # a group's ranks agree without communication


def test_random_peers_change_with_interval_group_and_seed() -> None:
    def draws(group: int, seed: int) -> list[list[int]]:
        return [Topology("k-random", group, 100, 2, seed).peers(interval) for interval in range(20)]

    assert len(set(map(tuple, draws(0, 0)))) > 15
    assert draws(0, 0) != draws(0, 1) != draws(1, 1)
