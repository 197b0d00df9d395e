"""A site as data (jobs/sites/NAME.yaml): what differs between supercomputers, each line with its source.

Two things are made of it: jobs/sites/NAME.sh, which the shipped job scripts source (`frontier.submit.shell`), and the
scripts of `frontier submit`. docs/sites.md tells how to write one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from frontier.config.load import known_keys, nearest_key, read_yaml
from frontier.config.schema import Section
from frontier.errors import UserError

PLACEHOLDERS = ("nodes", "ranks_per_node", "time", "name", "account", "partition")
"""What the text of a directive may hold in braces."""


class Sourced(Section):
    """A line of a script and where it comes from."""

    text: str = Field(min_length=1)
    """Bash as it stands in the script: words of `step`, `modules` and `container`, a command elsewhere. In directives
    no bash, but {nodes}, {ranks_per_node}, {time}, {name}, {account}, {partition}."""
    source: str = Field(min_length=1)
    """A key of `sources` with what follows it, such as "PT batch script", or "suite" for what this suite itself asks for."""
    why: str = ""

    @field_validator("text", "source", "why")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if "\n" in value:
            raise ValueError("holds a line break: one entry is one line of a script")
        return value


class Limit(Section):
    """Longest job of a partition by its number of nodes."""

    first: int = Field(ge=1)
    last: int = Field(ge=1)
    hours: float = Field(gt=0)

    @model_validator(mode="after")
    def _forwards(self) -> Limit:
        if self.last < self.first:
            raise ValueError(f"first {self.first} is more than last {self.last}: swap them")
        return self


class Partition(Section):
    limits: list[Limit] = Field(default_factory=list)
    """By growing number of nodes; empty: not found in public."""
    source: str = Field(min_length=1)

    @field_validator("limits")
    @classmethod
    def _apart(cls, limits: list[Limit]) -> list[Limit]:
        for one, two in pairwise(limits):
            if two.first <= one.last:
                raise ValueError(
                    f"{one.first}-{one.last} and {two.first}-{two.last} nodes overlap or are out of order: "
                    "a job of each size has one limit, smallest sizes first"
                )
        return limits


class Site(Section):
    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    title: str
    sources: dict[str, str] = Field(default_factory=dict)
    """key -> document, with its revision or date."""
    tested: str = "not run"
    """What of this was run on the machine itself."""
    scheduler: Literal["slurm", "pbs"]
    system: str | None = None
    """The machine's name in profiling/systems: what `frontier plan --system` takes."""
    account: bool = True
    """Jobs need one."""
    ranks_per_node: int = Field(ge=1)
    count_devices: list[Sourced] = Field(default_factory=list)
    """Commands that print how many devices this node shows: the first that prints anything is believed. `ranks_per_node`
    is for nodes that show none."""
    cores_per_rank: int | None = Field(None, ge=1)
    device: Literal["cuda", "xpu", "cpu", "auto"]
    """What each rank must find (`run.device`)."""
    device_memory_gib: float | None = Field(None, gt=0)
    """Of a rank's device, as a process may use it; null: unknown."""
    partition: str | None = None
    """The default one: partition, QOS or queue, as `queue_flag` says."""
    queue_flag: Literal["-p", "-q"] = "-p"
    """How a job names it: -p partition or -q QOS under Slurm, -q queue under PBS."""
    partitions: dict[str, Partition] = Field(default_factory=dict)
    directives: list[Sourced] = Field(default_factory=list)
    """Lines of the header without #SBATCH or #PBS, beside the common ones: name, account, nodes (PBS: select), time,
    partition, output, signal, requeue."""
    install: list[Sourced] = Field(default_factory=list)
    """Commands that make FRONTIER_VENV, once, under the modules: words for a reader, in no script."""
    modules: list[Sourced] = Field(default_factory=list)
    environment: list[Sourced] = Field(default_factory=list)
    """Commands of the batch shell after the modules, in order: exports, mostly. What is in the environment already wins."""
    once_a_node: list[Sourced] = Field(default_factory=list)
    """Commands that every node runs once before the ranks start; they see exported variables only."""
    step: list[Sourced] = Field(default_factory=list)
    """Words of srun or mpiexec."""
    container: list[Sourced] = Field(default_factory=list)
    """Words before `python3` that run it in $FRONTIER_CONTAINER; empty: the site is used without containers."""
    local_storage: Sourced | None = None
    """A folder on every node's own disk; null: there is none."""
    set_by_modules: list[Sourced] = Field(default_factory=list)
    """Variables that the modules set, so that nothing here repeats them."""
    left_out: list[Sourced] = Field(default_factory=list)
    """What one might expect here and why it is not: words for a reader, in no script's effect."""

    @model_validator(mode="after")
    def _together(self) -> Site:
        for text, source in self.cited():
            key = source.split()[0].rstrip(":,;")
            if key != "suite" and key not in self.sources:
                raise ValueError(f"'{text}' names the source '{key}', which `sources` lacks: add it there")
        for line in self.directives:
            for word in re.findall(r"\{([^}]*)\}", line.text):
                if word not in PLACEHOLDERS:
                    raise ValueError(f"directive '{line.text}': {{{word}}} is none of {', '.join(PLACEHOLDERS)}")
        if self.partition is not None and self.partitions and self.partition not in self.partitions:
            raise ValueError(f"partition '{self.partition}' is none of `partitions`: {', '.join(self.partitions)}")
        if self.scheduler == "pbs" and self.queue_flag != "-q":
            raise ValueError("queue_flag: PBS names a queue by -q")
        if self.container and not any("FRONTIER_CONTAINER" in line.text for line in self.container):
            raise ValueError('container: no word holds "$FRONTIER_CONTAINER", the image')
        return self

    def lines(self) -> Iterator[Sourced]:
        """Everything that ends up in a script."""
        for part in (self.directives, self.modules, self.environment, self.once_a_node, self.step, self.container):
            yield from part
        yield from self.count_devices
        if self.local_storage is not None:
            yield self.local_storage

    def cited(self) -> Iterator[tuple[str, str]]:
        """(what, source) of everything that names a source."""
        for line in (*self.lines(), *self.install, *self.set_by_modules, *self.left_out):
            yield line.text, line.source
        for name, partition in self.partitions.items():
            yield f"partition {name}", partition.source

    def longest(self, nodes: int, partition: str | None = None) -> float | None:
        """Hours that a job of so many nodes may take in `partition` (default: the site's); None: unknown.

        Raises:
            UserError: the partition takes no job of that size.
        """
        found = self.partitions.get(partition or self.partition or "")
        if found is None or not found.limits:
            return None
        for limit in found.limits:
            if limit.first <= nodes <= limit.last:
                return limit.hours
        sizes = ", ".join(f"{limit.first}-{limit.last}" for limit in found.limits)
        raise UserError(
            f"partition {partition or self.partition} of {self.name} takes jobs of {sizes} nodes, not of {nodes}"
        )


