"""Ranks with different settings are refused."""

import pytest

from hpcdistill.distributed.checks import require_same_settings
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.errors import UserError


def test_equal_settings_are_accepted(world: Communicator) -> None:
    require_same_settings(world, {"groups": 2, "paths": ["a"], "average": None})


@pytest.mark.parametrize(
    ("mine", "theirs", "message"),
    [
        ({"steps": 1}, {"steps": 2}, "steps differs between ranks: 1 on world rank 0, 2 on rank"),
        ({"a": 1, "b": 1}, {"a": 1, "b": None}, "b differs between ranks: 1 on world rank 0, None on rank"),
        ({"a": [1, 2]}, {"a": [2, 1]}, r"a differs between ranks: \[1, 2\] on world rank 0, \[2, 1\] on rank"),
        ({"layers": 2}, {"factory": "m:f"}, "factory differs between ranks: not set on world rank 0, m:f on rank"),
    ],
)
def test_the_first_difference_is_named_on_every_rank(
    mine: dict[str, object], theirs: dict[str, object], message: str, world: Communicator
) -> None:
    if world.size == 1:
        pytest.skip("ranks: needs others to differ from")
    last = world.size - 1
    with pytest.raises(UserError, match=f"{message} {last}; give all ranks the same"):
        require_same_settings(world, theirs if world.rank == last else mine)
