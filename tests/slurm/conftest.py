"""One Slurm for all tests of this room; without root or its packages they are skipped with the reason."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, running, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    with running() as found:
        yield found


@pytest.fixture(autouse=True)
def _no_jobs_left(cluster: Cluster) -> Iterator[None]:
    """A test that fails midway leaves its jobs to nobody."""
    yield
    end = time.monotonic() + 20
    while cluster.run("squeue", "--noheader").stdout and time.monotonic() < end:  # one that requeues itself comes back
        cluster.run("scancel", "--user=root")
        time.sleep(0.3)
