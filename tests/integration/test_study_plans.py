"""Judgement of plans: the truth in full trainings, and the table in the documentation."""

import sys
from pathlib import Path

import pytest

from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from hpcdistill.planning.plan import plan
from hpcdistill.planning.verdict import ANOTHER_GROUP, MORE_WORKERS, NEITHER, REGULARIZE
from pilots import write_pilot
from plan_regimes import LINKS, links
from study_plans import Judged, Truth, find_run, find_truth, replace_section, step_ratios, steps_of, summary

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
    assert steps_of(ONE, 3.5) == 150
    assert steps_of(ONE, 4.5) == 100
    assert steps_of(ONE, 1.0) == float("inf")


def test_the_table_counts_right_verdicts(tmp_path: Path) -> None:
    found = plan([write_pilot(tmp_path / "pilot", noise_scale=320)])
    seeds = [Truth(0.5, 1.2, overfits=False), Truth(0.6, float("inf"), overfits=False)]
    text = summary([Judged("a", found, seeds), Judged("b", None, seeds), Judged("c", found, [Truth(1, 1, False)])])
    lines = text.splitlines()
    assert lines[2].endswith(
        "| 0.55 ± 0.64 | 1.23 (1.19 to 1.27) | 1.20 (not reached by 1 of 2) | more workers | more workers | yes |"
    )
    assert lines[3].endswith("| none | more workers | no |")
    assert lines[4].endswith("| more workers | neither | **no** |")
    assert lines[-1] == "Right: 1 of 3."


def test_the_table_takes_the_place_of_the_last_one() -> None:
    page = "before\n<!-- judged -->\nold\n<!-- end of judged -->\nafter\n"
    assert replace_section(page, "new") == page.replace("old", "new")


def test_a_run_is_found_whatever_its_settings() -> None:
    runs = {"a/one-lr0.1-wd1-2": [ONE], "a/one-lr0.1-wd1-12": [ONE], "a/two-lr0.1-wd1-2": [ONE, ONE]}
    assert find_run(runs, "a/two-lr*-2") == [ONE, ONE]
    with pytest.raises(ValueError, match="too many"):
        find_run(runs, "a/one-lr*2")


def test_times_are_those_of_the_link(tmp_path: Path) -> None:
    """Medians of two measurements or three: 1 s on one node; 3 s across both; 1.5 s on each, with teachers."""
    arms = {"one group on one node": (1.0, 0.0), "one group across both": (3.0, 0.0), "one group on each": (1.0, 1.5)}
    times = [
        {
            "arm": arm,
            "link": link,
            "measured": [{"burn_in": factor * burn_in, "later": factor * later} for factor in SPREAD],
        }
        for arm, (burn_in, later) in arms.items()
        for link in ("unlimited", "20 Mbit/s")
    ]
    steps = step_ratios(times, "20 Mbit/s")
    assert steps == (3.0, 1.5)
    assert find_truth(ONE, curve(3, 2), [ONE, ONE], *steps) == Truth(1.5, 1.5, overfits=False)
    found = Judged("a", plan([write_pilot(tmp_path / "pilot")]), [], steps)
    assert [cells[:2] for cells in found.time_cells()] == [("a", "one group, 2B"), ("a", "two groups")]
    assert [cells[-1] for cells in found.time_cells()] == ["0.37", "0.90"]


SPREAD = (0.5, 1.0, 9.0)


def test_regimes_of_links_name_networks() -> None:
    assert [(regime.rate, regime.link) for regime in links()] == [*LINKS.items()]
