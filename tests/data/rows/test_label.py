"""Choice of the value of a label that is 1."""

import pytest

from hpcdistill.data.rows.label import choose_positive
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(
    ("zero", "one", "guessed"),
    [
        *[("0", "1", False), ("-1", "+1", False), ("2", "10", False), ("-2", "-1", False), ("0.0", "1e0", False)],
        *[("no", "Yes", False), ("No", "yes", False), ("f", "T", False), ("FALSE", "true", False), ("-", "+", False)],
        *[("absent", "Present", False), ("<=50K", ">50K", True), ("apple", "Pear", True), ("0", "yes", True)],
    ],
)
def test_the_larger_number_or_the_later_word_is_1(zero: str, one: str, guessed: bool) -> None:
    for values in ([zero, one], [one, zero]):
        label = choose_positive("y", values, None)
        assert (label.zero, label.one, label.is_guessed) == (zero, one, guessed)
        assert (label.is_one(zero), label.is_one(one)) == (False, True)


@pytest.mark.parametrize(("positive", "one"), [("1", "1.0"), ("+1", "1.0"), (" 1.00", "1.0"), ("0", "0.0")])
def test_a_number_is_found_however_it_is_written(positive: str, one: str) -> None:
    label = choose_positive("y", {"0.0", "1.0"}, positive)
    assert (label.one, label.is_guessed) == (one, False)


def test_numbers_written_in_two_ways_are_one_value() -> None:
    label = choose_positive("y", {"0", "1", "1.0", "+1", "0.00"}, None)
    assert [label.is_one(value) for value in ("0", "1", "1.0", "+1", "0.00")] == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("values", "positive", "message"),
    [
        ([], None, "must have two values, and it has none"),
        (["1", "1.0"], None, "must have two values, and it has '1'"),
        (["10", "9", "x"], None, "it has '9', '10', 'x'; choose another column"),
        (list("abcdefghijkl"), None, "'j', …;"),
        (["0", "1"], "2", "--positive '2' is not a value of 'y'; its values are '0', '1'"),
        (["No", "Yes"], "yes", "--positive 'yes' is not a value of 'y'; its values are 'No', 'Yes'"),
    ],
)
def test_what_is_no_label_is_refused_with_its_values(values: list[str], positive: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_positive("y", values, positive)
