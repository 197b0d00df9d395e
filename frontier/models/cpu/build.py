"""Compiles `kernels.cpp` for this processor, once, into the user's cache.

The library must share the OpenMP threads of PyTorch, or two pools would wait for each other's cores. PyTorch's builds for Linux load
GNU's libgomp, and a library made by g++ finds the copy that is loaded already; with any other OpenMP nothing is built.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from frontier.processor import processor

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILER = "g++"
FLAGS = (
    "-O3", "-march=native", "-mprefer-vector-width=512", "-std=c++17", "-shared", "-fPIC", "-fopenmp",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
SWITCH = "FRONTIER_CPU_KERNELS"
"""The environment variable that turns the operators off: 0."""

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where compiled libraries are kept: `frontier` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "frontier"


@functools.cache
def unavailable() -> str:
    """Why there is no library on this machine; empty where there is one. The first call may compile, some seconds."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The functions of kernels.cpp. Raises RuntimeError where `unavailable`."""
    loaded, why = _load()
    if loaded is None:
        raise RuntimeError(f"no CPU operators: {why}")
    return loaded


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get(SWITCH, "1") == "0":
        return None, f"{SWITCH}=0"
    if "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return None, "the processor has no AVX-512"
    if not _openmp():
        return None, "PyTorch does not run on GNU's OpenMP (libgomp)"
    try:
        return ctypes.CDLL(str(compiled())), ""
    except (OSError, subprocess.SubprocessError) as error:
        why = str(error).strip().splitlines()
        reason = f"{SOURCE.name} was not compiled: {why[0] if why else type(error).__name__}"
        log.info("%s; PyTorch's own operators are used", reason)
        return None, reason


def _openmp() -> bool:
    """Whether this process has loaded libgomp.so.1, once: PyTorch's. Copies under other names, as scikit-learn brings one, do not
    matter: the linker goes by this name."""
    try:
        with open("/proc/self/maps") as maps:
            return len({path for line in maps if (path := line.split()[-1]).endswith("/libgomp.so.1")}) == 1
    except OSError:
        return False


def compiled() -> Path:
    """The library for this source and processor, compiled if the cache has none.

    Raises OSError (no compiler, no place to write) or subprocess.SubprocessError.
    """
    about = [SOURCE.read_text(), *FLAGS, processor("model name") or "", processor("flags") or ""]
    name = hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
    path = cache_folder() / f"kernels-{name}.so"
    if path.exists():
        return path
    if shutil.which(COMPILER) is None:
        raise FileNotFoundError(f"{COMPILER} was not found")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as folder:
        made = Path(folder) / path.name
        command = [COMPILER, *FLAGS, "-o", str(made), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
            raise subprocess.SubprocessError(f"{COMPILER} ended with {done.returncode}: {said}")
        os.replace(made, path)  # whole or not at all: other ranks may be at it too
    return path
