"""Choice of the tests that a suite collects, and the path of the examples."""

import sys

from mpi4py import MPI

from repository import ROOT

sys.path.append(str(ROOT / "examples"))
# Each rank needs seconds to import these libraries, and two ranks show all that groups do.
collect_ignore = ["test_lightning.py", "test_transformers.py"] if MPI.COMM_WORLD.size > 2 else []
