"""Torch and Horovod that tools/setup.sh installs for the GPUs of a machine or a site, on fake machines."""

from pathlib import Path

import pytest

from fake_site import FakeSite

pytestmark = pytest.mark.launch

INDEX = "https://index.example/cu126"


@pytest.fixture
def site(tmp_path: Path) -> FakeSite:
    return FakeSite(tmp_path)


def test_a_machine_without_gpus_gets_torch_and_horovod_for_cpus(site: FakeSite) -> None:
    result = site.set_up(MPI="mpich")
    assert result.returncode == 0, result.stderr
    assert "for cpu, torch 2.13.0, MPI from mpich" in result.stdout
    assert "pip takes the build of torch that its own index has" in result.stdout
    assert "install torch==2.13.0" in site.pip
    assert site.build["MPI_HOME"].endswith("/.venv")
    assert "HOROVOD_GPU_OPERATIONS" not in site.build
    # Make keeps what was chosen.
    again = site.set_up()
    assert (again.returncode, again.stdout) == (0, ".venv is up to date\n"), again.stderr


def test_a_machine_with_gpus_gets_horovod_with_the_nccl_of_pip(site: FakeSite) -> None:
    site.command("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\n")
    site.cuda("13.0")
    result = site.set_up(MPI="mpich", HOROVOD_BUILD_CUDA_CC_LIST="80,90")
    assert result.returncode == 0, result.stderr
    assert "for cuda" in result.stdout
    assert "install torch==2.13.0" in site.pip
    nccl = site.folder / "packages/nvidia/nccl"
    expected = {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_CUDA_HOME": str(site.folder / "cuda"),  # not the folder of the nvcc on PATH
        "CUDA_HOME": str(site.folder / "cuda"),
        "HOROVOD_NCCL_INCLUDE": f"{nccl}/include",
        "HOROVOD_NCCL_LINK": "SHARED",
        "HOROVOD_BUILD_CUDA_CC_LIST": "80,90",
    }
    assert site.build | expected == site.build
    assert Path(site.build["HOROVOD_NCCL_LIB"]).parent == site.folder / ".cache/hpcdistill/wheels"
    assert (site.folder / "nccl").read_text().strip() == f"{nccl}/lib/libnccl.so.2"
    (wheel,) = site.wheels
    assert "-torch-2.13.0+cu130-mpich-5.0.2-" in wheel
    assert "-cuda-13.0-nccl-2.29.7-cc-80-90-" in wheel
    # The login node sees no GPU, and has loaded no module.
    site.command("nvidia-smi", "#!/bin/sh\nexit 9\n")
    site.command("nvcc", "#!/bin/sh\nexit 127\n")
    assert site.set_up().stdout == ".venv is up to date\n"


def test_another_nccl_is_another_wheel(site: FakeSite) -> None:
    site.cuda("13.0")
    assert site.set_up(ACCELERATOR="cuda", MPI="mpich").returncode == 0
    site.nccl("packages/nvidia/nccl", (2, 30, 1))
    assert site.set_up(ACCELERATOR="cuda", MPI="openmpi").returncode == 0
    assert [("nccl-2.29.7" in wheel, "nccl-2.30.1" in wheel) for wheel in site.wheels] == [(True, False), (False, True)]


def test_a_login_node_without_gpus_is_asked_what_jobs_will_run_on(site: FakeSite) -> None:
    site.command("sbatch", "#!/bin/sh\n")
    site.command("sinfo", "#!/bin/sh\nprintf '%s\\n' '(null)' 'gpu:a100:4(S:0-1),nvme:1' gpu:h100:8\n")
    result = site.set_up(MPI="mpich")
    assert result.returncode == 2
    assert "nodes of this Slurm cluster have GPUs (sinfo: gpu:a100:4, gpu:h100:8)" in result.stderr
    assert "ACCELERATOR=cuda make setup" in result.stderr
    assert not site.pip
    assert site.set_up(MPI="mpich", ACCELERATOR="cpu").returncode == 0
    assert site.set_up().stdout == ".venv is up to date\n"  # not asked again


def test_a_cluster_without_gpus_is_not_asked(site: FakeSite) -> None:
    site.command("sbatch", "#!/bin/sh\n")
    site.command("sinfo", "#!/bin/sh\necho '(null)'\n")
    assert "for cpu" in site.set_up(MPI="mpich").stdout


