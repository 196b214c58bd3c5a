"""Variables for MPI in slurm/mpi.sh, which depend on the network of the node."""

import subprocess

import pytest

from repository import ROOT

pytestmark = pytest.mark.launch

# compgen -G lists the files of a pattern; this one lists the devices of the network in $1.
SCRIPT = """
network=$1
compgen() { [[ $2 == "/sys/class/$network/*" ]] && echo "$2"; }
set -euo pipefail
. slurm/mpi.sh
echo "${OMPI_MCA_osc-unset} ${MPIR_CVAR_CH4_NETMOD-unset}"
"""


@pytest.mark.parametrize(
    ("network", "environment", "variables"),
    [
        ("none", {}, "^ucx ofi"),
        ("none", {"OMPI_MCA_osc": "rdma", "MPIR_CVAR_CH4_NETMOD": "ucx"}, "rdma ucx"),
        ("infiniband", {}, "unset unset"),
        ("cxi", {}, "unset unset"),
        ("cxi", {"OMPI_MCA_osc": "rdma"}, "rdma unset"),
    ],
)
def test_windows_and_networks_are_chosen_for_tcp_only(
    network: str, environment: dict[str, str], variables: str
) -> None:
    command = ["bash", "-c", SCRIPT, "-", network]
    environment = {"PATH": "/usr/bin:/bin"} | environment
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert result.stdout == f"{variables}\n", result.stderr


def test_ranks_start_without_mpi_where_there_is_none() -> None:
    script = 'python() { return 1; }; set -euo pipefail; . slurm/env.sh; echo "${LAUNCH[@]}"'
    result = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.stdout == "srun --mpi=none --kill-on-bad-exit=1\n"
    assert "mpi4py finds no MPI" in result.stderr
