"""What a script holds: a golden file a site, times, paths with odd characters.

`UPDATE_GOLDEN=1 python -m pytest tests/submit/test_render.py` rewrites the golden files; read their diff.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from frontier.errors import UserError
from frontier.submit.render import hms, seconds_of
from frontier.submit.site import jobs_folder, load_site, shipped
from tests.conftest import ROOT
from tests.submit.runs import Submitter

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("site", shipped())
def test_golden(site: str, submit: Submitter) -> None:
    code, text, said = submit(
        "--site", site, "--nodes", "8", "--time", "1:00:00", "--account", "abc123", "train.steps=40", "--dry-run"
    )
    assert code == 0, said
    for place, name in ((submit.folder, "/HERE"), (jobs_folder(), "/PACKAGE/jobs"), (sys.prefix, "/VENV")):
        text = text.replace(str(place), name)
    golden = GOLDEN / f"{site}.sh"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden} differs: look at it, then run with UPDATE_GOLDEN=1"


def test_no_golden_file_is_left_over() -> None:
    assert sorted(path.stem for path in GOLDEN.iterdir()) == shipped()


@pytest.mark.parametrize("site", shipped())
def test_golden_is_sound_bash(site: str) -> None:
    path = GOLDEN / f"{site}.sh"
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here: run tools/system_packages.sh")
    done = subprocess.run(["shellcheck", "-x", path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_directive_has_its_source_above_it() -> None:
    for site in shipped():
        lines = (GOLDEN / f"{site}.sh").read_text().splitlines()
        for directive in load_site(site).directives:
            words = directive.text.replace("{ranks_per_node}", str(load_site(site).ranks_per_node)).replace(
                "{nodes}", "8"
            )
            at = next(i for i, line in enumerate(lines) if line in (f"#SBATCH {words}", f"#PBS {words}"))
            assert lines[at - 1].startswith(f"# {directive.source}")


def test_the_memory_of_devices_is_the_predictors() -> None:
    for site in map(load_site, shipped()):
        if site.device_memory_gib is not None:
            system = yaml.safe_load((ROOT / f"profiling/systems/{site.system}.yaml").read_text())
            assert site.device_memory_gib == system["device"]["memory_gib"], site.name


def test_odd_characters_reach_the_job_as_they_are(submit: Submitter) -> None:
    """Run by bash with functions in place of common.sh, the words are what was typed."""
    run, word = "runs/it's 50 %", "data.column=$(touch broken) ;'\""
    odd = submit.folder / "a b.yaml"
    odd.write_text((submit.folder / "small.yaml").read_text())
    code, text, said = submit(
        "--site",
        "local",
        "--nodes",
        "1",
        "--time",
        "5",
        "--dry-run",
        f"run.dir={run}",
        f"data.column={word}",
        config="a b.yaml",
    )
    assert code == 2 and "data.column has no effect" in said  # synthetic data: the value was read, and refused
    code, text, said = submit(
        "--site", "local", "--nodes", "1", "--time", "5", "--dry-run", f"run.dir={run}", config="a b.yaml"
    )
    assert code == 0, said
    assert f"#SBATCH -o '{submit.folder}/runs/it'\"'\"'s 50 %%/jobs/%x-%j.out'" in text.splitlines()
    stand_in = submit.folder / "common.sh"
    stand_in.write_text('job_begin() { :; }\njob_pretrain() { printf \'%s\\n\' "$PWD" "$@"; }\n')
    done = subprocess.run(
        ["bash"],
        input=text.replace(str(jobs_folder() / "common.sh"), str(stand_in)),
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.stdout.splitlines() == [str(submit.folder), "a b.yaml", run], done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("2:00:00", 7200), ("00:01:30", 90), ("1-12:00:00", 129_600), ("30:00:00", 108_000)],
)
def test_times(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds
    assert seconds_of(hms(seconds)) == seconds


@pytest.mark.parametrize("text", ["2h", "1:30", "", "-5", "1:60:00", "0", "00:00:59", "1.5"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--time"):
        seconds_of(text)


def test_a_short_job_is_told_to_save_later(submit: Submitter) -> None:
    """300 s before the end of a job of four minutes would be its start."""
    assert "#SBATCH --signal=B:USR1@300" in submit.dry("--time", "20")[1]
    assert "#SBATCH --signal=B:USR1@60" in submit.dry("--time", "4")[1]
