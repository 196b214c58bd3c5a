"""Plans and verdicts for pilots whose answer is known."""

from pathlib import Path
from typing import Any

import pytest

from hpcdistill.errors import UserError
from hpcdistill.planning import laws
from hpcdistill.planning.laws import Link
from hpcdistill.planning.plan import Plan, Row, plan
from hpcdistill.planning.verdict import ANOTHER_GROUP, MORE_WORKERS, NEITHER, REGULARIZE, UNKNOWN
from pilots import write_pilot

pytestmark = pytest.mark.alone


def row(found: Plan, groups: int, ranks: int) -> Row:
    return next(each for each in found.rows if (each.groups, each.ranks) == (groups, ranks))


@pytest.mark.parametrize(
    ("settings", "answer", "reason"),
    [
        ({"noise_scale": 320, "gap": 0.01, "noise": 0.001}, MORE_WORKERS, "the gradient noise scale is 20 "),
        ({"noise_scale": 1.6, "gap": 0.2, "slope": 0.05}, ANOTHER_GROUP, "the ensemble gap is 0"),
        ({"slope": -0.15, "training_slope": 0.2}, REGULARIZE, "the validation loss rises, by 0.15"),
        ({"slope": 0.02, "training_slope": 0.2, "passes": 8}, REGULARIZE, "after 8 passes over the data the"),
        ({"slope": 0.02, "training_slope": 0.2, "passes": 1, "noise_scale": 320, "gap": 0.001}, MORE_WORKERS, "two gr"),
        ({"noise_scale": 16, "gap": 0.2, "slope": 0.05}, ANOTHER_GROUP, "would take 0.75 of the steps"),  # both pay
        (
            {"noise_scale": 60, "gap": 0.12, "slope": 0.05},
            UNKNOWN,
            "is assumed: only a run with teachers",
        ),  # both alike
        ({"noise_scale": 1.6, "gap": 0.001}, NEITHER, "two groups 1.3"),
        (
            {"noise_scale": 1.6, "gap": 0.06, "slope": 0.05, "passes": 0.05},
            NEITHER,
            "two groups 1.2",
        ),  # little of the gap is earned
        ({"noise_scale": 16, "noise": 1.5}, UNKNOWN, "more measurements of the noise scale"),
        (
            {"noise_scale": 1.6, "gap": 0.08, "slope": 0.06},
            UNKNOWN,
            "is assumed: only a run with teachers would decide",
        ),
        (
            {"noise_scale": 1.6, "gap": 0.08, "slope": 0.06, "loss_noise": 0.015},
            UNKNOWN,
            "longer pilot with more validat",
        ),
        ({"slope": 0.0005}, UNKNOWN, "neither falls nor rises clearly"),
        ({"groups": 1, "noise_scale": 320, "noise": 0.001}, MORE_WORKERS, "the gradient noise scale is 20 "),
        ({"groups": 1, "noise_scale": 1.6}, UNKNOWN, "not measured: train a pilot of two groups that are peers (--gr"),
        ({"square": -0.1}, MORE_WORKERS, "the gradient cannot be told from its noise: to the"),
        ({"square": -0.1, "noise": 0.2}, MORE_WORKERS, "the gradient noise scale is more than "),
        # The language study: a doubled batch takes 0.4 to 0.6 of the steps, so the noise is several times the batch;
        # two models apart have an ensemble 0.05 nats better, and the loss falls by 0.2 nats per ln(step).
        ({"noise_scale": 96, "gap": 0.05, "slope": 0.2, "noise": 0.3}, MORE_WORKERS, "two groups 1.2"),
    ],
)
def test_verdicts_for_known_regimes(settings: dict[str, Any], answer: str, reason: str, tmp_path: Path) -> None:
    verdict = plan([write_pilot(tmp_path / "pilot", **settings)]).verdict
    assert verdict.answer == answer
    assert reason in verdict.reason
    assert verdict.sentences()[0].startswith(f"Verdict: {answer}")
    assert "a second group pays whatever the rest says; its price is twice the ranks and" in verdict.churn


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"unit": "token", "passes": 0.05}, "on disjoint data at weight 0.1"),
        ({"unit": "image", "passes": 0.05}, "on disjoint data at weight 1"),
        ({"unit": "image", "passes": 1.0}, "on the same data at weight 0.3 to 1"),  # ten times until the end
        ({"unit": "token", "passes": 1.0}, "on the same data at weight 0.3 to 1"),
    ],
)
def test_another_group_learns_with_a_weight_of_its_kind(
    settings: dict[str, Any], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(laws, "EARNED_IN_ONE_PASS", laws.EARNED)
    verdict = plan([write_pilot(tmp_path / "pilot", noise_scale=1.6, gap=0.2, slope=0.05, **settings)]).verdict
    assert verdict.advice.startswith(advice)


def test_rows_follow_the_laws(tmp_path: Path) -> None:
    """Noise scale = batch, so a doubled batch takes 3/4 of the steps; steps after the burn-in: exp(−0.3 · gap / λ)."""
    found = plan([write_pilot(tmp_path / "pilot", noise_scale=16, noise=0.001, gap=0.1, slope=0.2)])
    assert [(each.groups, each.ranks, each.batch) for each in found.rows] == [
        *((1, 1, 16), (1, 2, 32), (2, 1, 16), (1, 4, 64), (4, 1, 16))
    ]
    assert row(found, 1, 1).steps.value == 4000
    assert row(found, 1, 2).steps.value == pytest.approx(3000, rel=0.01)
    assert row(found, 1, 4).steps.value == pytest.approx(2500, rel=0.01)
    assert row(found, 2, 1).steps.low == pytest.approx(400 + 3600 * 0.79, rel=0.02)  # of 46 % of the gap
    assert row(found, 2, 1).steps.high == pytest.approx(400 + 3600 * 0.91, rel=0.02)  # of 18 %
    two, four = ((row(found, groups, 1).steps.value - 400) / 3600 for groups in (2, 4))
    assert four == pytest.approx(two**1.5)  # the gap of four groups is 3/2 of that of two
    assert found.loss.value == pytest.approx(3.1 - 0.2 * 8.294, abs=0.01)  # ln 4000


def test_less_of_the_gap_is_earned_in_one_pass(tmp_path: Path) -> None:
    """The gap is worth exp(-η/2) of the steps after the burn-in; 95 % of η are in -0.31 to 0.39."""
    found = plan([write_pilot(tmp_path / "pilot", passes=0.05, noise_scale=16, gap=0.1, slope=0.2)])  # 0.5 passes
    steps = row(found, 2, 1).steps
    assert steps.low == pytest.approx(400 + 3600 * 0.821, rel=0.02)
    assert steps.high == pytest.approx(400 + 3600 * 1.165, rel=0.02)
    origins = {each.name: each.origin for each in found.inputs}
    assert origins["share of the gap that a group earns"] == "assumed, for at most one pass over the data"


def test_the_loss_is_extrapolated_from_the_last_validation(tmp_path: Path) -> None:
    found = plan([write_pilot(tmp_path / "pilot", validate_every=150)])  # the last one at step 300 of 400
    assert found.loss.value == pytest.approx(3.1 - 0.2 * 8.294, abs=0.02)


def test_groups_that_never_teach_take_as_many_steps_as_one(tmp_path: Path) -> None:
    found = plan([write_pilot(tmp_path / "pilot", until=300)], steps=350)  # the burn-in has 400
    assert row(found, 2, 1).steps.value == row(found, 1, 1).steps.value == 350


def test_long_trainings_are_told_in_hours(tmp_path: Path) -> None:
    titles, one, *_ = plan([write_pilot(tmp_path / "pilot", seconds={"compute": 30})]).table()
    assert titles[4] == "hours"
    assert float(one[4]) == pytest.approx(4000 * 30.001 / 3600, rel=0.01)


def test_steps_of_two_groups_take_a_teacher_more(tmp_path: Path) -> None:
    """0.031 s of computation and reading, and for each other group a third of 0.03 s and 0.001 s of exchange."""
    found = plan([write_pilot(tmp_path / "pilot")])
    assert row(found, 1, 1).step_seconds.value == pytest.approx(0.031)
    assert row(found, 2, 1).step_seconds.value == pytest.approx(0.042)
    assert row(found, 4, 1).step_seconds.value == pytest.approx(0.064)


def test_teachers_cost_nothing_during_the_burn_in(tmp_path: Path) -> None:
    """400 of 4000 steps are burn-in and take 0.032 s each, the others 0.042 s; without a gap no step is saved."""
    found = row(plan([write_pilot(tmp_path / "pilot", noise_scale=0, gap=0.0)]), 2, 1)
    assert found.steps.value == pytest.approx(4000)
    assert found.seconds.value == pytest.approx(400 * 0.032 + 3600 * 0.042)


@pytest.mark.parametrize("order", [1, -1])
def test_times_are_those_of_the_pilot_that_accumulates_least(order: int, tmp_path: Path) -> None:
    pilots = [
        write_pilot(tmp_path / "noise", seconds={"compute": 0.05}),
        write_pilot(tmp_path / "times", seconds={"compute": 0.03}, parts=1),
    ]
    assert row(plan(pilots[::order]), 1, 1).step_seconds.value == pytest.approx(0.031)


def test_a_teacher_s_time_is_measured_where_teachers_taught(tmp_path: Path) -> None:
    found = plan([write_pilot(tmp_path / "run", groups=3, until=600, teacher=0.02)])
    assert row(found, 2, 1).step_seconds.value == pytest.approx(0.031 + 0.02 + 0.001 / 2)
    assert next(each.origin for each in found.inputs if each.name == "a teacher in a step") == "measured"


def test_larger_groups_average_over_the_link_that_is_given(tmp_path: Path) -> None:
    """A ring of two sends 4 MB over 1 GB/s in both directions of its two turns, with 1 ms of latency each."""
    pilot = write_pilot(tmp_path / "pilot", ranks=2, seconds={"averaging": 0.004})
    assert row(plan([pilot]), 1, 4).step_seconds.value == pytest.approx(0.031 + 0.004 * (3 / 4) / (1 / 2))
    slow = plan([pilot], link=Link.parse("1,1000"))
    assert row(slow, 1, 4).step_seconds.value == pytest.approx(0.031 + 0.004 + 6 * (0.001 + 0.001))
    assert row(slow, 2, 2).step_seconds.value == pytest.approx(0.042 + 0.004)  # each group within a node


def test_ranks_beyond_the_cores_share_them(tmp_path: Path) -> None:
    found = plan([write_pilot(tmp_path / "pilot", cores=2)])
    assert row(found, 1, 2).step_seconds.value < 0.035
    assert row(found, 4, 1).step_seconds.value == pytest.approx(2 * (0.031 + 3 * 0.01) + 3 * 0.001)
    on_more_nodes = plan([tmp_path / "pilot"], link=Link.parse("1.25,50"))
    assert row(on_more_nodes, 4, 1).step_seconds.value == pytest.approx(0.064)
    crowded = plan([write_pilot(tmp_path / "crowded", cores=1)])  # both ranks of the pilot share a core
    assert row(crowded, 1, 1).step_seconds.value == pytest.approx(0.031 / 2)
    on_gpus = plan([write_pilot(tmp_path / "gpus", cores=2, device="cuda:0")])
    assert row(on_gpus, 4, 1).step_seconds.value == pytest.approx(0.064)


def test_other_numbers_of_ranks_are_predicted(tmp_path: Path) -> None:
    found = plan([write_pilot(tmp_path / "pilot", ranks=2)], totals=[8, 6])
    assert [(each.groups, each.ranks) for each in found.rows][5:] == [(2, 4), (1, 6)]  # 8 x 1 and 2 x 4 are there
    with pytest.raises(UserError, match=r"--ranks 7 is not a multiple of 2, the ranks of a group.*; try 6"):
        plan([tmp_path / "pilot"], totals=[7])
    with pytest.raises(UserError, match=r"--ranks 1 is not a multiple of 2, .*; try 2"):
        plan([tmp_path / "pilot"], totals=[1])
    alone = plan([write_pilot(tmp_path / "alone", groups=1)], totals=[8])
    assert [(each.groups, each.ranks) for each in alone.rows] == [(1, 1), (1, 2), (1, 4), (1, 8)]


def test_the_length_is_given_or_assumed_for_a_pilot_that_never_teaches(tmp_path: Path) -> None:
    pilot = write_pilot(tmp_path / "pilot", steps=400)
    assert row(plan([pilot]), 1, 1).steps.value == 4000
    assert row(plan([pilot], steps=800), 1, 1).steps.value == 800
    with pytest.raises(UserError, match="--steps 100 is less than the 400 steps of the pilot"):
        plan([pilot], steps=100)


def test_more_pilots_narrow_the_intervals(tmp_path: Path) -> None:
    pilots = [write_pilot(tmp_path / str(seed), noise=0.5, seed=seed) for seed in range(4)]
    one, four = (row(plan(runs), 1, 2).steps for runs in (pilots[:1], pilots))
    assert four.high - four.low < 0.8 * (one.high - one.low)
