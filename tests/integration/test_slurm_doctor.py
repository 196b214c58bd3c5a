"""The check of a Slurm job, doctor --slurm, in jobs of a real Slurm."""

import re
from pathlib import Path

import pytest

from repository import ROOT
from slurm_cluster import Cluster, on_slurm

pytestmark = on_slurm

DOCTOR = """#!/usr/bin/env bash
. slurm/env.sh
"${{LAUNCH[@]}}" python -c "{program}" doctor --slurm --folder="$1"
"""
IMPATIENT = (
    "from hpcdistill.cli.main import main; from hpcdistill.doctor import shared_folder; "
    "shared_folder.VISIBLE_SECONDS = 1; raise SystemExit(main())"
)


@pytest.mark.parametrize("starter", ["srun", "mpirun"])
def test_doctor_finds_a_cluster_well(cluster: Cluster, tmp_path: Path, mpirun_site: Path, starter: str) -> None:
    site = {"srun": ROOT, "mpirun": mpirun_site}[starter]
    job = cluster.run("--ntasks=4", "slurm/doctor.sbatch", f"--folder={tmp_path}", submit_dir=site)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.output
    assert re.search(rf"^Slurm job +OK +\d+, 4 rank\(s\) by {starter}$", job.output, re.M), job.output
    assert re.search(r"^window progress +OK .*; between 2 nodes$", job.output, re.M), job.output
    assert re.search(r"^shared folder +OK .* seen by 4 rank\(s\)", job.output, re.M), job.output
    assert not list(tmp_path.iterdir())


def test_doctor_names_a_node_whose_folder_is_another(cluster: Cluster) -> None:
    script = cluster.folder / "doctor-impatient.sbatch"
    script.write_text(DOCTOR.format(program=IMPATIENT))
    job = cluster.run("--ntasks=4", script, "/dev/shm")  # each node has its own
    assert job.state == "FAILED", job.output
    assert re.search(r"^shared folder +FAIL +rank \d on node2: /dev/shm has not shown", job.output, re.M), job.output
