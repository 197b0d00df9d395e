"""The wheel and the editable install: which names they bring, and that `profiling/` never shadows Python 3.15's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

TOP_LEVEL = {"frontier", "data_prep", "gpna", "scale_alibi", "frontier_jobs", "frontier_profiling"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in tracked.stdout.split():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_these_names_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == TOP_LEVEL
    assert "frontier_profiling/__init__.py" not in names
    for needed in (
        "frontier_jobs/pretrain_3b.sh",
        "frontier_jobs/common.sh",
        "frontier_jobs/site.env",
        "frontier_jobs/sites/frontier.yaml",
        "frontier_jobs/sites/frontier.sh",
        "frontier_jobs/configs/mae_vit_3b.yaml",
        "frontier_jobs/configs/gpna_sustainbench/_base.yaml",
        "frontier_profiling/report/run.html.j2",
        "frontier_profiling/report/report.css",
        "frontier_profiling/studies/weak_scaling.yaml",
        "frontier/train/trainer.py",
        "frontier/probe/published.yaml",
    ):
        assert needed in names, needed


def test_installed_wheel_works_beside_a_standard_profiling_package(wheel: Path, tmp_path: Path) -> None:
    site, standard = tmp_path / "site", tmp_path / "standard"
    zipfile.ZipFile(wheel).extractall(site)
    (standard / "profiling").mkdir(parents=True)
    (standard / "profiling/__init__.py").write_text("mark = 'standard library'\n")
    code = (
        "import profiling, frontier, frontier_profiling.report.command, frontier_jobs, data_prep.command\n"
        "import torch.distributed.checkpoint\n"
        "assert profiling.mark == 'standard library'\n"
        "from frontier.config.load import load_config\n"
        "assert load_config('mae_debug').run.dir == 'runs/debug'\n"
        "assert 'site' in frontier.__file__, frontier.__file__\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(standard)])},
    )
    assert done.returncode == 0, done.stderr


def test_editable_install_gives_the_renamed_packages(tmp_path: Path) -> None:
    code = "import frontier_profiling.report.command as r, frontier_jobs as j, frontier as f; print(r.__file__, j.__file__, f.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(ROOT / part) for part in ("profiling/report/command.py", "jobs/__init__.py", "frontier/__init__.py")
    ]


def test_profiling_has_no_init_and_no_standard_names() -> None:
    assert not list((ROOT / "profiling").rglob("__init__.py"))
    clashing = {p.stem for p in (ROOT / "profiling").glob("*.py")} & set(sys.stdlib_module_names)
    assert not clashing
