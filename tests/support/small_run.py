"""Configuration of a run that takes seconds."""

import time
from collections.abc import Callable
from subprocess import CompletedProcess

Run = Callable[..., CompletedProcess[str]]

LSTM = """[model]
hidden = 16
layers = 1
dropout = 0.1
"""

SMALL = f"""
{LSTM}[data]
batch_size = 8
sequence_length = 16
[codistill]
burn_in = 10
exchange_interval = 5
[train]
steps = 40
validate_every = 20
[checkpoint]
interval = 10
"""

ALONE = ("--groups=1", "--codistill.weight=0")


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # bounded by the test's timeout
        time.sleep(0.1)
