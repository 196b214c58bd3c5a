"""Tasks: the batches, objective and scores of each kind of data."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcdistill.config.codistill import CodistillConfig
from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Batch, Batches, Share
from hpcdistill.data.images.store import Kind, write_images
from hpcdistill.data.rows.store import Fields, Rows, write_rows
from hpcdistill.data.tokens.store import write_store
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.models.lstm import LSTMLanguageModel
from hpcdistill.models.registry import config_class
from hpcdistill.tasks import binary, language
from hpcdistill.tasks.images import ImageTask
from hpcdistill.tasks.objective import Binary, Objective, Softmax
from hpcdistill.tasks.registry import open_task
from hpcdistill.tasks.task import Task
from hpcdistill.training.setup import fixed_teachers, training_share


def language_task(tmp_path: Path) -> Task:
    write_store(tmp_path / "data.h5", [("train", b"aab" * 20), ("validation", b"ab" * 10)], "")
    return open_task(tmp_path / "data.h5")


def click_task(tmp_path: Path, labels: tuple[int, ...] = (0, 1, 1, 1)) -> Task:
    some = Rows(np.zeros((4, 1), np.float32), np.zeros((4, 1), np.int32), np.array(labels, np.uint8))
    write_rows(tmp_path / "data.h5", [("train", some), ("validation", some)], Fields(["a"], {"b": 1}), "")
    return open_task(tmp_path / "data.h5")


def image_task(tmp_path: Path) -> Task:
    """Return the task of ten equal grey images of 6 × 6; the last one is of class 1, the others of class 0 of three."""
    images, labels = np.full((10, 1, 6, 6), 7, np.uint8), np.array([0] * 9 + [1])
    histogram = np.bincount([7], minlength=256)[None]
    pieces = [(part, images, labels) for part in ("train", "validation")]
    write_images(tmp_path / "data.h5", pieces, Kind.of(["a", "b", "c"], (1, 6, 6), histogram), "")
    return open_task(tmp_path / "data.h5")


def test_the_store_decides_the_task(tmp_path: Path) -> None:
    assert isinstance(image_task(tmp_path), ImageTask)
    assert isinstance(language_task(tmp_path), language.LanguageTask)
    assert isinstance(click_task(tmp_path), binary.BinaryTask)
    with pytest.raises(UserError, match="no such file; make one with: hpcdistill prepare"):
        open_task(tmp_path / "nowhere.h5")


def test_only_a_task_of_classes_has_a_fused_objective(tmp_path: Path) -> None:
    head = LSTMLanguageModel(256, 2, layers=1, projection=0, dropout=0.0)
    assert language_task(tmp_path).fused_objective(head).chance_loss == pytest.approx(math.log(256))
    with pytest.raises(UserError, match="for models that choose among classes, not for a store of rows; omit it"):
        click_task(tmp_path).fused_objective(head)


def test_frequencies_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "READ_TOKENS", 7)  # more than one part
    chances = language_task(tmp_path).unigram().softmax(0)
    total = 60 + 254  # each of the 254 others is counted once
    assert chances[ord("a")].item() == pytest.approx(40 / total)
    assert chances[ord("b")].item() == pytest.approx(20 / total)
    assert chances[ord("c")].item() == pytest.approx(1 / total)


def test_frequency_of_classes(tmp_path: Path) -> None:
    assert image_task(tmp_path).unigram().exp().tolist() == pytest.approx([9, 1, 1])


def test_ranks_share_images_in_training_and_validation(tmp_path: Path) -> None:
    task = image_task(tmp_path)
    config = DataConfig(path=Path(), batch_size=4)
    parts = [task.validation(config, rank, 3) for rank in range(3)]
    for _ in range(2):  # they can be iterated again
        assert [[len(batch.target) for batch in part] for part in parts] == [[4], [3], [3]]
        assert sum(batch.target.sum().item() for part in parts for batch in part) == 1
    drawn = [task.batches(config, Share(rank=rank, size=2, seed=(rank // 2,))) for rank in range(2)]
    assert [next(batches).inputs[0].shape for batches in drawn] == [(2, 1, 6, 6)] * 2
    with pytest.raises(UserError, match="holds 10 validation images, fewer than the 11 ranks"):
        task.validation(config, 0, 11)


@pytest.mark.parametrize(("labels", "chance"), [((0, 1, 1, 1), 3 / 4), ((0, 0, 0, 0), 1 / 5), ((1, 1, 1, 1), 4 / 5)])
def test_frequency_of_clicks(
    labels: tuple[int, ...], chance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary, "READ_ROWS", 3)
    assert click_task(tmp_path, labels).unigram().sigmoid().item() == pytest.approx(chance)


@pytest.mark.parametrize(
    ("objective", "outputs", "target"),
    [
        (Softmax(5), torch.randn(2, 3, 5), torch.tensor([[0, 1, 2], [3, 4, 0]])),
        (Binary(), torch.randn(6), torch.tensor([0.0, 1, 1, 0, 1, 0])),
    ],
)
def test_the_loss_without_teachers_is_the_mean_cross_entropy(
    objective: Objective, outputs: torch.Tensor, target: torch.Tensor
) -> None:
    losses = objective.cross_entropy(outputs, target)
    assert losses.shape == target.shape
    assert objective.loss(outputs, target, [], 1.0, 1.0).item() == pytest.approx(losses.mean().item(), rel=1e-5)
    excess = losses.mean().item() - objective.chance_loss
    assert objective.excess_loss(outputs, target).item() == pytest.approx(excess, abs=1e-6)  # of float32 near 1.6
    ignorant = objective.uniform.expand(outputs.shape)
    assert objective.cross_entropy(ignorant, target).mean().item() == pytest.approx(objective.chance_loss, rel=1e-6)
    # The divergence from a uniform teacher is the cross-entropy with uniform probabilities minus their entropy.
    classes = round(math.exp(objective.chance_loss))
    log_chances = outputs.log_softmax(-1) if classes > 2 else torch.stack([outputs, -outputs], -1).sigmoid().log()
    smoothing = -log_chances.mean() - math.log(classes)
    smoothed = objective.loss(outputs, target, [ignorant], 0.5, 1.0)
    assert smoothed.item() == pytest.approx((losses.mean() + 0.5 * smoothing).item(), rel=1e-5)


def test_a_prior_says_the_same_whatever_it_is_shown(tmp_path: Path) -> None:
    task = language_task(tmp_path)
    teachers = fixed_teachers(CodistillConfig(teachers="unigram"), task, task.objective, torch.device("cpu"))
    (logits,) = teachers.predict(target=torch.zeros(2, 3, dtype=torch.int64))
    assert torch.equal(logits, task.unigram().expand(2, 3, 256))


def test_what_is_random_in_a_batch_is_the_same_from_any_cursor_and_differs_by_rank() -> None:
    def draw(rank: int, drawn: int) -> list[float]:
        share = Share(rank=rank, size=2, seed=(7,))
        batches = Batches(8, lambda _, rng: Batch((), torch.tensor(rng.random())), 2, share, "items")
        batches.drawn = drawn
        return [next(batches).target.item() for _ in range(6 - drawn)]

    assert draw(0, 2) == draw(0, 0)[2:]
    assert len({*draw(0, 0), *draw(1, 0)}) == 12


@pytest.mark.parametrize(("partition", "part", "parts"), [("disjoint", 2, 3), ("same", 0, 1)])
def test_groups_share_the_data_or_see_all_of_it_in_orders_of_their_own(
    partition: str, part: int, parts: int, world: Communicator
) -> None:
    config = config_class()(run_dir=Path(), groups=3, data={"path": Path(), "partition": partition}, seed=5)
    share = training_share(config, Groups.alone(world, 2, 3, torch.device("cpu")))
    assert share == Share(part, parts, world.rank, world.size, seed=(5, 2))
