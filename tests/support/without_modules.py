"""The program on a machine that lacks some packages."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None  # importing it raises ImportError
from hpcdistill.cli.main import main
sys.exit(main())
"""


def run_without(modules: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of hpcdistill in a process that cannot import `modules`, which are separated by commas."""
    command = [sys.executable, "-c", SCRIPT, modules, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
