"""Versions and places of what a rank loads, so that a node with another environment, or a stale copy of it, can be named."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

import frontier
from frontier.doctor.checks import Check, error, ok, warning
from frontier.doctor.storage import kind
from frontier.models.cpu.build import COMPILER, SOURCE, SWITCH, unavailable

PACKAGES = ("torch", "numpy", "h5py", "mpi4py", "deepspeed")
NEEDED = ("torch", "numpy", "h5py")
SYSTEM_FOLDERS = ("/usr/lib64", "/lib64", "/usr/lib", "/usr/local/lib", f"/usr/lib/{platform.machine()}-linux-gnu")

Names = dict[str, str | None]


def versions(env: Mapping[str, str], whole: bool) -> Names:
    """Version of each package and library that would be loaded here; None where there is none. Nothing is imported.

    With `whole`, also what takes many small reads: libraries that are searched for, and the digest of this package's
    source. One rank of a node looks for these.
    """
    found: Names = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = _version(name)
    found["torch"] = torch.__version__  # with its build, as in 2.13.0+rocm7.1
    found["rocm"], found["cuda"] = torch.version.hip, torch.version.cuda
    if torch.version.hip or torch.version.cuda:
        with contextlib.suppress(Exception):  # a build without it
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    for module in ("amdgpu", "nvidia"):
        with contextlib.suppress(OSError):
            found["driver"] = f"{module} {Path('/sys/module', module, 'version').read_text().strip()}"
    if whole:
        for name, path in libraries(env).items():
            found[name] = path.name if path else None
        found["frontier"] = digest(Path(frontier.__file__).parent)
    return found


def places(env: Mapping[str, str], whole: bool, local: Path | None) -> Names:
    """Folders that packages and libraries come from, and the kind of file system of those that every node should have alike."""
    found: Names = {"python": sys.executable, "frontier": str(Path(frontier.__file__).parent)}
    for name in PACKAGES:
        found[name] = str(folder) if (folder := _folder(name)) else None
    if whole:
        for name, path in libraries(env).items():
            found[name] = str(path) if path else None
        found["working_dir"] = f"{Path.cwd()} ({kind(Path.cwd())})"
        if local is not None:
            found["local"] = f"{local} ({kind(local)})"
    return found


def check_versions(found: Names) -> Check:
    text = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    missing = [name for name in NEEDED if not found[name]]
    if missing:
        return error("versions", f"{', '.join(missing)} missing; {text}", "pip install frontier-geofm")
    absent = [name for name in PACKAGES if not found[name]]
    return ok("versions", text + (f"; not installed: {', '.join(absent)}" if absent else ""), found["torch"])


def check_cpu_operators() -> Check:
    """Whether training on this CPU uses the operators of `frontier.models.cpu`; asked for the first time, it compiles them."""
    why = unavailable()
    if not why:
        return ok("cpu_operators", "compiled for this processor", "compiled")
    text = f"PyTorch's own are used: {why}"
    if COMPILER in why or SOURCE.name in why:
        return warning("cpu_operators", text, f"install {COMPILER}, or set {SWITCH}=0 to do without", "none")
    return ok("cpu_operators", text, "none")


def libraries(env: Mapping[str, str]) -> dict[str, Path | None]:
    """The files that HDF5, libfabric and the network plugin of NCCL (RCCL) would be loaded from, links resolved."""
    fabrics = sorted(map(str, Path("/opt/cray/libfabric").glob("*/lib64")), reverse=True)
    plugin = env.get("NCCL_NET_PLUGIN", "")
    named = Path(plugin) if plugin.startswith("/") else None
    names = (f"librccl-net-{plugin}.so", f"libnccl-net-{plugin}.so", plugin) if plugin else ()
    return {
        "hdf5": _hdf5(env),
        "libfabric": _library(env, ("libfabric.so.1", "libfabric.so"), fabrics),
        "net_plugin": named.resolve()
        if named and named.exists()
        else _library(env, (*names, "librccl-net.so", "libnccl-net.so")),
    }


def digest(folder: Path) -> str:
    """Of the names and contents of all source files below."""
    whole = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.cpp")]):
        with contextlib.suppress(OSError):  # what cannot be read makes the digest another one
            whole.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:12]


def _hdf5(env: Mapping[str, str]) -> Path | None:
    bundled = (folder.parent / "h5py.libs").glob("libhdf5-*.so*") if (folder := _folder("h5py")) else ()
    own = [f"{env[name]}/lib" for name in ("HDF5_DIR", "HDF5_ROOT") if env.get(name)]
    return next(iter(sorted(bundled)), None) or _library(env, ("libhdf5.so",), own)


def _library(env: Mapping[str, str], names: tuple[str, ...], more: list[str] | None = None) -> Path | None:
    for folder in (*filter(None, env.get("LD_LIBRARY_PATH", "").split(":")), *(more or ()), *SYSTEM_FOLDERS):
        for name in names:
            if os.path.isfile(path := os.path.join(folder, name)):
                return Path(path).resolve()
    return None


def _folder(name: str) -> Path | None:
    """Of a package as `import` would find it: a copy that shadows the installed one is found, as it would be imported."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def _version(name: str) -> str | None:
    folder = _folder(name)
    if folder is None:
        return None
    if isinstance(known := getattr(sys.modules.get(name), "__version__", None), str):
        return known
    for found in metadata.distributions(name=name, path=[str(folder.parent)]):
        return found.version
    with contextlib.suppress(OSError):
        if said := re.search(r"^__version__ *= *['\"]([^'\"]+)", (folder / "__init__.py").read_text(), re.MULTILINE):
            return said[1]
    return f"unknown, in {folder}"
