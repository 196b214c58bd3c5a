"""Arithmetic of the studies of slow links and of saturated batches."""

import sys
from pathlib import Path

import pytest
import torch

from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from hpcdistill.data.batches import Share
from hpcdistill.storage.metrics import GroupMetrics
from rule_task import Batches, load
from study_link import ACROSS, EACH, ONE_NODE, TIMED_BURN_IN, Times, part_seconds, times_of

pytestmark = pytest.mark.alone


def test_steps_after_the_burn_in_take_the_time_of_steps_with_teachers() -> None:
    times = Times(burn_in=0.5, later=2.0, averaging=None)
    assert times.to(100, 200) == 50
    assert times.to(300, 200) == 300


def test_seconds_of_a_step_are_a_mean_over_steps_and_groups() -> None:
    def group(*records: tuple[int, int, float, float]) -> GroupMetrics:
        made = [
            {"step": step, "steps": steps, "part_seconds": {"compute": compute, "averaging": averaging}}
            for step, steps, compute, averaging in records
        ]
        return GroupMetrics(Path(), 0, {}, [*made, {"step": 20, "validation_loss": 1.0}])

    groups = [group((10, 10, 9.0, 9.0), (20, 10, 1.0, 2.0), (25, 5, 2.0, 5.0)), group((20, 10, 3.0, 6.0))]
    assert part_seconds(groups, 10, 25) == pytest.approx((10 * 3 + 5 * 7 + 10 * 9) / 25)
    assert part_seconds(groups, 10, 25, "averaging") == pytest.approx((10 * 2 + 5 * 5 + 10 * 6) / 25)


def test_all_steps_of_an_arm_without_teachers_take_as_long() -> None:
    def records(*seconds: tuple[int, float]) -> list[GroupMetrics]:
        parts = [(step, {"compute": total - 0.25, "averaging": 0.25}) for step, total in seconds]
        return [GroupMetrics(Path(), 0, {}, [{"step": at, "steps": 10, "part_seconds": each} for at, each in parts])]

    assert times_of(ONE_NODE, records((10, 9.0), (40, 1.0))) == Times(1.0, 1.0, None)
    assert times_of(ACROSS, records((10, 9.0), (40, 1.0))) == Times(1.0, 1.0, 0.25)
    with_teachers = records((10, 9.0), (40, 1.0), (TIMED_BURN_IN + 10, 8.0), (TIMED_BURN_IN + 30, 2.0))
    assert times_of(EACH, with_teachers) == Times(1.0, 2.0, None)


def test_groups_draw_other_examples_of_the_same_rule_and_a_restart_repeats_them() -> None:
    first, again, other = (next(iter(load(Share(part, 2, seed=(0, part)), 1000)[0])) for part in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.bincount(first[1]).max() < 500


def test_validation_data_ends() -> None:
    assert len(list(Batches((0,), 5, 3))) == 3
