"""A machine as the predictor sees it: devices, links, network, as YAML under `profiling/systems/`."""

from __future__ import annotations

import difflib
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from frontier.errors import UserError

FOLDER = Path(__file__).parent.parent / "systems"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Device(_Part):
    """What one rank sees: a GPU, one die of a module, a tile; on a CPU the cores of one rank."""

    name: str
    type: str = "cuda"
    memory_gib: float = Field(gt=0)
    """Usable by a process."""
    peak_tflops: dict[str, float]
    """Dense matrix products by precision (bf16, fp32)."""
    memory_gb_per_s: float = Field(gt=0)


class Node(_Part):
    devices: int = Field(gt=0)
    cpu: str | None = None
    cores: int | None = None
    memory_gib: float | None = None
    idle_w: float | None = None
    """The whole node at rest."""
    host_w: float | None = None
    """All but the devices, at work."""
    device_idle_w: float | None = None
    device_busy_w: float | None = None
    scheduler: str | None = None
    partition_limits: dict[str, Any] | None = None


class Link(_Part):
    """Between consecutive ranks inside a node."""

    devices: int = Field(gt=1)
    """Consecutive ranks that it connects."""
    gb_per_s: float = Field(gt=0)
    """What a rank can send."""
    latency_s: float = Field(5e-6, ge=0)
    """Of one hop of a ring."""
    name: str = ""


class Network(_Part):
    node_gb_per_s: float = Field(gt=0)
    """All interfaces of a node, one direction."""
    nics: int | None = None
    latency_s: float | None = None
    """Of one hop of a ring between nodes; None: the fitted constant."""
    name: str = ""


class Storage(_Part):
    read_gb_per_s_per_node: float | None = None


class System(_Part):
    name: str
    title: str = ""
    source: str | dict[str, Any] = ""
    device: Device
    node: Node
    links: tuple[Link, ...] = ()
    network: Network | None = None
    storage: Storage = Storage()
    nodes: int = Field(1, gt=0)
    """Of the largest job."""
    efficiency: dict[str, Any] = {}
    """Constants of `constants.yaml` that differ here: a number, or {value, from: fitted|measured|assumed, …}."""

    @model_validator(mode="after")
    def _links(self) -> System:
        sizes = [link.devices for link in self.links]
        if sizes != sorted(sizes):
            raise ValueError("links: list them innermost first, by growing `devices`")
        if self.node.devices > 1 and (not sizes or sizes[-1] < self.node.devices):
            raise ValueError(f"links: the last must connect all {self.node.devices} devices of a node")
        if self.nodes > 1 and self.network is None:
            raise ValueError("network: a machine of several nodes needs one")
        return self

    def __hash__(self) -> int:
        return hash(
            (self.name, self.device.name, self.node.devices)
        )  # cases are keys of caches; equality compares everything

    def constant(self, name: str) -> float | None:
        """A constant of this machine's own, or None."""
        value = self.efficiency.get(name)
        return value.get("value") if isinstance(value, dict) else value


def system_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@lru_cache
def load_system(name_or_path: str) -> System:
    """A shipped system by name, or one of the user's own by path (`.yaml`). Raises UserError where it is none or broken."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name_or_path}.yaml"
        if not path.exists():
            near = difflib.get_close_matches(name_or_path, system_names(), n=1)
            hint = (
                f"did you mean '{near[0]}'?" if near else f"known are {', '.join(system_names())}, or give a YAML file"
            )
            raise UserError(f"system '{name_or_path}' is unknown: {hint}")
    try:
        node = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(
            f"system file {path}: {error.strerror}; `frontier doctor --write-system FILE` makes one"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"system file {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict):
        raise UserError(f"system file {path}: expected keys such as name, device, node")
    try:
        return System.model_validate(node)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"system file {path}: {where}: {first['msg']}") from None
