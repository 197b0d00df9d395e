"""Opening an archive with a reader, as the command does, and the one line with which it refuses one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.readers.registry import Request, find_reader, parse_settings
from frontier.errors import UserError


def open_with(name: str, path: Path, on_error: str = "stop", report: Path | None = None, **settings: Any) -> Any:
    """The source that reader `name` makes of `path`."""
    reader = find_reader(name)
    given = parse_settings(reader, [f"{key}={value}" for key, value in settings.items()])
    return reader.open(Request(path, reader, settings=given, on_error=on_error, report=report))


def every(source: Any) -> dict[str, np.ndarray]:
    """All samples, by column."""
    return source.load(range(len(source.records)))


def refusal(name: str, path: Path, **settings: Any) -> str:
    """What reader `name` says of `path`, which it must refuse in one line."""
    with pytest.raises(UserError) as caught:
        open_with(name, path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)