@pytest.mark.parametrize(
    ("variables", "message", "remedy"),
    [
        ({"ACCELERATOR": "gpu"}, "ACCELERATOR=gpu is unknown", "Choose one of ACCELERATOR=cuda"),
        ({"ACCELERATOR": "cuda"}, "no nvcc, which Horovod needs", "Load your site's CUDA module"),
        ({"ACCELERATOR": "rocm"}, "pip's own index has no torch for ROCm", "TORCH_INDEX=https://"),
        ({"ACCELERATOR": "rocm", "TORCH_INDEX": INDEX, "ROCM_PATH": "/none"}, "no /none/bin/hipcc", "ROCm module"),
        ({"HOROVOD": "no"}, "HOROVOD=no is unknown", "HOROVOD=none"),
        ({"TORCH": "system"}, "finds no torch", "Load your site's module"),
        ({"MPI": "system"}, "no mpicxx on PATH", "MPI=mpich"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_installed(
    site: FakeSite, variables: dict[str, str], message: str, remedy: str
) -> None:
    (site.folder / "packages/torch/__init__.py").unlink()
    result = site.set_up(**{"MPI": "mpich"} | variables)
    assert result.returncode == 2
    assert message in result.stderr
    assert remedy in result.stderr
    assert not site.pip


def test_a_build_of_torch_for_cpus_on_gpus_is_refused(site: FakeSite) -> None:
    site.cuda("12.6")
    site.torch("2.13.0+cpu")
    result = site.set_up(ACCELERATOR="cuda", MPI="mpich")
    assert result.returncode == 2
    assert "ACCELERATOR=cuda, but pip has found a build of torch 2.13.0 for something else" in result.stderr
    assert "Name an index that has the right one" in result.stderr
    assert "uninstall --yes torch" in site.pip  # else pip would keep it, whatever the index has
    assert not site.build


def test_another_index_replaces_the_torch_of_the_same_version(site: FakeSite) -> None:
    site.cuda("12.6")
    assert site.set_up(ACCELERATOR="cuda", MPI="mpich").returncode == 0
    assert "uninstall --yes torch" not in site.pip
    assert site.set_up(TORCH_INDEX=INDEX).returncode == 0
    assert site.pip.index("uninstall --yes torch") < site.pip.index(f"install --index-url {INDEX} torch==2.13.0")


def test_cuda_of_another_version_than_torchs_is_refused(site: FakeSite) -> None:
    site.cuda("12.6")
    site.torch("2.13.0+cu130", cuda="13.0")
    result = site.set_up(ACCELERATOR="cuda", MPI="mpich")
    assert result.returncode == 2
    assert "torch is built for CUDA 13.0, but nvcc is of CUDA 12.6" in result.stderr
    assert "Set-up failed" not in result.stderr


def test_the_torch_of_the_site_is_used_with_the_nccl_of_the_site(site: FakeSite) -> None:
    site.cuda("12.6", nccl=False)
    site.torch("2.11.0", cuda="12.6")
    site.package("torch-2.11.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0\n")
    variables = {"ACCELERATOR": "cuda", "TORCH": "system", "MPI": "mpich"}
    result = site.set_up(**variables)
    assert result.returncode == 2
    assert "set NCCL_HOME to the folder with its include/ and lib/" in result.stderr
    site.nccl("nccl-of-site", (2, 27, 3))
    result = site.set_up(**variables, NCCL_HOME=str(site.folder / "nccl-of-site"))
    assert result.returncode == 0, result.stderr
    assert not [call for call in site.pip if "torch==" in call]
    (link,) = site.folder.rglob("site-torch.pth")
    assert link.read_text().strip() == str(site.folder / "packages")
    (wheel,) = site.wheels
    assert "-torch-2.11.0-" in wheel
    assert "-nccl-2.27.3-site-" in wheel


def test_rocm_needs_an_index_and_builds_horovod_with_rccl(site: FakeSite) -> None:
    site.command("rocminfo", "#!/bin/sh\necho '  Device Type:             GPU'\n")
    site.torch("2.13.0+rocm7.1", hip="7.1")
    rocm = site.folder / "rocm"
    site.command("../rocm/bin/hipcc", "")
    (rocm / ".info").mkdir()
    (rocm / ".info/version").write_text("7.1.0-42\n")
    result = site.set_up(MPI="mpich", TORCH_INDEX=INDEX, ROCM_PATH=str(rocm))
    assert result.returncode == 0, result.stderr
    assert f"install --index-url {INDEX} torch==2.13.0" in site.pip
    assert site.build["HOROVOD_GPU"] == "ROCM"
    assert site.build["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert site.build["HOROVOD_ROCM_HOME"] == str(rocm)
    assert "-rocm-7.1.0-" in site.wheels[0]


def test_on_a_cray_its_wrappers_compile_horovod(site: FakeSite) -> None:
    result = site.set_up(CRAYPE_VERSION="2.7.30")
    assert result.returncode == 0, result.stderr
    assert "MPI from system" in result.stdout
    assert (site.build["CC"], site.build["CXX"]) == ("cc", "CC")
    assert "MPI_HOME" not in site.build
    assert "-craype-2.7.30-" in site.wheels[0]


def test_without_horovod_no_compiler_for_gpus_is_needed(site: FakeSite) -> None:
    site.torch("2.13.0+cu130", cuda="13.0")
    result = site.set_up(ACCELERATOR="cuda", HOROVOD="none", MPI="mpich")
    assert result.returncode == 0, result.stderr
    assert "uninstall --yes horovod" in site.pip
    assert not site.build
