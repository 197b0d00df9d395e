"""`frontier submit` without a scheduler: what it checks, where its settings come from, what it prints. PBS by a qsub of our own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, run_frontier, toy_config
from tests.submit.runs import Submitter


def settings_of(script: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in script.splitlines() if line.startswith("FRONTIER_"))


def test_a_dry_run_touches_nothing(submit: Submitter) -> None:
    before = sorted(submit.folder.rglob("*"))
    code, script, said = submit.dry("--nodes", "4", "train.steps=5")
    assert code == 0, said
    assert sorted(submit.folder.rglob("*")) == before
    assert script.startswith("#!/bin/bash\n") and script.endswith("job_pretrain small.yaml runs/small train.steps=5\n")
    for line in (
        "#SBATCH -J small",
        "#SBATCH -A abc123",
        "#SBATCH -N 4",
        "#SBATCH -t 00:30:00",
        "#SBATCH -p batch",
        "#SBATCH --requeue",
    ):
        assert line in script.splitlines()
    assert "4 node(s), 32 ranks of 8 a node on frontier, 00:30:00, partition batch, account abc123" in said
    assert "5 steps, 3,840 images" in said and "GiB a rank (predicted)" in said
    code, out, _ = submit.dry("--json", "train.steps=5")
    facts = json.loads(out)
    assert (facts["steps"], facts["ranks"], facts["provenance"]) == (5, 16, "predicted")
    assert facts["script_text"].splitlines()[2:] != [] and facts["memory_gib"]["peak"] > 0


def test_the_launch_line_is_what_common_sh_starts(submit: Submitter) -> None:
    launch = next(line for line in submit.dry()[2].splitlines() if line.startswith("launch"))
    assert launch.startswith("launch   srun -N 2 -n 16 --ntasks-per-node=8 --kill-on-bad-exit=0 --wait=60 -c7")
    assert launch.endswith(
        f"{sys.prefix}/bin/python -W ignore -u -m frontier pretrain small.yaml run.dir=runs/small run.device=cuda"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train.stepps=3"], "unknown config key 'train.stepps': did you mean 'train.steps'?"),
        (["train.global_batch=40"], "train.global_batch=40"),
        (["parallel.tensor=3"], "tensor"),
        (["data.synthetic=null", "data.shards=nowhere"], "nowhere"),
        (["--time", "3:00:00"], "--time 03:00:00: partition batch of frontier runs 2 node(s) for at most 02:00:00"),
        (["--nodes", "9999"], "partition batch of frontier takes jobs of 1-91, 92-183, 184-9472 nodes, not of 9999"),
        (["--time", "2h"], "--time 2h: write minutes (90), HH:MM:SS (01:30:00) or D-HH:MM:SS"),
        (["--time", "99999999999"], "a job lasts from a minute to a year"),
        (["--account", "abc\ntouch owned"], "--account abc touch owned: give one word"),
        (["--sbatch-args", "--comment='a"], "No closing quotation: close it"),
        (["--sbatch-args", "-N4"], "--sbatch-args '-N4': say nodes"),
        (["--sbatch-args", "-l select=4"], "--sbatch-args '-l select=4': say nodes"),
        (["--sbatch-args"], "argument --sbatch-args: expected one argument"),
        (["--site", "frontera"], "no site 'frontera': did you mean frontier?"),
        (["--nodes", "0"], "--nodes and --chain: give positive numbers"),
        (["--sbatch-args", "-N 4"], "--sbatch-args '-N 4': say nodes"),
        (["--sbatch-args", "--time=5"], "--sbatch-args '--time=5': say nodes"),
        (["--name", "a b"], "--name a b: use letters"),
        (["--sits", "x"], "unrecognized arguments: --sits"),
    ],
)  # fmt: skip
def test_one_line_for_a_mistake(words: list[str], line: str, submit: Submitter) -> None:
    code, out, said = submit.dry(*words)
    assert (code, out) == (2, "")
    assert said.startswith("frontier submit: ") and line in said and said.count("\n") == 1


def test_no_account(submit: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--site", "frontier", "--nodes", "2", "--time", "30", "--dry-run")
    code, _, said = submit(*words)
    assert code == 2
    assert (
        said
        == "frontier submit: frontier charges an account: pass --account, or export SBATCH_ACCOUNT (jobs/site.env)\n"
    )
    (submit.folder / "jobs").mkdir()
    (submit.folder / "jobs/site.env").write_text("export SBATCH_ACCOUNT=file123\n")
    assert "#SBATCH -A file123\n" in submit(*words)[1]
    monkeypatch.setenv("SBATCH_PARTITION", "extended")
    script = submit(*words, "--account", "flag123")[1]
    assert "#SBATCH -A flag123\n" in script and "#SBATCH -p extended\n" in script


def test_settings_from_the_file_and_the_environment(
    submit: Submitter, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (submit.folder / "jobs").mkdir()
    (submit.folder / "jobs/site.env").write_text(
        f"FRONTIER_SITE=${{FRONTIER_SITE:-local}}\nFRONTIER_SHARDS={shards}\nFRONTIER_DOCTOR=1\n"
        "FRONTIER_OVERRIDES='train.steps=7 run.seed=5'\nFRONTIER_STAGE_GIB=${FRONTIER_STAGE_GIB:-50}\nFRONTIER_RANKS_PER_NODE=4\n"
    )
    monkeypatch.setenv("FRONTIER_STAGE_GIB", "70")
    monkeypatch.setenv("FRONTIER_RUN", "runs/mine")
    words = (
        "--nodes",
        "2",
        "--time",
        "30",
        "--dry-run",
        "data.synthetic=null",
        "data.image_size=null",
        "train.global_batch=32",
        "train.steps=9",
    )
    code, script, said = submit(*words)
    assert code == 0, said
    found = settings_of(script)
    assert (found["FRONTIER_SITE"], found["FRONTIER_SHARDS"], found["FRONTIER_STAGE_GIB"]) == (
        "local",
        str(shards),
        "70",
    )
    assert (found["FRONTIER_RANKS_PER_NODE"], found["FRONTIER_DOCTOR"], found["FRONTIER_REQUEUE"]) == ("4", "1", "1")
    assert "8 ranks of 4 a node on local" in said and "runs/mine: 9 steps" in said
    assert "runs/mine train.steps=7 run.seed=5 " in script.splitlines()[-1] and "data.shards" not in script
    assert found["FRONTIER_VENV"] == sys.prefix  # no .venv here
    monkeypatch.setenv("FRONTIER_NODES", "3")
    assert submit(*words)[::2] == (2, "frontier submit: FRONTIER_NODES=3, the job has 2: pass --nodes 3\n")
    monkeypatch.setenv("FRONTIER_NODES", "1")
    assert "4 ranks of 4 a node" in submit(*words)[2]
    monkeypatch.setenv("FRONTIER_VENV", "/no/env")
    assert submit(*words)[0] == 2


def test_a_config_with_shards_can_do_without(submit: Submitter) -> None:
    values = yaml.safe_load((submit.folder / "small.yaml").read_text())
    synthetic = values["data"].pop("synthetic")
    values["data"]["shards"] = "nowhere"
    (submit.folder / "with.yaml").write_text(yaml.safe_dump(values))
    words = ("--site", "local", "--nodes", "2", "--time", "30", "--dry-run", f"data.synthetic={json.dumps(synthetic)}")
    assert submit(*words, config="with.yaml")[0] == 2
    code, script, said = submit(*words, "data.shards=null", config="with.yaml")
    assert (
        code == 0 and settings_of(script)["FRONTIER_SHARDS"] == "" and "data.shards=null" in script.splitlines()[-1]
    ), said


def test_every_setting_of_site_env_is_in_the_script(submit: Submitter) -> None:
    names = {
        line.split("=")[0] for line in (ROOT / "jobs/site.env").read_text().splitlines() if line.startswith("FRONTIER_")
    }
    assert len(names) > 8 and set(settings_of(submit.dry()[1])) == names


def test_memory_beyond_the_device(submit: Submitter) -> None:
    def site(gib: float) -> str:
        path = submit.folder / "mine.yaml"
        values = {
            "name": "mine",
            "title": "Mine",
            "scheduler": "slurm",
            "account": False,
            "ranks_per_node": 1,
            "device": "cuda",
        }
        path.write_text(yaml.safe_dump({**values, "sources": {}, "device_memory_gib": gib}))
        return str(path)

    peak = json.loads(submit.dry("--json", site=site(1000))[1])["memory_gib"]["peak"]
    code, _, said = submit.dry(site=site(peak / 2))
    assert code == 2 and "GiB a rank predicted" in said and "train.micro_batch" in said and said.count("\n") == 1
    code, _, said = submit.dry(site=site(peak * 1.02))
    assert code == 0 and "WARNING  memory" in said
    assert "WARNING" not in submit.dry(site=site(peak * 2))[2]


def test_a_run_that_cannot_go_on(submit: Submitter, shards: Path) -> None:
    """Against the checkpoint of a real run: all steps done, another batch, STOP."""
    run = submit.folder / "run"
    config = toy_config(run, shards)
    config["train"]["steps"] = 2
    (submit.folder / "toy.yaml").write_text(yaml.safe_dump(config))
    assert run_frontier("pretrain", submit.folder / "toy.yaml").returncode == 0
    words = ("--site", "local", "--nodes", "1", "--time", "5", "--dry-run")
    code, _, said = submit(*words, config="toy.yaml")
    assert code == 2 and f"{run} has all its 2 steps: ask for more (train.steps)" in said
    code, _, said = submit(*words, "train.steps=4", "train.global_batch=16", config="toy.yaml")
    assert code == 2 and "was made with train.global_batch=32, now it is 16" in said
    code, _, said = submit(*words, "train.steps=4", config="toy.yaml")
    assert code == 0 and "4 steps, from step 2" in said
    (run / "STOP").touch()
    code, _, said = submit(*words, "train.steps=4", config="toy.yaml")
    assert code == 2 and "asks this run to stay stopped" in said


def test_without_a_scheduler(submit: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = submit.folder / "bin"
    tools.mkdir()
    for name in ("bash", "id", "env", "dirname", "grep", "printenv", "tr"):
        (tools / name).symlink_to(
            next(Path(p) / name for p in os.environ["PATH"].split(":") if (Path(p) / name).exists())
        )
    monkeypatch.setenv("PATH", str(tools))
    words = ("--site", "local", "--nodes", "1", "--time", "5")
    code, _, said = submit(*words, "--dry-run")
    assert code == 0, said
    code, _, said = submit(*words)
    assert code == 2
    assert (
        said
        == "frontier submit: no sbatch here, and local uses it: submit on its login node, or look at the script with --dry-run\n"
    )


PBS = """#!/bin/bash
echo "$(basename "$0") $*" >>calls
case $(basename "$0") in
  qsub) [ -z "$REFUSE" ] || { echo "qsub: $REFUSE" >&2; exit 1; }
    echo "$(grep -c ^qsub calls).pbs" ;;
  qstat) [ "$ALIVE" = "${2}" ] && echo "    job_state = Q" || exit 35 ;;
