"""Parts of a training that do not fit each other."""

from pathlib import Path

import pytest

from hpcdistill import Groups
from hpcdistill.data.tokens.store import write_store
from hpcdistill.errors import UserError
from hpcdistill.models.registry import config_class
from hpcdistill.training.setup import _require_micro_batches, build_parts

pytestmark = pytest.mark.alone


def test_sequences_longer_than_the_positions_of_a_model_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "data.h5", [("train", b"text" * 9), ("validation", b"text" * 9)], "")
    config = config_class()(
        run_dir=tmp_path,
        groups=1,
        data={"path": tmp_path / "data.h5", "batch_size": 1, "sequence_length": 17},
        model={"name": "huggingface", "path": "gpt2", "args": {"n_embd": 8, "n_head": 2, "n_positions": 16}},
        codistill={"teachers": "uniform"},
    )
    with pytest.raises(UserError, match=r"data.sequence_length = 17 is more than the 16 positions of GPT2LMHeadModel"):
        build_parts(config, Groups.single(), trust=False)


def test_a_share_that_does_not_split_into_micro_batches_is_refused(tmp_path: Path) -> None:
    config = config_class()(run_dir=tmp_path, data={"path": "data.h5", "batch_size": 8}, train={"accumulate": 3})
    with pytest.raises(UserError, match=r"accumulate = 3 does not divide 4, the share of each of 2 ranks .* of 6$"):
        _require_micro_batches(config, ranks=2)
