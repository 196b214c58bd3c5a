"""Cases and verdict of the study of the distillation weight."""

import sys

import pytest

from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from study_weight import CASES, agreed_best, rows, training

pytestmark = pytest.mark.alone


def test_each_case_has_a_training_of_its_own() -> None:
    runs = [training(task, case, seed) for task in ("language", "images") for case in CASES for seed in (0, 1)]
    assert len({run.name for run in runs}) == len(runs) == 36
    (divided,) = [run for run in runs if run.name == "language/0.3-divided-1"]
    assert {"--codistill.weight=0.3", "--codistill.normalize=True", "--seed=1"} <= {*divided.options}


def test_a_case_is_the_best_only_if_all_seeds_agree() -> None:
    by_case = {(0.0, False): [2.0, 2.1], (0.1, False): [1.9, 2.0], (0.1, True): [1.8, 2.2]}
    assert agreed_best(by_case) is None
    assert agreed_best(by_case | {(0.3, True): [1.7, 1.9]}) == (0.3, True)


def test_rows_give_the_difference_from_weight_0_of_the_same_seeds() -> None:
    found = {"language": {(0.0, False): [2.0, 4.0], (0.1, True): [1.5, 3.5]}}
    first, second = rows(found)
    assert first[:3] == ("language", "0", "-")
    assert second[1:] == ("0.1", "yes", "2.500 ± 12.710", "-0.500 ± 0.000")
