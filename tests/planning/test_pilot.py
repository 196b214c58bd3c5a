"""Pilots that cannot be planned with: each is told what it lacks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hpcdistill.errors import UserError
from hpcdistill.planning.pilot import NOISE_EVERY, read_pilot, slope_curves
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.training import recorder
from pilots import write_pilot

pytestmark = pytest.mark.alone


def test_only_the_second_half_before_teachers_teach_counts(tmp_path: Path) -> None:
    pilot = read_pilot([write_pilot(tmp_path / "run", until=800, teacher=0.02)])
    assert (pilot.made, len(pilot.noise), len(pilot.gaps)) == (400, 10, 10)  # steps 200, 250 to 400
    assert {step for curve in pilot.validations for step, _ in curve} == {200, 250, 300, 350, 400}


def test_the_slope_is_that_of_the_training_losses_where_validations_are_few_and_examples_new(tmp_path: Path) -> None:
    assert slope_curves(read_pilot([write_pilot(tmp_path / "often")]))[0] == "validation losses"
    assert slope_curves(read_pilot([write_pilot(tmp_path / "rarely", validate_every=200)]))[0] == "training losses"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"until": 60},
            "too short for a plan: the second half of its 60 steps before teachers teach has 2 of 4 noise "
            "measurements and 8 of 16 training losses; it takes 90 steps more: wait for them$",
        ),
        (
            {"validate_every": 500},
            "0 of 1 validations and 0 of 2 ensemble gaps.* a pilot with --train.steps=500 --codistill.burn_in=500,",
        ),
        ({"validate_every": 200, "passes": 3.0}, "has 4 of 6 validations; it takes 400 steps more: train a pilot with"),
        ({"until": 30, "steps": 30, "groups": 1}, "go on with --resume --train.steps="),
        ({"parts": 1}, "a step of a group has one gradient only .*, and it takes two; train with --train.accumulate=2"),
    ],
)
def test_too_little_is_named_with_the_steps_that_it_takes(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_pilot([write_pilot(tmp_path / "run", **settings)])


@pytest.mark.parametrize(
    "settings",
    [
        {"until": 60},
        {"until": 40, "groups": 1, "steps": 40},
        {"until": 250, "groups": 1, "noise_every": 100},  # as the metrics have it
        {"until": 110, "validate_every": 60, "passes": 6.0},
        {"until": 150, "validate_every": 300},
    ],
)
def test_the_steps_that_it_takes_suffice_and_fewer_do_not(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read_pilot([write_pilot(tmp_path / "short", **settings)])
    found = re.search(r"it takes (\d+) steps more", str(raised.value))
    assert found
    needed = settings["until"] + int(found[1])
    read_pilot([write_pilot(tmp_path / "enough", **settings | {"until": needed})])
    with pytest.raises(UserError, match="it takes 10 steps more"):
        read_pilot([write_pilot(tmp_path / "nearly", **settings | {"until": needed - 10})])


def test_noise_is_expected_of_groups_with_several_gradients_in_a_step(tmp_path: Path) -> None:
    """Take 4 measurements from one group: of steps 150, 200, 250 and 300."""
    one = write_pilot(tmp_path / "one", until=60, groups=1, parts=1, noise_every=1000)
    other = write_pilot(tmp_path / "other", until=60, groups=1)
    with pytest.raises(UserError, match=r"has 1 of 4 noise .*; it takes 240 steps more"):
        read_pilot([one, other])


def test_the_interval_of_noise_measurements_is_that_of_training() -> None:
    assert NOISE_EVERY == recorder.NOISE_EVERY


def rewrite(run: Path, group: int, **values: Any) -> None:
    """Replace fields in the records of a group in which they are."""
    path = RunDir(run).metrics(group)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [{key: values.get(key, value) for key, value in line.items()} for line in lines]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in changed))


def rewrite_first(run: Path, **values: Any) -> None:
    """Add fields to the first record of group 0."""
    path = RunDir(run).metrics(0)
    header, first, *others = path.read_text().splitlines()
    path.write_text("\n".join([header, json.dumps(json.loads(first) | values), *others, ""]))


def test_groups_of_another_training_are_refused(tmp_path: Path) -> None:
    run, other = write_pilot(tmp_path / "run"), write_pilot(tmp_path / "other", batch=32)
    with pytest.raises(UserError, match=r"metrics-g0.jsonl is of another .* config.data.batch_size is 32, not 16"):
        read_pilot([run, other])
    rewrite(run, 1, data_source="another book")
    with pytest.raises(UserError, match=r"groups 0 and 1 of .*/run are not alike: data_source is another book, not a"):
        read_pilot([run])


def test_a_run_counts_once(tmp_path: Path) -> None:
    run, link = write_pilot(tmp_path / "run"), tmp_path / "link"
    link.symlink_to(run)
    with pytest.raises(UserError, match="run is named twice, and would count as two pilots"):
        read_pilot([run, link])


def test_groups_of_unequal_ranks_are_refused(tmp_path: Path) -> None:
    run = write_pilot(tmp_path / "run")
    rewrite(run, 1, ranks_per_group=2)
    with pytest.raises(UserError, match="are not alike: ranks_per_group is 2, not 1; train a pilot whose groups"):
        read_pilot([run])


def test_a_teacher_s_time_is_that_of_records_without_steps_of_the_burn_in(tmp_path: Path) -> None:
    """Leave out the record of steps 401 to 410, as the burn-in ends at step 405; that of 411 to 420 counts."""
    run = write_pilot(tmp_path / "run", until=420, teacher=0.02)
    settings = {"burn_in": 405, "weight": 1.0, "teachers": "peers"}
    for group in range(2):
        header = json.loads(RunDir(run).metrics(group).read_text().splitlines()[0])
        rewrite(run, group, config=header["config"] | {"codistill": settings})
    assert read_pilot([run]).teacher_seconds == [0.02, 0.02]  # one record of each group


def test_losses_and_noises_that_are_not_finite_are_named(tmp_path: Path) -> None:
    run = write_pilot(tmp_path / "run")
    rewrite(run, 1, validation_loss=None)
    with pytest.raises(UserError, match=r"metrics-g1.jsonl: the validation loss of step 50 is not finite.*lower"):
        read_pilot([run])
    rewrite(run, 1, validation_loss=3.0, learning_rate=0.1)
    rewrite(run, 0, gradient_square=-1.0)
    assert {square for square, _ in read_pilot([run]).noise} > {-1.0}  # a negative estimate is finite, and counts
    rewrite_first(run, noise_skipped=2)
    with pytest.raises(UserError, match=r"metrics-g0.jsonl: of the gradient noise .* up to step 10, 2 are not finite"):
        read_pilot([run])


@pytest.mark.parametrize("key", ["cores", "ranks_on_node", "gradient_bytes", "parts", "ranks_per_group"])
def test_a_damaged_first_line_is_named(key: str, tmp_path: Path) -> None:
    run = write_pilot(tmp_path / "run")
    for group in range(2):
        rewrite(run, group, **{key: "x"})
    with pytest.raises(UserError, match=re.escape(f"does not tell {key} in its first line, which is damaged")):
        read_pilot([run])


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    run = write_pilot(tmp_path / "run")
    rewrite(run, 1, config={"train": 3})
    with pytest.raises(UserError, match=r"metrics-g1.jsonl does not tell config.codistill in its first line"):
        read_pilot([run])
