"""Model family that is added as docs/extension.md says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import saved_models
from repository import ROOT

pytestmark = [pytest.mark.alone, pytest.mark.launch]

# The folder of the new file is searched like hpcdistill/models, so that the package itself stays as it is.
PROGRAM = """
import sys
import hpcdistill.models
folder, config, run, data = sys.argv[1:]
hpcdistill.models.__path__.append(folder)
from hpcdistill.cli.main import main
sys.exit(main(["train", config, "--model.units=6"]) or main(["evaluate", run, "--data", data]))
"""


def test_a_new_model_family_is_configured_trained_and_evaluated(tmp_path: Path) -> None:
    section = (ROOT / "docs" / "extension.md").read_text().partition("\n## A model family\n")[2]
    snippet = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert snippet
    models, config, run = tmp_path / "models", tmp_path / "run.toml", tmp_path / "run"
    models.mkdir()
    (models / "gru.py").write_text(snippet[1])
    data = saved_models.text(tmp_path / "data.h5")
    config.write_text(
        f'run_dir = "{run}"\n'
        "groups = 1\n"
        f'data = {{ path = "{data}", sequence_length = 8, batch_size = 4 }}\n'
        'model = { name = "gru" }\n'
        "codistill = { weight = 0, fused_linear = true }\n"
        "train = { steps = 3 }\n"
    )
    command = [sys.executable, "-c", PROGRAM, models, config, run, data]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert "perplexity" in result.stdout
