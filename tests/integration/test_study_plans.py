"""Judgement of plans: the truth in full trainings, and the table in the documentation."""

import sys
from pathlib import Path

import pytest

from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from hpcdistill.planning.plan import plan
from hpcdistill.planning.verdict import ANOTHER_GROUP, MORE_WORKERS, NEITHER, REGULARIZE
from pilots import write_pilot
from study_plans import Judged, Truth, find_truth, reached, regimes, replace_section, summary

pytestmark = pytest.mark.alone


def curve(*losses: float) -> dict[str, list[float]]:
    return {"steps": [100 * (index + 1) for index in range(len(losses))], "validation_loss": list(losses)}


ONE = curve(4, 3, 2.5, 2)


@pytest.mark.parametrize(
    ("one", "double", "two", "answer"),
    [
        (ONE, curve(3, 2, 1), [curve(4, 3, 2, 2)] * 2, MORE_WORKERS),
        (ONE, curve(4, 3, 2.5, 2), [curve(3, 2, 1, 1)] * 2, ANOTHER_GROUP),
        (ONE, curve(4, 3, 2.5, 2.1), [curve(4, 3, 2.5, 2)] * 2, NEITHER),
        (curve(4, 2, 2.1), curve(2, 1, 1), [curve(2, 1, 1)] * 2, REGULARIZE),
    ],
)
def test_the_truth_is_that_of_the_full_trainings(one: object, double: object, two: object, answer: str) -> None:
    assert find_truth(one, double, two).answer == answer


def test_two_groups_pay_for_their_teacher() -> None:
    truth = find_truth(ONE, curve(3, 3, 3, 3), [curve(3, 2), curve(4, 3, 2)])
    assert truth == Truth(float("inf"), pytest.approx((200 / 400 + 300 / 400) / 2 * 4 / 3), overfits=False)


def test_steps_lie_on_the_line_between_validations() -> None:
    assert reached(ONE, 3.5) == 150
    assert reached(ONE, 4.5) == 100
    assert reached(ONE, 1.0) == float("inf")


def test_the_table_counts_right_verdicts(tmp_path: Path) -> None:
    found = plan([write_pilot(tmp_path / "pilot", noise_scale=320)])
    seeds = [Truth(0.5, 1.2, overfits=False), Truth(0.6, float("inf"), overfits=False)]
    text = summary([Judged("a", found, seeds), Judged("b", None, seeds), Judged("c", found, [Truth(1, 1, False)])])
    lines = text.splitlines()
    assert lines[2].endswith(
        "| 0.55 ± 0.64 | 1.26 (1.22 to 1.30) | 1.20 (not reached by 1 of 2) | more workers | more workers | yes |"
    )
    assert lines[3].endswith("| none | more workers | no |")
    assert lines[4].endswith("| more workers | neither | **no** |")
    assert lines[-1] == "Right: 1 of 3."


def test_the_table_takes_the_place_of_the_last_one() -> None:
    page = "before\n<!-- judged -->\nold\n<!-- end of judged -->\nafter\n"
    assert replace_section(page, "new") == page.replace("old", "new")


def test_regimes_have_names_of_their_own() -> None:
    names = [regime.name for regime in regimes()]
    assert len(set(names)) == len(names) >= 8
