"""Generated click log: its best possible loss is right, and it depends on the seed only."""

import math
from pathlib import Path

import numpy as np
import pytest

from hpcdistill.cli.main import main
from hpcdistill.data.rows.prepare_synthetic import CARDINALITIES, DENSE, prepare_clicks, true_logits
from hpcdistill.data.rows.store import RowStore
from hpcdistill.errors import UserError
from peak_memory import peak_of

pytestmark = pytest.mark.launch
ROWS, SEED = 200_000, 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RowStore:
    path = tmp_path_factory.mktemp("clicks") / "data.h5"
    prepare_clicks(path, ROWS, SEED)
    return RowStore(path)


def losses(store: RowStore, part: str, error: float = 0.0) -> np.ndarray:
    """Return the log loss of each row for the true log odds, with random errors of the given size added."""
    rows = store.read(part, 0, store.size(part))
    logits = true_logits(rows.dense, rows.categorical, SEED)
    logits = logits + error * np.random.default_rng(0).standard_normal(len(logits))
    return np.logaddexp(0, logits) - rows.label * logits


@pytest.mark.parametrize("part", ["train", "validation"])
def test_the_bayes_loss_is_that_of_the_truth_on_the_labels(store: RowStore, part: str) -> None:
    """The labels are a Monte Carlo sample: the bound is five standard errors, exceeded by one seed in a million."""
    sample = losses(store, part)
    assert abs(sample.mean() - store.bayes_log_loss(part)) < 5 * sample.std() / math.sqrt(len(sample))
    assert 0.3 < store.bayes_log_loss(part) < 0.5


def test_the_bayes_loss_is_the_mean_entropy_of_the_rows(store: RowStore) -> None:
    rows = store.read("validation", 0, store.size("validation"))
    probabilities = [1 / (1 + math.exp(-z)) for z in true_logits(rows.dense, rows.categorical, SEED)]
    entropy = [-p * math.log(p) - (1 - p) * math.log1p(-p) for p in probabilities]
    assert math.fsum(entropy) / len(entropy) == pytest.approx(store.bayes_log_loss("validation"), rel=1e-12)


def test_worse_models_lose_more(store: RowStore) -> None:
    means = [losses(store, "train", error).mean() for error in (0, 0.2, 0.5)]
    assert means == sorted(means)
    rate = store.read("train", 0, ROWS).label.mean()
    constant = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
    assert constant > store.bayes_log_loss("train") + 0.1  # the features have information


def test_pairs_of_features_matter() -> None:
    """The log odds are not a sum of one term for each feature: then a second difference would be 0."""
    dense, ids = np.zeros((4, DENSE), np.float32), np.zeros((4, len(CARDINALITIES)), np.int32)
    ids[[1, 3], 2] = ids[[2, 3], 3] = 1
    a, b, c, d = true_logits(dense, ids, SEED)
    assert abs(a - b - c + d) > 1e-3
    dense[[1, 3], 2] = 1
    ids[[1, 3], 2], ids[[2, 3], 3] = 0, 0
    ids[[2, 3], 2] = 1
    a, b, c, d = true_logits(dense, ids, SEED)
    assert abs(a - b - c + d) > 1e-3


def test_ids_fill_their_range_the_low_ones_often(store: RowStore) -> None:
    ids = store.read("train", 0, store.size("train")).categorical
    for column, cardinality in zip(ids.T, CARDINALITIES, strict=True):
        assert 0 == column.min() < column.max() < cardinality
        assert np.mean(column < math.isqrt(cardinality) - 1) == pytest.approx(0.5, abs=0.01)


def test_the_store_depends_on_the_seed_and_not_on_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcdistill.data.rows.prepare_synthetic.PIECE_ROWS", 500)
    command = ["prepare", "clicks", "--synthetic", "--rows", "2100"]
    for name, seed, processes in (("one", 1, 1), ("same", 1, 3), ("other", 2, 1)):
        options = [f"--output={tmp_path / name}", f"--seed={seed}", f"--processes={processes}"]
        assert main([*command, *options]) == 0
    one, same, other = ((tmp_path / name).read_bytes() for name in ("one", "same", "other"))
    assert one == same != other
    with RowStore(tmp_path / "one") as store:
        assert store.size("train") + store.size("validation") == 2100
        assert 60 < store.size("validation") < 150


@pytest.mark.parametrize(
    ("rows", "seed", "message"), [(0, 0, "--rows must be at least 1"), (9, -1, "--seed -1"), (2, 0, "prepare more")]
)
def test_too_few_rows_make_no_store(tmp_path: Path, rows: int, seed: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_clicks(tmp_path / "data.h5", rows, seed)
    assert not (tmp_path / "data.h5").exists()


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 caches the index of chunks, up to 32 MiB; small chunks fill the cache in both cases."""
    monkeypatch.setattr("hpcdistill.data.rows.prepare_synthetic.PIECE_ROWS", 1 << 13)
    monkeypatch.setattr("hpcdistill.data.rows.store.CHUNK_ROWS", 4)
    few, many = 1 << 17, 1 << 19
    peaks = [peak_of(lambda rows=rows: prepare_clicks(tmp_path / f"{rows}.h5", rows)) for rows in (few, many)]
    more = (many - few) * (4 * DENSE + 4 * len(CARDINALITIES) + 1)
    assert peaks[1] - peaks[0] < more / 2, f"bytes: {peaks}, for {more} more of data"
