"""Ids of frequent categories."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.data.rows import categories
from hpcdistill.data.rows.categories import Counts, Vocabulary

pytestmark = pytest.mark.alone


@given(pieces=st.lists(st.lists(st.integers(0, 9) | st.integers(0, 2**63 - 1))), least=st.integers(1, 4))
def test_what_occurs_often_enough_is_found_however_it_is_merged(pieces: list[list[int]], least: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(categories, "MERGE_VALUES", 5)
        counts = Counts()
        for piece in pieces:
            counts.add(np.array(piece, np.int64))
        expected = Counter(value for piece in pieces for value in piece)
        assert counts.at_least(least).tolist() == sorted(v for v, count in expected.items() if count >= least)


def test_ids_are_of_missing_rare_and_frequent_ones() -> None:
    first, second = Counts(), Counts()
    first.add(np.array([7, 7, 3, 3, 5]))
    ids = Vocabulary([first, second], 2)
    assert ids.cardinalities == [4, 2]
    values = np.array([-1, 3, 5, 6, 7, 9])
    codes = np.stack([np.arange(6), 6 + np.arange(6)], axis=1)
    assert ids.ids(codes, np.concatenate([values, values]), np.array([0, 6, 12])).tolist() == [
        [0, 0],
        [2, 1],
        [1, 1],
        [1, 1],
        [3, 1],
        [1, 1],
    ]
