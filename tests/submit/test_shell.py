"""A site's bash: what is committed is what the YAML makes, a linter accepts it, and a real bash runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from frontier.submit import shell
from frontier.submit import site as sites
from frontier.submit.site import load_site, shipped
from tests.conftest import ROOT

VARIABLES = [
    "SITE",
    "SITE_ACCOUNT",
    "SITE_DEVICE",
    "SITE_RANKS_PER_NODE",
    "SITE_LOCAL",
    "SITE_MODULES",
    "SITE_STEP",
    "SITE_WRAP",
]
FUNCTIONS = ["site_environment", "site_once_a_node"]


def _bash(script: str, **env: str) -> list[str]:
    """Lines that a strict bash prints, with nothing in its environment but PATH, USER, JOB_ID and `env`."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "USER": f"frontier_test_{os.getpid()}", "JOB_ID": "7_3", **env},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def _environment(name: str, **env: str) -> dict[str, str]:
    """What `site_environment` exports."""
    return dict(
        line.partition("=")[::2] for line in _bash(f"source jobs/sites/{name}.sh; site_environment; env", **env)
    )


def test_committed_files_are_what_the_sites_make() -> None:
    made = shell.made_files()
    assert {path.name for path in made} == {f"{name}.sh" for name in shipped()} | {"sites.md"}
    for path, text in made.items():
        assert path.read_text() == text, f"{path.name}: python -m frontier.submit.shell --write"


@pytest.mark.parametrize("name", shipped())
def test_shellcheck(name: str) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed (Debian: apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", "-x", f"jobs/sites/{name}.sh"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", shipped())
def test_bash_finds_what_the_job_scripts_take_and_nothing_else(name: str) -> None:
    names = "compgen -v; compgen -A function || true"
    before = set(_bash(names)) | {"PIPESTATUS", "_"}
    after = _bash(f"source jobs/sites/{name}.sh; site_environment >&2; {names}")
    site = load_site(name)
    exported = {word.split("=")[0] for line in site.environment for word in line.text.split() if "=" in word}
    assert set(after) - before - exported <= {*VARIABLES, *FUNCTIONS, "MASTER_ADDR", "MASTER_PORT"}
    assert {*VARIABLES, *FUNCTIONS} <= set(after)
    arrays = _bash(f'source jobs/sites/{name}.sh; printf "%s\\n" "${{SITE_MODULES[@]}}"') if site.modules else []
    assert arrays == [line.text for line in site.modules]


@pytest.mark.parametrize("name", shipped())
def test_once_a_node_needs_exported_variables_only(name: str) -> None:
    """As the job scripts run it: the function's text in another bash, on each node."""
    run = f'source jobs/sites/{name}.sh; site_environment; bash -euo pipefail -c "$(declare -f site_once_a_node); site_once_a_node"'
    (folder,) = _bash(f'{run}; echo "${{MIOPEN_USER_DB_PATH:-}}"')
    assert bool(folder) == (name in ("frontier", "lumi"))
    if folder:
        assert Path(folder).is_dir() and folder.endswith("-7_3")
        Path(folder).rmdir()


def test_environment_on_frontier() -> None:
    found = _environment(
        "frontier", SLURM_JOB_NUM_NODES="8", CRAY_LD_LIBRARY_PATH="/opt/cray/lib", LD_LIBRARY_PATH="/opt/rocm/lib"
    )
    wanted = {
        "LD_LIBRARY_PATH": "/opt/cray/lib:/opt/rocm/lib",
        "MASTER_ADDR": subprocess.run(["hostname", "-i"], capture_output=True, text=True).stdout.split()[0],
        "MASTER_PORT": "3442",
        "NCCL_SOCKET_IFNAME": "hsn0,hsn1,hsn2,hsn3",
        "NCCL_NET": "OFI",
        "OMP_NUM_THREADS": "7",
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }
    assert {key: found[key] for key in wanted} == wanted
    assert found["MIOPEN_USER_DB_PATH"] == found["MIOPEN_CUSTOM_CACHE_DIR"] == f"/tmp/{found['USER']}-miopen-7_3"
    assert not any(key.endswith("_proxy") or key.startswith(("FI_", "NCCL_CROSS", "HSA_")) for key in found)
    assert _environment("frontier", SLURM_JOB_NUM_NODES="1")["NCCL_NET"] == "Socket"
    own = _environment("frontier", NCCL_SOCKET_IFNAME="hsn0", MASTER_PORT="4000", OMP_NUM_THREADS="2")
    assert (own["NCCL_SOCKET_IFNAME"], own["MASTER_PORT"], own["OMP_NUM_THREADS"]) == ("hsn0", "4000", "2")


