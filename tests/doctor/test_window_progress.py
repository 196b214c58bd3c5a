"""A rank that does not call MPI while it computes."""

import pytest

from doctor_results import row_of
from two_nodes import on_two_nodes

RANKS_THAT_DO_NOT_CALL_MPI = """
import sys, time
from hpcdistill.doctor import main, window_probe, window_progress
window_probe.GET_SECONDS = 1
window_probe.WindowProbe._serve = lambda *_: time.sleep(4)
sys.exit(main.print_checks([window_progress.CHECK]))
"""


@pytest.mark.launch
def test_a_node_that_does_not_serve_its_readers() -> None:
    result = on_two_nodes("-c", RANKS_THAT_DO_NOT_CALL_MPI)
    assert result.returncode != 0
    assert "rank 2 on node-b: a Get from rank 0 on node-a" in result.stdout
    assert "remedy: " in row_of(result.stdout, "window progress")
    assert "Training cannot run: window progress." in result.stdout
