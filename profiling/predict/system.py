"""A machine as the predictor sees it: devices, links, network, as YAML under `profiling/systems/`."""

from __future__ import annotations

import difflib
import math
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from frontier.errors import UserError

MEASURED_RATES = (
    "optimizer_gb_per_s",
    *(
        f"{rate}_{dtype}"
        for rate in ("attention_tflops", "elementwise_gb_per_s", "blocks_s")
        for dtype in ("fp32", "bf16")
    ),
)
"""Of a machine that `frontier doctor` measured: they take the place of shares of its peaks."""
BLOCK_SIZES = ("blocks", "batch", "tokens", "width", "heads", "hidden")
FOLDER = Path(__file__).parent.parent / "systems"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
Watts = Annotated[float, Field(ge=0)]


class Device(_Part):
    """What one rank sees: a GPU, one die of a module, a tile; on a CPU the cores of one rank."""

    name: str
    type: Literal["cuda", "xpu", "cpu"] = "cuda"
    memory_gib: float = Field(gt=0)
    """Usable by a process."""
    peak_tflops: dict[str, Positive] = Field(min_length=1)
    """Dense matrix products by precision (bf16, fp32)."""
    memory_gb_per_s: float = Field(gt=0)


class Node(_Part):
    devices: int = Field(gt=0)
    cpu: str | None = None
    cores: int | None = None
    memory_gib: Positive | None = None
    idle_w: Watts | None = None
    """The whole node at rest."""
    host_w: Watts | None = None
    """All but the devices, at work."""
    device_idle_w: Watts | None = None
    device_busy_w: Watts | None = None
    scheduler: str | None = None
    """For people: no prediction depends on it. Limits of partitions are in jobs/sites/."""


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
    latency_s: Annotated[float, Field(ge=0)] | None = None
    """Of one hop of a ring between nodes; None: the fitted constant."""
    name: str = ""


class Storage(_Part):
    """Where samples are read from."""

    read_gb_per_s_per_node: Positive | None = None
    read_gb_per_s: Positive | None = None
    """Of a file system that all nodes share: a job can have no more."""
    name: str = ""


TABLES = ("operator_s", "ranks", "collectives")
"""Of `efficiency`: what `frontier doctor --write-system` keeps beside the constants, to be read and fitted."""
SHARES = ("overlap", "contention")
"""Constants that are parts of a whole; `ZEROS` may be nothing, all others are positive."""
ZEROS = ("launch_s", "hop_s", "selective_recompute", "tensor_launch", *SHARES)


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

    @model_validator(mode="after")
    def _efficiency(self) -> System:
        from dataclasses import fields

        from frontier_profiling.predict.constants import Constants

        known = [*(field.name for field in fields(Constants)), "spread", *MEASURED_RATES]
        for name, node in self.efficiency.items():
            if name in TABLES:
                continue
            if name not in known:
                raise ValueError(f"efficiency: '{name}' is no constant{_near(name, known)}")
            value = node.get("value") if isinstance(node, dict) else node
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"efficiency.{name}: give a number, or {{value: number, from: …}}")
            least, most = (1.0 if name == "spread" else 0.0), (1.0 if name in SHARES else math.inf)
            if not least <= value <= most or (value == 0 and name not in ZEROS):
                bound = (
                    f"{least:g} to {most:g}"
                    if name in SHARES
                    else "1 or more"
                    if name == "spread"
                    else "a positive number"
                )
                raise ValueError(f"efficiency.{name} {value:g}: give {bound}")
            sizes = [node.get(size) if isinstance(node, dict) else None for size in BLOCK_SIZES]
            if name.startswith("blocks_s") and not all(type(size) is int and size > 0 for size in sizes):
                raise ValueError(f"efficiency.{name}: give {', '.join(BLOCK_SIZES)} of the blocks beside their value")
        return self

    def __hash__(self) -> int:
        return hash(
            (self.name, self.device.name, self.node.devices)
        )  # cases are keys of caches; equality compares everything

    def read_gb_per_s(self, nodes: int) -> float | None:
        """What so many nodes read together at most; None where neither a node's rate nor the file system's is known."""
        own, shared = self.storage.read_gb_per_s_per_node, self.storage.read_gb_per_s
        if own is None and shared is not None and self.network is not None:
            own = self.network.node_gb_per_s
        known = [rate for rate in (own and own * nodes, shared) if rate is not None]
        return min(known) if known else None

    @property
    def measured(self) -> bool:
        """Whether any of its constants was."""
        return any(isinstance(node, dict) and node.get("from") == "measured" for node in self.efficiency.values())

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
    except UnicodeDecodeError:
        raise UserError(f"system file {path} is no text: give a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"system file {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict):
        raise UserError(f"system file {path}: expected keys such as name, device, node")
    try:
        return System.model_validate(node)
    except ValidationError as error:
        raise UserError(f"system file {path}: {_said(error)}") from None


def _said(error: ValidationError) -> str:
    """The first mistake in words: where, what, and the nearest known key."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        parts = {"device": Device, "node": Node, "links": Link, "network": Network, "storage": Storage}
        part = parts.get(str(first["loc"][0]), System) if len(first["loc"]) > 1 else System
        return f"{where} is no key{_near(str(first['loc'][-1]), list(part.model_fields))}"
    text = first["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f": did you mean '{near[0]}'?" if near else f": known are {', '.join(known)}"
