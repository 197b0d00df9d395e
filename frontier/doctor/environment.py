"""Environment variables, judged only where they matter: by backend, number of nodes and kind of network."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from frontier.doctor.checks import Check, error, ok, warning
from frontier.launch.ranks import Ranks


@dataclass(frozen=True)
class Site:
    """What decides which variables matter. `slingshot`: the node has HPE Cassini NICs, whose libfabric provider is cxi."""

    device: str = "cpu"
    hip: bool = False
    slingshot: bool = False
    interfaces: tuple[str, ...] = ()
    cores: int = 1

    @classmethod
    def here(cls, device: str, hip: bool) -> Site:
        try:
            interfaces = tuple(sorted(name for _, name in socket.if_nameindex()))
        except OSError:
            interfaces = ()
        slingshot = Path("/sys/class/cxi").exists() or any(name.startswith("hsn") for name in interfaces)
        return cls(device, hip, slingshot, interfaces, cores())


def cores() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def judge(env: Mapping[str, str], ranks: Ranks, site: Site) -> list[Check]:
    """All checks of variables; one OK line where nothing is wrong."""
    found = [*_threads(env, ranks, site), *meeting_place(env, ranks), *_interfaces(env, site), *_slow(env, ranks)]
    if site.device == "cuda" and ranks.nodes > 1:
        found += _collectives(env, site)
    if site.slingshot and ranks.nodes > 1:
        found += _slingshot(env, site)
    if site.hip:
        found += _miopen(env, ranks)
    if site.device == "xpu" and ranks.nodes > 1:
        found += _oneccl(env)
    if not any(c.status != "OK" for c in found):
        found.append(ok("environment", "no variable stands in the way"))
    return found


def _threads(env: Mapping[str, str], ranks: Ranks, site: Site) -> list[Check]:
    text = env.get("OMP_NUM_THREADS", "")
    if text and not (text.split(",")[0].isdecimal() and int(text.split(",")[0]) > 0):
        return [
            error(
                "env.OMP_NUM_THREADS", f"OMP_NUM_THREADS={text!r} is no number of threads", "unset it or set it right"
            )
        ]
    threads = int(text.split(",")[0]) if text else site.cores
    wanted = threads * ranks.local_world_size
    if wanted > site.cores and not (threads == 1 or _own_cores(env)):
        fit = max(1, site.cores // ranks.local_world_size)
        how = f"OMP_NUM_THREADS={text}" if text else "OMP_NUM_THREADS is unset"
        return [
            warning(
                "env.OMP_NUM_THREADS",
                f"{how}: {ranks.local_world_size} ranks with {threads} threads each on {site.cores} cores",
                f"export OMP_NUM_THREADS={fit}",
                value=threads,
                unit="threads",
            )
        ]
    return [ok("env.OMP_NUM_THREADS", f"{threads} threads a rank on {site.cores} visible cores", threads, "threads")]


def _own_cores(env: Mapping[str, str]) -> bool:
    """Whether the launcher gave every rank cores of its own, so that the visible ones are not shared."""
    return "SLURM_CPUS_PER_TASK" in env or "PALS_LOCAL_RANKID" in env


def meeting_place(env: Mapping[str, str], ranks: Ranks) -> list[Check]:
    """Of the variables that say where rank 0 is; with an ERROR among them no rank finds another."""
    found = []
    port = env.get("MASTER_PORT")
    if port is not None and not (port.isdigit() and 0 < int(port) < 65536):
        found.append(error("env.MASTER_PORT", f"MASTER_PORT={port!r} is no port", "export MASTER_PORT=29500"))
    address = env.get("MASTER_ADDR")
    if address is not None and ranks.nodes > 1 and address in ("127.0.0.1", "localhost", "::1"):
        found.append(
            error(
                "env.MASTER_ADDR",
                f"MASTER_ADDR={address} with {ranks.nodes} nodes: every node looks for rank 0 on itself",
                "export MASTER_ADDR=$(scontrol show hostnames | head -1), or unset it under Slurm",
                value=address,
            )
        )
    elif address is not None and ranks.world_size > 1:
        try:
            socket.getaddrinfo(address, None)
        except OSError as problem:
            found.append(
                error(
                    "env.MASTER_ADDR",
                    f"MASTER_ADDR={address} does not resolve: {problem}",
                    "export MASTER_ADDR=<host of rank 0>",
                    value=address,
                )
            )
    return found


def _interfaces(env: Mapping[str, str], site: Site) -> list[Check]:
    found = []
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if name.startswith("NCCL") and site.device != "cuda":
            continue
        # NCCL takes prefixes, `=` for exact names and `^` for all but these.
        asked = env.get(name, "")
        wanted = [part.lstrip("=") for part in asked.split(",") if part] if not asked.startswith("^") else []
        missing = [w for w in wanted if site.interfaces and not any(i.startswith(w) for i in site.interfaces)]
        if missing:
            found.append(
                error(
                    f"env.{name}",
                    f"{name}={asked}: no network interface {', '.join(missing)} here (there are {', '.join(site.interfaces)})",
                    f"unset {name}, or name one that exists",
                    value=asked,
                )
            )
    return found


def _slow(env: Mapping[str, str], ranks: Ranks) -> list[Check]:
    """Debugging aids that were left on."""
    found = []
    for name, slow, why in (
        ("TORCH_DISTRIBUTED_DEBUG", ("DETAIL",), "checks every collective with further ones"),
        ("CUDA_LAUNCH_BLOCKING", ("1",), "waits for every kernel"),
        ("HIP_LAUNCH_BLOCKING", ("1",), "waits for every kernel"),
        ("AMD_SERIALIZE_KERNEL", ("1", "2", "3"), "waits for every kernel"),
        ("PYTORCH_NO_CUDA_MEMORY_CACHING", ("1",), "asks the driver for every tensor"),
        ("TORCH_CPP_LOG_LEVEL", ("INFO",), "logs inside collectives"),
    ):
        if env.get(name, "").upper() in slow:
            found.append(warning(f"env.{name}", f"{name}={env[name]} {why}", f"unset {name}", value=env[name]))
    level = env.get("NCCL_DEBUG", "").upper()
    if level in ("INFO", "TRACE") and ranks.world_size > 64:
        found.append(
            warning(
                "env.NCCL_DEBUG",
                f"NCCL_DEBUG={level}: {ranks.world_size} ranks write their log to one file",
                "unset NCCL_DEBUG, or set it to WARN",
                value=level,
            )
        )
    return found


def _collectives(env: Mapping[str, str], site: Site) -> list[Check]:
    """NCCL and RCCL between nodes (OLCF user guide, PyTorch page; ALCF Polaris)."""
    found = []
    fast = [name for name in site.interfaces if name.startswith("hsn")]
    if fast and "NCCL_SOCKET_IFNAME" not in env:
        found.append(
            warning(
                "env.NCCL_SOCKET_IFNAME",
                f"unset: the ranks may meet over a slow interface instead of {fast[0]}",
                f"export NCCL_SOCKET_IFNAME={','.join(fast)}; where that hangs, only {fast[0]}",
            )
        )
    return found


def _slingshot(env: Mapping[str, str], site: Site) -> list[Check]:
    found = []
    monitor = env.get("FI_MR_CACHE_MONITOR", "")
    if monitor not in ("kdreg2", "userfaultfd", "disabled"):
        found.append(
            warning(
                "env.FI_MR_CACHE_MONITOR",
                f"FI_MR_CACHE_MONITOR is {monitor or 'unset'}: the default, memhooks, deadlocks with accelerators",
                "export FI_MR_CACHE_MONITOR=kdreg2 (userfaultfd where the kernel lacks it)",
                value=monitor or None,
            )
        )
    if site.device != "cuda":
        return found
    paths = f"{env.get('NCCL_NET_PLUGIN', '')}:{env.get('LD_LIBRARY_PATH', '')}".lower()
    if "NCCL_NET_PLUGIN" not in env and not any(word in paths for word in ("ofi", "rccl-net", "nccl-net")):
        found.append(
            warning(
                "env.NCCL_NET_PLUGIN",
                "no libfabric plugin on the library path: collectives between nodes fall back to TCP sockets",
                "module load rccl-net-plugin (Frontier), nccl-plugin (Perlmutter), or set NCCL_NET_PLUGIN",
            )
        )
    wanted = {"NCCL_CROSS_NIC": "1", "FI_CXI_DISABLE_HOST_REGISTER": "1", "FI_CXI_DEFAULT_CQ_SIZE": "131072"}
    if site.hip:
        wanted |= {"FI_CXI_RDZV_PROTO": "alt_read"}
    for name, value in wanted.items():
        here = env.get(name)
        enough = here is not None and (here == value or (here.isdigit() and value.isdigit() and int(here) > int(value)))
        if not enough:
            needs = "; the job needs --network=disable_rdzv_get" if name == "FI_CXI_RDZV_PROTO" else ""
            found.append(
                warning(
                    f"env.{name}",
                    f"{name} is {here or 'unset'}; sites with this network recommend {value}{needs}",
                    f"export {name}={value}",
                    value=here,
                )
            )
    return found


def _miopen(env: Mapping[str, str], ranks: Ranks) -> list[Check]:
    found = []
    folder = env.get("MIOPEN_USER_DB_PATH", "")
    if not folder or folder.startswith((os.path.expanduser("~/"), "/lustre", "/ccs", "/autofs")):
        found.append(
            warning(
                "env.MIOPEN_USER_DB_PATH",
                f"MIOPEN_USER_DB_PATH is {folder or 'unset'}: all ranks lock one database on a shared file system",
                "export MIOPEN_USER_DB_PATH=/tmp/miopen-$SLURM_JOB_ID MIOPEN_CUSTOM_CACHE_DIR=/tmp/miopen-$SLURM_JOB_ID",
                value=folder or None,
            )
        )
    if ranks.source == "torchrun" and env.get("SLURM_CLUSTER_NAME", "").startswith("frontier"):
        found.append(
            warning(
                "launcher",
                "torchrun on Frontier pins all ranks to one core",
                "srun -n … -c7 --gpus-per-task=1 --gpu-bind=closest frontier …",
            )
        )
    return found


def _oneccl(env: Mapping[str, str]) -> list[Check]:
    wanted = {"CCL_PROCESS_LAUNCHER": "pmix", "CCL_ATL_TRANSPORT": "mpi", "CCL_KVS_MODE": "mpi"}
    return [
        warning(
            f"env.{name}",
            f"{name} is {env.get(name, 'unset')}; oneCCL between nodes wants {value} here",
            f"export {name}={value}",
            value=env.get(name),
        )
        for name, value in wanted.items()
        if env.get(name) != value
    ]
