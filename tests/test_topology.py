import pytest

from hpcdistill.exchange.topology import peers_of

NETWORKS = [
    ("all", 3, [[1, 2], [0, 2], [0, 1]]),
    ("ring", 4, [[1], [2], [3], [0]]),
    ("ring", 2, [[1], [0]]),
    ("pairs", 4, [[1], [0], [3], [2]]),
]


@pytest.mark.parametrize(("topology", "groups", "expected"), NETWORKS)
def test_who_learns_from_whom(topology: str, groups: int, expected: list[list[int]]) -> None:
    assert [peers_of(topology, group, groups) for group in range(groups)] == expected
