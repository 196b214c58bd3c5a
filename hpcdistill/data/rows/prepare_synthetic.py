"""`hpcdistill prepare clicks --synthetic`: a store of a generated click log, whose best possible loss is known."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hpcdistill.data.arrays import Array
from hpcdistill.data.prepare.pieces import Piece, make_pieces, pieces_folder, read_piece
from hpcdistill.data.prepare.split import in_validation, mix
from hpcdistill.data.rows.join import join_pieces
from hpcdistill.data.rows.store import Fields, Rows
from hpcdistill.data.store import PARTS
from hpcdistill.errors import UserError

DENSE = 8
CARDINALITIES = tuple(4**power for power in range(1, 9))  # 4 to 65,536
BIAS = -1.5  # about a quarter of the rows are clicks, as in Criteo's data
PIECE_ROWS = 1 << 16
Reals = np.ndarray[Any, np.dtype[np.float64]]


def prepare_clicks(output: Path, rows: int, seed: int = 0, processes: int | None = None) -> None:
    """Write a store of a click log in which the true probability of each click is `sigmoid(true_logits(...))`.

    The mean entropy of those probabilities is the expected loss of a model that knows them, and the least expected loss
    of any model. It is stored for each part as `bayes_log_loss`, computed for the generated rows. On the drawn labels,
    the loss of that model differs at random, by about 0.4 / sqrt(rows of the part).

    Args:
        output: HDF5 file to write.
        rows: number of rows of both parts together.
        seed: seed of the true model and of the rows, which do not depend on the number of processes.
        processes: number of processes; by default one for each core.

    Raises:
        UserError: too few rows for two parts, or a negative seed.
    """
    if rows < 1 or seed < 0:
        raise UserError(f"--rows {rows} --seed {seed}: --rows must be at least 1, and --seed at least 0")
    begins = range(0, rows, PIECE_ROWS)
    with pieces_folder(output, "clicks", 1, rows, seed, PIECE_ROWS) as folder:
        tasks = ((seed, begin, min(PIECE_ROWS, rows - begin)) for begin in begins)
        made = make_pieces(folder, _piece, tasks, processes)
        paths = list(tqdm(made, desc="generating", total=len(begins), unit="piece"))
        fields = Fields(
            [f"dense_{i}" for i in range(DENSE)], {f"field_{i}": size for i, size in enumerate(CARDINALITIES)}
        )
        join_pieces(output, paths, _rows, fields, f"synthetic clicks, seed {seed}", _mean_entropy(paths))


def true_logits(dense: Any, categorical: Any, seed: int) -> Reals:
    """Return the log odds of a click, float64 [rows], for float32 [rows, DENSE] and ids [rows, C].

    They are linear in the dense features and in a weight of each category, and bilinear in neighbouring fields and in
    each category with a dense feature. The weights are hashes, so that they need no memory.
    """
    dense = np.asarray(dense, np.float64)
    weight = partial(_weights, seed)
    interplay, neighbour = weight(1, categorical), np.roll(weight(2, categorical), 1, axis=1)
    terms = weight(0, categorical) + interplay * neighbour + weight(3, categorical) * dense
    logits: Reals = BIAS + (dense @ weight(4, np.arange(DENSE)) + terms.sum(1)) / 2
    return logits


def _weights(seed: int, kind: int, categorical: Any) -> Reals:
    """Return a weight in [-1, 1) for each category of each field."""
    fields = mix(np.arange(len(CARDINALITIES)) + 100 * kind) ^ mix(seed)
    weights: Reals = mix(mix(fields) ^ np.asarray(categorical, np.uint64)) / 2**63 - 1
    return weights


def _piece(task: tuple[int, int, int]) -> Piece:
    seed, begin, rows = task
    random = np.random.default_rng((seed, begin))
    dense = random.standard_normal((rows, DENSE), np.float32)
    # Uniform logarithms: few categories are frequent and most are rare, as in Zipf's law.
    places = np.array(CARDINALITIES, np.float64) ** random.random((rows, len(CARDINALITIES)))
    categorical = places.astype(np.int32) - 1
    logits = true_logits(dense, categorical, seed)
    probability = 1 / (1 + np.exp(-logits))
    entropy = np.logaddexp(0, logits) - logits * probability
    validation = in_validation(np.arange(begin, begin + rows))
    return {
        "dense": dense,
        "categorical": categorical,
        "label": (random.random(rows) < probability).astype(np.uint8),
        "validation": validation,
        "entropy": np.array([[mask.sum(), entropy[mask].sum()] for mask in (~validation, validation)]),
    }


def _rows(path: Path) -> tuple[Rows, Array]:
    *columns, validation = read_piece(path, *Rows._fields, "validation")
    return Rows(*columns), validation


def _mean_entropy(paths: list[Path]) -> dict[str, float]:
    by_piece = [read_piece(path, "entropy")[0] for path in paths]  # [part, (rows, sum)] each
    sums = [[math.fsum(piece[part][i] for piece in by_piece) for i in (0, 1)] for part in range(len(PARTS))]
    return {part: total / rows if rows else math.nan for part, (rows, total) in zip(PARTS, sums, strict=True)}
