"""Parts of a training that do not fit each other."""

from pathlib import Path

import pytest

from hpcdistill import Groups
from hpcdistill.data.tokens.store import write_store
from hpcdistill.errors import UserError
from hpcdistill.models.registry import config_class
from hpcdistill.training.setup import build_parts

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
