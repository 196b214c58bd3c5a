"""Progress over validations: slope, and gap to the training loss."""

import math

import pytest

from hpcdistill.training.progress import Progress, loss_slope

pytestmark = pytest.mark.alone


def test_the_slope_is_that_of_the_second_half() -> None:
    falling = [(step, 5.0 - 0.3 * math.log(step)) for step in (50, 60, 70, 80, 100)]
    assert loss_slope([(10, 99.0), (49, 0.0), *falling]) == pytest.approx(0.3)
    rising = [(step, 1.0 + 0.2 * math.log(step)) for step in (500, 700, 900)]
    assert loss_slope(rising) == pytest.approx(-0.2)


@pytest.mark.parametrize("losses", [[1.0], [1.0, 0.9], [1.0, math.nan, 0.9], [math.nan, math.inf, 0.9, 0.8]])
def test_no_slope_of_fewer_than_three_losses(losses: list[float]) -> None:
    assert loss_slope([(100 + step, loss) for step, loss in enumerate(losses)]) is None


def test_the_gap_is_to_the_training_loss_since_the_last_validation() -> None:
    progress = Progress()
    assert progress.metrics(0, 5.0) == {}
    progress.add({"step": 10, "steps": 10, "loss": 9.0, "cross_entropy": 9.0})
    progress.add({"step": 10, "validation_loss": 8.0})
    assert progress.metrics(20, 7.0) == {}
    for step, steps, loss in ((20, 10, 3.0), (25, 5, 6.0), (30, 5, math.inf)):
        progress.add({"step": step, "steps": steps, "cross_entropy": loss})
    progress.add({"step": 30, "steps": 10, "loss": 50.0})  # teachers taught, and the terms were not measured
    assert progress.metrics(30, 4.5) == {"train_validation_gap": pytest.approx(0.5)}
    assert progress.metrics(30, math.nan) == {}
    progress.add({"step": 30, "validation_loss": math.nan})
    progress.add({"step": 40, "validation_loss": 4.0})
    assert progress.metrics(60, 3.0) == {}  # of two losses in its second half
    progress.add({"step": 50, "validation_loss": 3.5})
    assert progress.metrics(60, 3.0)["loss_slope"] > 0
