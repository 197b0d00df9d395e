"""The folder `profiling/` must not hide the standard library's package of that name (Python 3.15), nor any module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_no_file_hides_a_standard_module() -> None:
    names = {path.stem for path in (ROOT / "profiling").rglob("*.py")}
    names |= {path.name for path in (ROOT / "profiling").rglob("*") if path.is_dir()}
    assert "__init__" not in names
    assert not names & set(sys.stdlib_module_names)


def test_the_standard_package_wins_from_the_repository_root(tmp_path: Path) -> None:
    (tmp_path / "profiling").mkdir()
    (tmp_path / "profiling" / "__init__.py").touch()
    (tmp_path / "profiling" / "tracing.py").write_text("HERE = True\n")
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}]; sys.path.append({str(tmp_path)!r})\n"
        "import profiling.tracing, frontier_profiling.report.command\n"
        "assert profiling.tracing.HERE"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
