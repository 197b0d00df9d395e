"""The job scripts as text: sound bash, the same head in all of them, and each of them told of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

JOBS = sorted(path for path in (ROOT / "jobs").glob("*.sh") if "\n#SBATCH " in path.read_text())
HEAD = """\
set -euo pipefail
[ -f jobs/common.sh ] || cd "${FRONTIER_HOME:-$(dirname "$0")/..}" || exit 2
[ -f jobs/common.sh ] || { echo "job: no jobs/common.sh in $PWD: sbatch from the repository's root, or export FRONTIER_HOME" >&2; exit 2; }
source jobs/common.sh
"""


def _shellcheck(*scripts: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: run tools/system_packages.sh")
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_shellcheck() -> None:
    """Of what they share, by way of one of them."""
    _shellcheck("jobs/pretrain_3b.sh", "jobs/study.sh", "jobs/pack_env.sh", "jobs/site.env")


@pytest.mark.slow  # it reads what they share again for each
@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.stem)
def test_shellcheck_of_each(script: Path) -> None:
    _shellcheck(f"jobs/{script.name}")


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.stem)
def test_a_script_is_a_header_and_a_few_lines(script: Path) -> None:
    """What they share is sourced: beside the lines that find it, each has few of its own."""
    text = script.read_text()
    before, _, after = text.partition(HEAD)
    assert after, f"{script.name} does not begin its commands as the others do"
    assert all(line.startswith("#") for line in before.splitlines())
    for line in (f"-J {script.stem}", "-A PROJECT", "--requeue", "-o %x-%j.out", "--open-mode=append"):
        assert f"\n#SBATCH {line}" in text
    assert len(after.splitlines()) <= 18
    assert f"| `jobs/{script.name}` |" in (ROOT / "docs" / "jobs.md").read_text()


def test_training_is_told_before_its_end() -> None:
    """Those that train ask for the signal, the disk and the network's setting."""
    for script in JOBS:
        text = script.read_text()
        trains = "job_pretrain" in text or "job_study" in text
        for line in ("--signal=B:USR1@300", "-C nvme", "--network=disable_rdzv_get"):
            assert (f"\n#SBATCH {line} " in text) == trains, (script.name, line)
