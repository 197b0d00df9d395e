"""What the system says of its processor."""

from __future__ import annotations

from pathlib import Path


def processor(field: str) -> str | None:
    """The first value of `field` ("model name", "vendor_id") in /proc/cpuinfo; None where there is none."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), None)
    except OSError:
        return None
