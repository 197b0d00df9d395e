"""What a reader is, what it is asked for, and the list of them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from data_prep.images import Fit
from data_prep.source import Source
from data_prep.team import Team
from frontier.data.manifest import nearest
from frontier.errors import UserError

Item = TypeVar("Item")
Value = TypeVar("Value")

REPORT = "unreadable.tsv"
COMMON = {
    "image_size": "--image-size",
    "fit": "--fit",
    "channels": "--channels",
    "gsd_m": "--gsd-m",
    "on_error": "--on-error",
    "license": "--license",
    "citation": "--citation",
}
"""Options that several readers share -> their flags. A reader names those that it `uses`; others are refused."""


@dataclass(frozen=True)
class Setting:
    """An option of one reader, given as `--set name=value`. `default` None: it must be given."""

    help: str
    default: str | None = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A kind of archive. `expects`: what to download, and how it lies under the folder that is given, in one line."""

    name: str
    summary: str
    expects: str
    open: Callable[[Request], Source]
    uses: frozenset[str] = frozenset()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    license: str | None = None
    citation: str | None = None
    homepage: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "summary": self.summary,
            "expects": self.expects,
            "options": sorted(COMMON[name] for name in self.uses),
            "settings": {
                name: {"help": s.help, "default": s.default, "choices": list(s.choices)}
                for name, s in self.settings.items()
            },
            "license": self.license,
            "citation": self.citation,
            "homepage": self.homepage,
        }


@dataclass(frozen=True)
class Request:
    """One call of a reader: the folder or file, and the options. `settings` is complete: defaults are filled in."""

    path: Path
    reader: Reader
    image_size: int | None = None
    fit: Fit = "resize_crop"
    channels: str = "auto"
    on_error: str = "stop"
    gsd_m: float | None = None
    name: str | None = None
    license: str | None = None
    citation: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    workers: int = 1
    report: Path | None = None
    team: Team = field(default_factory=Team)

    def need(self, *parts: str, kind: str = "either") -> Path:
        """The path under the given folder, which must exist (`kind`: file, folder, either)."""
        path = self.path.joinpath(*parts)
        right = {"file": path.is_file, "folder": path.is_dir, "either": path.exists}[kind]()
        if not right:
            raise UserError(f"reader {self.reader.name}: {path} not found: {self.reader.expects}")
        return path

    def map(self, function: Callable[[Item], Value], items: Sequence[Item], *, costly: bool = False) -> list[Value]:
        """[function(item) …] in order, shared over the workers of every rank. `function` is picklable.

        `costly`: an item is a scene or a shard rather than a small file, so that few are worth worker processes.
        """
        return self.team.map(function, items, self.workers, costly)

    def settle(self, bad: Sequence[tuple[str, str]], total: int, what: str = "files") -> dict[str, Any]:
        """Deal with inputs that cannot be used, given as (path, reason).

        They are listed in `report`; then `on_error` "stop" raises `UserError`, and "skip" returns the notes to keep.
        """
        if self.report is not None:
            try:
                if bad:
                    self.report.parent.mkdir(parents=True, exist_ok=True)
                    # A tab or newline in a name would break the table.
                    lines = [f"{_plain(path)}\t{' '.join(reason.split())}\n" for path, reason in bad]
                    self.report.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
                else:
                    self.report.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self.report}: cannot be written ({error.strerror}): make room, or give another directory"
                ) from None
        if not bad:
            return {"skipped": 0}
        shown = "; ".join(f"{path} ({reason})" for path, reason in bad[:3])
        if self.on_error == "stop":
            more = f"; all of them in {self.report}" if self.report is not None else ""
            raise UserError(
                f"{self.path}: {len(bad)} of {total} {what} cannot be used: {shown}{more}: "
                "mend or remove them, or pass --on-error skip"
            )
        if len(bad) == total:
            raise UserError(f"{self.path}: none of {total} {what} can be used: {shown}")
        return {"skipped": len(bad)}


def _plain(path: str) -> str:
    return path.translate({ord(sign): repr(sign)[1:-1] for sign in "\t\n\r\\"})


def all_readers() -> list[Reader]:
    """Every reader: folder, then those of this package by module. Imports them, but not what they import to read."""
    from data_prep import readers

    names = [f"{readers.__name__}.{module.name}" for module in pkgutil.iter_modules(readers.__path__)]
    modules = [importlib.import_module(name) for name in ("data_prep.folder", *sorted(names))]
    return [reader for module in modules for reader in getattr(module, "READERS", ())]


def find_reader(name: str) -> Reader:
    """The reader called `name`; `UserError` with the nearest name where there is none."""
    known = {reader.name: reader for reader in all_readers()}
    if name not in known:
        raise UserError(f"--reader: no reader {name!r}: {nearest(name, known)}")
    return known[name]


def parse_settings(reader: Reader, given: Iterable[str]) -> dict[str, str]:
    """The reader's settings with `given` ("name=value") in place of defaults. Raises `UserError`."""
    out: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: give NAME=VALUE")
        if name not in reader.settings:
            raise UserError(
                f"--set {text}: reader {reader.name} has no setting {name!r}: {nearest(name, reader.settings)}"
            )
        choices = reader.settings[name].choices
        if choices and value not in choices:
            raise UserError(f"--set {text}: no such choice: {nearest(value, choices)}")
        if name in out:
            raise UserError(f"--set {name}: given twice")
        out[name] = value
    for name, setting in reader.settings.items():
        if name not in out:
            if setting.default is None:
                options = f" (one of {', '.join(setting.choices)})" if setting.choices else ""
                raise UserError(f"reader {reader.name}: give --set {name}=…{options}: {setting.help}")
            out[name] = setting.default
    return out
