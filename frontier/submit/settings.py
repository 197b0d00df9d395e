"""The user's settings: jobs/site.env of the working directory, over it the environment, under it the shipped defaults."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from frontier.errors import UserError
from frontier.submit.site import Site, jobs_folder

SHIPPED = "site.env"
OWN = Path("jobs") / SHIPPED


def queue_variable(site: Site) -> str:
    """What sbatch reads for the site's partition, or for its QOS where jobs name that."""
    return "SBATCH_QOS" if site.scheduler == "slurm" and site.queue_flag == "-q" else "SBATCH_PARTITION"


def read_settings(site: str | None = None) -> dict[str, str]:
    """FRONTIER_* of the settings files in the order of the shipped one, and SBATCH_ACCOUNT, _PARTITION and _QOS where they are given.

    Where no environment is named and there is no .venv here, FRONTIER_VENV is the one that runs this command.

    Args:
        site: takes the place of FRONTIER_SITE.

    Raises:
        UserError: jobs/site.env of the working directory is no shell script.
    """
    shipped = jobs_folder() / SHIPPED
    sources = [path for path in (OWN, shipped) if path.is_file()]
    env = {**os.environ, **({"FRONTIER_SITE": site} if site else {})}
    done = subprocess.run(
        ["bash", "-c", 'set -a; for file; do source "$file" || exit; done; env -0', "bash", *map(str, sources)],
        capture_output=True,
        text=True,
        env=env,
    )
    if done.returncode or done.stderr:
        raise UserError(
            f"{OWN}: {' '.join(done.stderr.split()) or 'it ends with an error'}: mend it, it is a shell script"
        )
    found = dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)
    names = re.findall(r"^(?:export )?(FRONTIER_\w+)=", shipped.read_text(), re.MULTILINE)
    settings = {name: found[name] for name in names}
    venv = Path(settings["FRONTIER_VENV"])
    if venv.name == ".venv" and venv.parent.resolve() == Path.cwd() and not venv.exists():
        settings["FRONTIER_VENV"] = sys.prefix
    settings |= {name: found[name] for name in ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS") if found.get(name)}
    return settings
