"""The front door: help without heavy imports, unknown verbs, exit codes, no torch.distributed in models."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from frontier.cli import VERBS, main
from tests.conftest import ROOT, run_frontier

HEAVY = ("torch", "numpy", "pydantic", "yaml", "h5py", "sklearn", "matplotlib", "rich")


def imported_by(*argv: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "frontier", *argv], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("argv", [("--help",), ("--version",), *((verb, "--help") for verb in VERBS)])
def test_help_imports_nothing_heavy(argv: tuple[str, ...]) -> None:
    log = imported_by(*argv)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in log.splitlines() if "|" in line}
    assert not loaded & set(HEAVY)


def test_unknown_verb() -> None:
    done = run_frontier("pretrian")
    assert done.returncode == 2
    assert "did you mean 'pretrain'" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_option_is_one_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--nosuch"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"frontier {verb}: ")
    assert said.count("\n") == 1


def test_help_into_a_closed_pipe() -> None:
    done = subprocess.run(
        f"{sys.executable} -m frontier --help | true", shell=True, capture_output=True, text=True, cwd=ROOT
    )
    assert "Traceback" not in done.stderr


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def test_arrows_point_one_way() -> None:
    for path in (ROOT / "frontier").rglob("*.py"):
        names = imports_of(path)
        assert not {
            n for n in names if n.split(".")[0] in ("data_prep", "frontier_profiling", "gpna", "scale_alibi")
        }, path
    for path in (ROOT / "frontier/models").rglob("*.py"):
        assert not {n for n in imports_of(path) if n.startswith("torch.distributed")}, path
