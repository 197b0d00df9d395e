"""One job as one script: a header, settings, the site, and the call of jobs/common.sh. Made from jobs/templates/job.sh.j2."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from frontier.errors import UserError
from frontier.submit.shell import because, site_shell
from frontier.submit.site import Site, Sourced, jobs_folder

SAVE_S = 300
"""Seconds before its end at which a job is told to save; a quarter of a job shorter than 20 minutes."""

LONGEST_S = 366 * 86400
"""Beyond this a limit is a slip of the pen; Slurm takes even longer ones than it can count, and calls them INVALID."""


@dataclass(frozen=True)
class Job:
    """What one script does.

    Attributes:
        nodes: of the allocation; FRONTIER_NODES in `settings` may use fewer.
        seconds: the time limit.
        run: the run folder, relative to `here` or absolute.
        config: as the user wrote it, relative to `here` or absolute.
        overrides: without run.dir and data.shards, which `settings` have.
        settings: FRONTIER_*, all that jobs/site.env has.
        typed: the command that made it.
    """

    site: Site
    name: str
    nodes: int
    ranks_per_node: int
    seconds: int
    account: str | None
    partition: str | None
    run: str
    config: str
    overrides: tuple[str, ...]
    settings: dict[str, str]
    here: Path
    typed: str

    @property
    def used_nodes(self) -> int:
        return int(self.settings["FRONTIER_NODES"] or self.nodes)

    @property
    def ranks(self) -> int:
        return self.used_nodes * self.ranks_per_node

    @property
    def folder(self) -> Path:
        """Of scripts, logs and the record of submissions."""
        return self.here / self.run / "jobs"

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.sh"

    def log(self, job_id: str) -> Path:
        """Where the job writes."""
        return self.folder / (f"{self.name}-{job_id}.out" if self.site.scheduler == "slurm" else f"{job_id}.OU")


def seconds_of(text: str) -> int:
    """A time limit as Slurm takes it: minutes, HH:MM:SS or D-HH:MM:SS.

    Raises:
        UserError: it is none of these.
    """
    if re.fullmatch(r"\d+", text, re.ASCII):
        seconds = 60 * int(text)
    elif found := re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", text, re.ASCII):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = ((24 * days + hours) * 60 + minutes) * 60 + rest
    else:
        raise UserError(f"--time {text}: write minutes (90), HH:MM:SS (01:30:00) or D-HH:MM:SS (1-12:00:00)")
    if not 60 <= seconds <= LONGEST_S:
        raise UserError(f"--time {text}: a job lasts from a minute to a year")
    return seconds


def hms(seconds: float) -> str:
    """HH:MM:SS, hours beyond 24 as well: Slurm and PBS take it."""
    whole = round(seconds)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def script(job: Job) -> str:
    """The text of the job's script."""
    env = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    env.filters |= {"word": header_word, "quote": shlex.quote}
    values = {"nodes": job.nodes, "ranks_per_node": job.ranks_per_node, "time": hms(job.seconds), "name": job.name}
    values |= {"account": job.account, "partition": job.partition}
    template = env.from_string((jobs_folder() / "templates" / "job.sh.j2").read_text())
    return template.render(
        job=job,
        pbs=job.site.scheduler == "pbs",
        time=hms(job.seconds),
        save_s=min(SAVE_S, job.seconds // 4),
        directives=[(filled(line, values), because(line)) for line in job.site.directives],
        settings=job.settings,
        site_block=re.sub(r"\A# shellcheck.*\n", "", site_shell(job.site)).strip(),
        common=str(common_file()),
    )


def common_file() -> Path:
    return jobs_folder() / "common.sh"


def filled(line: Sourced, values: Mapping[str, Any]) -> str:
    """A directive with the job's own numbers in place of its `PLACEHOLDERS`."""
    return re.sub(r"\{(\w+)\}", lambda m: str(values.get(m[1], m[0])), line.text)


def header_word(path: str | Path, rest: str) -> str:
    """A path in a #SBATCH or #PBS line, with what follows it: quoted where it must be; a % of the path's own is doubled."""
    text = str(path).replace("%", "%%") + rest
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text) else shlex.quote(text)


def launch_line(job: Job) -> str:
    """The command that starts the ranks, from the functions of common.sh that start them.

    Raises:
        UserError: where those refuse, as for an environment that is not there.
    """
    settings = "\n".join(f"{name}={shlex.quote(value)}" for name, value in job.settings.items())
    shards = job.settings["FRONTIER_SHARDS"]
    words = [
        "pretrain",
        job.config,
        *job.overrides,
        f"run.dir={job.run}",
        *([] if job.site.device == "auto" else [f"run.device={job.site.device}"]),
        *([f"data.shards={shards}"] if shards else []),
    ]
    text = f"""set -euo pipefail
USER=${{USER:-$(id -un)}} JOB_ID=JOB launcher={job.site.scheduler} excluded=
{settings}
{site_shell(job.site)}
source {shlex.quote(str(common_file()))}
find_python
exec() {{ printf '%s\\0' "$@"; }}
launch {job.used_nodes} {job.ranks_per_node} "${{python[@]}}" -W ignore -u -m frontier {shlex.join(words)}
"""
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, cwd=job.here)
    if done.returncode:
        raise UserError(" ".join(done.stderr.split()).removeprefix("job: "))
    return shlex.join(done.stdout.split("\0")[:-1])