def shipped() -> list[str]:
    """Names of the sites that come with the suite."""
    return sorted(path.stem for path in (jobs_folder() / "sites").glob("*.yaml"))


def jobs_folder() -> Path:
    """The folder of job scripts: jobs/ of a checkout, frontier_jobs of an installation."""
    return Path(str(files("frontier_jobs")))


def load_site(name: str) -> Site:
    """A shipped site by name, or one of your own by the path of its YAML file.

    Raises:
        UserError: there is none, or the file is not a site.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else jobs_folder() / "sites" / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"the sites are {', '.join(shipped())}, or a .yaml file of yours"
        raise UserError(f"no site '{name}': {hint}")
    values = read_yaml(path, "the keys of a site (docs/sites.md)")
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_said(error)}") from None


def _said(error: ValidationError) -> str:
    """The first mistake as one line: where, what, and the nearest known key."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        keys = [part for part in first["loc"] if isinstance(part, str)]
        near = nearest_key(".".join(keys), known_keys(Site))
        return f"unknown key '{where}': " + (f"did you mean '{near}'?" if near else "remove it") + more
    if first["type"] == "missing":
        return f"key '{where}' is missing: add it{more}"
    text = first["msg"].removeprefix("Value error, ")
    return (f"{where}: {text}" if where else text) + more