def test_words_on_frontier() -> None:
    assert _bash('source jobs/sites/frontier.sh; echo "${SITE_STEP[*]}"; echo "$SITE_LOCAL"', USER="ada") == [
        "-c7 --gpus-per-task=1 --gpu-bind=closest",
        "/mnt/bb/ada",
    ]
    modules = [line.text for line in load_site("frontier").modules]
    assert modules.index("rccl-net-plugin") > modules.index("rocm/7.1.1")
    header = (ROOT / "jobs/pretrain_3b.sh").read_text().splitlines()
    for line in load_site("frontier").directives:
        assert any(
            given.split("#")[1].strip() == f"SBATCH {line.text}" for given in header if given.startswith("#SBATCH")
        )


def test_environment_of_local_gives_threads_where_slurm_gave_cores() -> None:
    assert "OMP_NUM_THREADS" not in _environment("local")
    assert _environment("local", SLURM_JOB_ID="1")["OMP_NUM_THREADS"] == "1"
    assert _environment("local", SLURM_JOB_ID="1", SLURM_CPUS_PER_TASK="6")["OMP_NUM_THREADS"] == "6"


@pytest.mark.parametrize(
    ("env", "ranks"),
    [
        ({}, "2"),
        ({"SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0"}, "4"),
        ({"CUDA_VISIBLE_DEVICES": "0,2,GPU-5"}, "3"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "2"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "2"),
        ({"GPUS": "5"}, "5"),
        ({"GPUS": "5", "CUDA_VISIBLE_DEVICES": ""}, "2"),
    ],
)
def test_ranks_of_local_are_the_visible_devices(tmp_path: Path, env: dict[str, str], ranks: str) -> None:
    tool = tmp_path / "nvidia-smi"  # in the place of a driver that this machine may lack
    tool.write_text('#!/bin/bash\nfor ((i = 0; i < ${GPUS:-0}; i++)); do echo "GPU $i: NVIDIA (UUID: GPU-$i)"; done\n')
    tool.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert _bash('source jobs/sites/local.sh; echo "$SITE_RANKS_PER_NODE"', **path, **env) == [ranks]


def test_jupiter_takes_the_infiniband_name_only_where_it_resolves(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/bash\nprintf 'jpbo-001-01\\njpbo-001-02\\n'\n")
    (tmp_path / "getent").write_text('#!/bin/bash\n[ "$2" = "$KNOWN" ]\n')
    for tool in tmp_path.iterdir():
        tool.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert _environment("jupiter", PATH=path, KNOWN="jpbo-001-01i")["MASTER_ADDR"] == "jpbo-001-01i"
    assert "MASTER_ADDR" not in _environment("jupiter", PATH=path, KNOWN="")


def test_check_names_what_is_stale_and_write_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "jobs/sites", tmp_path / "jobs/sites")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs/sites.md"
    page.write_text(f"before\n{shell.BEGIN}\nold\n{shell.END}\nafter\n")
    for module in (shell, sites):
        monkeypatch.setattr(module, "jobs_folder", lambda: tmp_path / "jobs")
    yaml_file = tmp_path / "jobs/sites/frontier.yaml"
    yaml_file.write_text(yaml_file.read_text().replace("rocm/7.1.1", "rocm/7.2.0"))
    assert shell.main(["--check"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in told] == ["frontier.sh", "sites.md"]
    assert page.read_text().count("old") == 1
    assert shell.main(["--write"]) == 0
    assert shell.main(["--check"]) == 0
    text = page.read_text()
    assert (
        text.startswith("before\n") and text.endswith("\nafter\n") and "`rocm/7.2.0`" in text and "\nold\n" not in text
    )
    assert "rocm/7.2.0" in (tmp_path / "jobs/sites/frontier.sh").read_text()
    page.write_text("no marks")
    assert shell.main(["--check"]) == 2
    assert "the lines" in capsys.readouterr().err


def test_a_site_of_your_own_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text((ROOT / "jobs/sites/frontier.yaml").read_text().replace("name: frontier", "name: mine"))
    assert shell.main([str(mine)]) == 0
    (tmp_path / "mine.sh").write_text(capsys.readouterr().out)
    assert _bash(f'source {tmp_path}/mine.sh; echo "$SITE"') == ["mine"]
    assert shell.main(["frontire"]) == 2
    assert capsys.readouterr().err == "no site 'frontire': did you mean frontier?\n"
