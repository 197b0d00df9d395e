"""A study: one question, one grid of points, as a YAML file with typed keys."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from frontier.config.load import config_file, known_keys, merge, nearest_key, parse_override, read_extended
from frontier.config.schema import STRATEGY_HELP, CoreConfig, ParallelConfig, Section
from frontier.errors import UserError

SHIPPED = Path(__file__).resolve().parent.parent / "studies"
Mode = Literal["measured", "submitted", "predicted"]

NUMBERS = ("nodes", "ranks", "micro_batch", "global_batch", "tensor", "prefetch")
"""Axes that compare."""
COMPARISON = re.compile(r"(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)")

RUN_SECTIONS = tuple(CoreConfig.model_fields)
"""Sections of a run's config: `--set data.shards=…` goes there."""


class Grid(Section):
    """Axes. An axis left out has one value: that of `config`, else the default of `frontier pretrain`."""

    model: list[str] | None = None
    strategy: list[str] | None = None
    nodes: list[int] | None = None
    ranks: list[int] | None = None
    """Instead of nodes: ranks on one machine."""
    micro_batch: list[int] | None = None
    """Images of a rank in one forward pass."""
    global_batch: list[int] | None = None
    """Strong scaling: images of a step, whatever the number of ranks."""
    tensor: list[int] | None = None
    prefetch: list[Annotated[int, Field(ge=0, le=8)]] | None = None
    activation_checkpointing: list[Literal["none", "selective", "full"]] | None = None
    precision: list[Literal["fp32", "bf16"]] | None = None
    data: list[Literal["synthetic", "shards", "only"]] | None = None
    """synthetic: made on the device; shards: read; only: read, no training."""

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        lists = {key: value if isinstance(value, list) or value is None else [value] for key, value in values.items()}
        for key, found in lists.items():
            if any(isinstance(value, bool) for value in found or []):
                raise ValueError(f"{key} is a list of numbers or words: true and false are neither")
        return lists

    @field_validator("*")
    @classmethod
    def _filled(cls, value: list[Any] | None) -> list[Any] | None:
        if value is not None and not value:
            raise ValueError("an axis needs at least one value: give one, or leave the axis out")
        if value is not None and len(set(value)) < len(value):
            raise ValueError("a value stands twice")
        return value

    @field_validator("nodes", "ranks", "micro_batch", "global_batch", "tensor")
    @classmethod
    def _positive(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and min(value) < 1:
            raise ValueError("the values are positive numbers")
        return value

    @field_validator("strategy")
    @classmethod
    def _strategies(cls, value: list[str] | None) -> list[str] | None:
        for word in value or []:
            try:
                ParallelConfig._strategy(word)
            except ValueError:
                raise ValueError(f"'{word}' is no strategy: choose {STRATEGY_HELP}") from None
        return value

    @model_validator(mode="after")
    def _one_size(self) -> Grid:
        if (self.nodes is None) == (self.ranks is None):
            raise ValueError("give one of grid.nodes and grid.ranks (ranks on one machine)")
        return self


class Job(Section):
    """How a point becomes a batch job: a site, and what is added to it."""

    site: str | None = None
    """A name under jobs/sites, or the path of a YAML file: header, modules, environment and srun's words. None: any Slurm, as `local`."""
    sbatch_args: str = ""
    """Such as "-A abc123 -p batch"; over the site's header."""
    srun_args: str = ""
    """After the site's, such as "-c7 --gpus-per-task=1"; --nodes and --ntasks-per-node are given."""
    setup: str = ""
    """Shell lines that run after the site's modules and environment."""
    time_limit_s: int | None = Field(None, gt=0)
    """The longest job: more points than fit are cut into several jobs. Default: the site's for so many nodes, else two hours."""

    @field_validator("sbatch_args", "srun_args")
    @classmethod
    def _words(cls, value: str) -> str:
        try:
            shlex.split(value)
        except ValueError as error:
            raise ValueError(f"{value}: {error}: close it") from None
        return value


class Study(Section):
    """A resolved study; `extends` and `base` are laid into it when it is read."""

    name: str
    title: str
    question: str
    mode: Mode = "predicted"
    system: str = "local"
    """A name under profiling/systems, or the path of a YAML file (`frontier doctor --write-system FILE` writes one)."""
    scaling: Literal["weak", "strong"] = "weak"
    """weak: every rank has micro_batch images; strong: the step has global_batch images."""
    grid: Grid
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """A point that matches every key of a rule is left out. Values: one, a list, a pattern (hybrid_*) or a comparison (">64")."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Sections of a run's config, as of `frontier pretrain`; dotted keys are possible. The grid's values lie over them."""
    steps: int = Field(20, gt=0)
    """Timed steps of a measured point; those that the measurement drops as warm-up come on top."""
    time_limit_s: int = Field(900, gt=0)
    """Of a measured point; beyond it the point's status is timeout."""
    ranks_per_node: int | None = Field(None, gt=0)
    """Default: the devices of the site's node where one is named, else of the system's."""
    threads: int | None = Field(None, gt=0)
    """OMP_NUM_THREADS of a rank; default: an equal share of this machine's cores, under Slurm what is set there."""
    samples: int | None = Field(None, gt=0)
    """Images of a whole training run, for which node-hours are told."""
    workload: Literal["vit", "mae"] = "mae"
    """What is predicted: vit, the encoder on all tokens, as in the published scaling study; measured is always mae."""
    engine: Literal["fsdp1", "fsdp2"] = "fsdp2"
    """What is predicted; measured is always fsdp2."""
    job: Job = Job()

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", value):
            raise ValueError("a name is letters, digits, _ . and -: it names the study's folder")
        return value

    @model_validator(mode="after")
    def _together(self) -> Study:
        if self.scaling == "strong" and self.grid.global_batch is None and not self._given("train.global_batch"):
            raise ValueError("scaling strong needs grid.global_batch")
        if self.scaling == "weak" and self.grid.global_batch is not None:
            raise ValueError("scaling weak gives every rank grid.micro_batch images: leave grid.global_batch out")
        axes = list(Grid.model_fields)
        for rule in self.exclude:
            for key in rule:
                if key not in axes:
                    near = nearest_key(key, axes)
                    raise ValueError(f"exclude: '{key}' is no axis" + (f": did you mean '{near}'?" if near else ""))
                for value in rule[key] if isinstance(rule[key], list) else [rule[key]]:
                    _check_wanted(key, value)
        return self

    def _given(self, dotted: str) -> Any:
        return lookup(self.config, dotted)

    def as_dict(self) -> dict[str, Any]:
        """Plain YAML types; axes that are not given are left out."""
        out = self.model_dump(mode="json")
        out["grid"] = {key: value for key, value in out["grid"].items() if value is not None}
        return out


def _check_wanted(axis: str, value: Any) -> None:
    """A value of a rule of `exclude`. Raises ValueError for one that could fit nothing."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(
            f"exclude: {axis} takes a value, a list, a pattern or a comparison such as '>64', not {value!r}"
        )
    if isinstance(value, str) and value[:1] in ("<", ">") and (axis not in NUMBERS or not COMPARISON.fullmatch(value)):
        raise ValueError(
            f"exclude: {axis} {value!r}: comparisons are '<64', '<=64', '>64' or '>=64', of {', '.join(NUMBERS)}"
        )
    if axis == "strategy" and isinstance(value, str) and not set(value) & set("*?["):
        try:
            ParallelConfig._strategy(value)
        except ValueError as error:
            raise ValueError(f"exclude: {error}") from None


def lookup(node: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted key in nested mappings, or None."""
    value: Any = node
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys -> nested mappings: {"train.steps": 5} -> {"train": {"steps": 5}}."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        node: Any = nested(value) if isinstance(value, Mapping) else value
        for part in reversed(str(key).split(".")):
            node = {part: node}
        out = merge(out, node)
    return out


def shipped() -> list[Path]:
    """The studies that come with the package."""
    return sorted(SHIPPED.glob("*.yaml"))


def find(name: str) -> Path:
    """Path of a study: a file, the folder of a study that was run, or the name of a shipped one."""
    path = Path(name)
    if path.is_file():
        return path
    if (path / "study.yaml").is_file():
        return path / "study.yaml"
    names = {p.stem: p for p in shipped()}
    if name in names:
        return names[name]
    if path.suffix in (".yaml", ".yml") or "/" in name:
        raise UserError(f"no study {name}: give the path of a YAML file, or a name of `frontier sweep --list`")
    near = nearest_key(name, list(names))
    raise UserError(
        f"no study '{name}': "
        + (f"did you mean '{near}'?" if near else "`frontier sweep --list` names the shipped ones, others are paths")
    )


def read_study(path: Path, overrides: Sequence[str] = (), mode: str | None = None) -> Study:
    """Read a study, its `extends:` chain and the overrides (`steps=10`, `grid.nodes=[1,2]`, `data.shards=…`).

    Raises:
        UserError: naming the key and the nearest known one.
    """
    values = read_extended(path)
    base = values.pop("base", None)
    if isinstance(base, str):
        values["config"] = merge(read_extended(_base_path(path, base)), _section(values, "config"))
    elif base is not None:
        raise UserError(f"{path}: base is the path of a run's config; its sections can stand under config")
    else:
        values["config"] = _section(values, "config")
    for text in overrides:
        keys, value = parse_override(text)
        if keys[0] in ("base", "extends"):
            raise UserError(f"--set {text}: {keys[0]} stands in a study's file; --set changes its values")
        if keys[0] in RUN_SECTIONS:
            keys = ["config", *keys]
        if len(keys) == 2 and keys[0] == "config" and not isinstance(value, Mapping):
            raise UserError(f"'{text}': {keys[1]} is a section, set one of its keys, or an axis by grid.KEY=VALUE")
        node: Any = value
        for key in reversed(keys):
            node = {key: node}
        if len(keys) > 1 and not isinstance(values.get(keys[0], {}), Mapping):
            raise UserError(f"'{keys[0]}' is no section of {path}, so {text} cannot be set")
        values = merge(values, node)
    if mode is not None:
        values["mode"] = mode
    shards = lookup(values["config"], "data.shards")
    if isinstance(shards, str):
        values["config"]["data"] = {**values["config"]["data"], "shards": str(Path(shards).absolute())}
    system = values.get("system")
    if isinstance(system, str) and (path.parent / system).is_file():
        values["system"] = str((path.parent / system).absolute())
    site = lookup(values, "job.site")
    if isinstance(site, str) and site.endswith((".yaml", ".yml")):
        beside = path.parent / site
        values["job"] = {**values["job"], "site": str((beside if beside.is_file() else Path(site)).absolute())}
    try:
        return Study.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from None


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name) or {}
    if not isinstance(section, Mapping):
        raise UserError(f"{name} must hold sections such as data and train")
    return nested(section)


def _base_path(study: Path, base: str) -> Path:
    """Beside the study, or from here, or the shipped config of that name."""
    beside = study.resolve().parent / base
    return beside if beside.is_file() else config_file(base)


def _explain(error: ValidationError) -> str:
    """The first finding as one line."""
    found = error.errors()[0]
    key = ".".join(str(part) for part in found["loc"])
    known: list[str] = [*_keys(Study), *(f"{section}" for section in ("base", "extends"))]
    if found["type"] == "extra_forbidden":
        near = nearest_key(key, known)
        return f"unknown key '{key}': " + (f"did you mean '{near}'?" if near else "remove it")
    if found["type"] == "missing":
        return f"key '{key}' is missing: add it"
    text = found["msg"].removeprefix("Value error, ")
    value = found.get("input")
    shown = f" (given {value!r})" if isinstance(value, str | int | float | bool | type(None)) else ""
    return f"{key}: {text}{shown}" if key else text


def _keys(model: type[BaseModel]) -> list[str]:
    return known_keys(model)