esac
"""


def test_pbs(submit: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    """No PBS can be had here: stand-ins for qsub and qstat write down how they are called."""
    for name in ("qsub", "qstat"):
        (submit.folder / name).write_text(PBS)
        (submit.folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{submit.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("REFUSE", "")
    monkeypatch.setenv("ALIVE", "")
    words = ("--site", "aurora", "--nodes", "2", "--time", "30", "--account", "abc123", "--sbatch-args", "-m n")
    script = submit.folder / "runs/small/jobs/small.sh"
    code, out, said = submit(*words, "--chain", "3")
    assert code == 0, said
    calls = (submit.folder / "calls").read_text().splitlines()
    assert calls == [
        f"qsub -m n {script}",
        f"qsub -W depend=afternotok:1.pbs -m n {script}",
        f"qsub -W depend=afternotok:1.pbs:2.pbs -m n {script}",
    ]
    text = script.read_text()
    assert (
        "FRONTIER_JOB_END=$(($(date +%s) + 1800))" in text
        and "FRONTIER_REQUEUE=0" in text
        and "#PBS -l select=2" in text
    )
    assert "qstat -was1 1.pbs 2.pbs 3.pbs" in out and "log " + str(script.parent / "2.pbs.OU") in out
    monkeypatch.setenv("ALIVE", "3.pbs")
    code, _, said = submit(*words)
    assert code == 2 and "job 3.pbs of run runs/small is queued" in said
    monkeypatch.setenv("ALIVE", "")
    for reason, line in (
        ("Unknown queue", "no partition 'prod' here: `qstat -Q` lists them"),
        ("Job rejected by all possible destinations", "prod runs no job of 2 nodes for 00:30:00"),
        ("cannot connect to server aurora-pbs", "qsub does not answer"),
        ("something else", f"qsub -m n {script} refuses: something else"),
    ):
        monkeypatch.setenv("REFUSE", reason)
        code, _, said = submit(*words)
        assert code == (75 if "answer" in line else 2) and line in said and said.count("\n") == 1
