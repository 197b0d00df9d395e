"""YAML + `extends:` + dotted overrides -> one validated `Config`, or one clear line about what is wrong."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from frontier.config.schema import (
    CheckpointConfig,
    CoreConfig,
    DataConfig,
    LogConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from frontier.errors import UserError


@dataclass(frozen=True)
class Config:
    """A validated run. `model` is an instance of the family's config class."""

    run: RunConfig
    model: Any
    data: DataConfig
    parallel: ParallelConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    log: LogConfig

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON/YAML types, every default spelled out."""
        return {name: getattr(self, name).model_dump(mode="json") for name in self.__dataclass_fields__}

    def hash(self) -> str:
        """sha256 over the canonical JSON of the resolved config."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class StrictLoader(yaml.SafeLoader):
    """The safe loader, which refuses what YAML forbids and PyYAML lets pass: a key twice in a mapping, of which the last would win."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key.value}' is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def read_yaml(path: Path, holds: str = "the sections run, model, data, train, …") -> dict[str, Any]:
    """One YAML mapping, read with the safe loader. Raises UserError; `holds` says what it should be a mapping of."""
    try:
        loaded = yaml.load(path.read_text(), StrictLoader)
    except FileNotFoundError:
        raise UserError(
            f"no config {path}: give the path of a YAML file, or the name of a shipped one (mae_debug)"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: give the path of a YAML file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where} is not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} must hold a mapping with {holds}")
    return loaded


def config_file(name: str | Path) -> Path:
    """The file of that path, else the config of that name that is shipped (jobs/configs/, also where no repository is)."""
    path = Path(name)
    if path.suffix or os.path.exists(path):
        return path
    try:
        shipped = Path(str(files("frontier_jobs"))) / "configs" / f"{path}.yaml"
    except ModuleNotFoundError:
        return path
    return shipped if os.path.exists(shipped) else path


def merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """`top` laid over `base`: mappings key by key, everything else as a whole."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_extended(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping of a YAML file laid over its chain of `extends:`, whose paths are relative to the file."""
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}")
    values = read_yaml(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends takes one path of a YAML file, relative to this one")
    return merge(read_extended(path.parent / parent, (*seen, path)), values)


def extended_files(path: Path) -> list[Path]:
    """The file and those of its chain of `extends:`, which `read_extended` could read."""
    files = [path.resolve()]
    while parent := read_yaml(files[-1]).get("extends"):
        files.append((files[-1].parent / parent).resolve())
    return files


def parse_override(text: str) -> tuple[list[str], Any]:
    """`train.steps=100` -> (["train", "steps"], 100); the value is read as YAML."""
    key, equals, value = text.partition("=")
    keys = key.split(".")
    if not equals or not all(keys):
        raise UserError(f"'{text}' is not an override: write section.key=value, such as train.steps=100")
    try:
        parsed = yaml.load(value, StrictLoader) if value else None
    except yaml.YAMLError as error:
        raise UserError(f"the value in '{text}' is not YAML: {getattr(error, 'problem', None) or error}") from None
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-3 as a string
        try:
            parsed = float(parsed)
        except ValueError:
            pass
    return keys, parsed


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a section class, nested ones included."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for kind in (field.annotation, *get_args(field.annotation)):  # a section, or one that may be left out
            keys += _keys_of(kind, f"{prefix}{name}.")
    return keys


def _keys_of(kind: Any, prefix: str) -> list[str]:
    """The keys of a field's type; sections by a name of the user's own, of one kind or several, have * for it."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return known_keys(kind, prefix)
    if get_origin(kind) is not dict:
        return []
    value = get_args(kind)[1]
    inside = get_args(value)[0] if get_origin(value) is Annotated else value
    return list(dict.fromkeys(key for one in (inside, *get_args(inside)) for key in _keys_of(one, f"{prefix}*.")))


def _key(found: Any, given: Any) -> tuple[str, str | None]:
    """The dotted key of a finding in the mapping `given`, and the word that chose among kinds of section, which is no part of it."""
    parts, tag = [], None
    for place, part in enumerate(found["loc"]):
        last = place == len(found["loc"]) - 1
        chooses = not last or found["type"] == "value_error"
        if chooses and isinstance(given, Mapping) and part not in given and part in given.values():
            tag = str(part)
            continue
        parts.append(str(part))
        given = given.get(part) if isinstance(given, Mapping) else None
    return ".".join(parts), tag


def explain(error: ValidationError, known: Iterable[str] = (), prefix: str = "", given: Any = None) -> str:
    """The first finding as one line, with the number of further ones. `given`: what was validated."""
    known = list(known)
    found = error.errors()[0]
    key, tag = _key(found, given)
    key = (prefix + key).rstrip(".")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if found["type"] == "extra_forbidden":
        near = nearest_key(key, known)
        if near == key:
            return f"config key '{key}' has no effect{f' with {tag}' if tag else ''}: remove it{more}"
        return f"unknown config key '{key}': " + (f"did you mean '{near}'?" if near else "remove it") + more
    if found["type"] == "union_tag_not_found":
        found["type"], key = "missing", f"{key}.{found['ctx']['discriminator'].strip(chr(39))}"
    if found["type"] == "missing" and (inside := [one for one in known if one.startswith(f"{key}.")]):
        return f"config section '{key}' is missing: add it, with {inside[0]} and the like{more}"
    if found["type"] == "missing" and isinstance(found["loc"][-1], int):
        return f"config {key.rpartition('.')[0]}: more values are expected (given {found['input']!r}){more}"
    if found["type"] == "missing":
        return f"config key '{key}' is missing: add it or pass {key}=VALUE{more}"
    if found["type"] == "union_tag_invalid":
        name, tags = found["ctx"]["discriminator"].strip("'"), found["ctx"]["expected_tags"].replace("'", "")
        return f"config {key}.{name}: '{found['ctx']['tag']}' is unknown: choose one of {tags}{more}"
    if found["type"] in ("dict_type", "model_type", "model_attributes_type"):
        return f"config {key} is no section: write lines KEY: VALUE below it, indented{more}"
    text = found["msg"].removeprefix("Value error, ")
    value = found.get("input")
    shown = f" (given {value!r})" if isinstance(value, (str, int, float, bool, type(None))) else ""
    return f"config {key or 'value'}: {text}{shown}{more}"


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known dotted key most like `key`: by its whole spelling, else by its last part anywhere. * stands for any name."""
    parts = key.split(".")
    listed = [one.split(".") for one in known]
    known = [
        ".".join(parts[place] if name == "*" else name for place, name in enumerate(names))
        for names in listed
        if "*" not in names[len(parts) :]
    ]
    if key in known:
        return key
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if near:
        return near[0]
    last = {k: k.rsplit(".", 1)[-1] for k in known}
    wanted = key.rsplit(".", 1)[-1]
    scored = [(difflib.SequenceMatcher(None, wanted, name).ratio(), k) for k, name in last.items()]
    best = max(scored, default=(0.0, ""))
    return best[1] if best[0] >= 0.6 else None


def check_sections(values: Mapping[str, Any], known: Sequence[str] = ()) -> CoreConfig:
    """All sections but the model's, whose keys belong to its family. Imports no torch. Errors: as of `validate`."""
    try:
        return CoreConfig.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(explain(error, known or known_keys(CoreConfig), given=values)) from None


def validate(values: Mapping[str, Any]) -> Config:
    """A plain mapping -> Config. Errors: UserError naming the key and the nearest known one."""
    from frontier.models.registry import family

    raw = dict(values)
    model_values = raw.get("model")
    if not isinstance(model_values, Mapping):
        raise UserError("config section 'model' is missing: add model.family and model.preset")
    model_values = dict(model_values)
    chosen = family(str(model_values.get("family", "mae")))
    keys = known_keys(CoreConfig) + known_keys(chosen.config, "model.")
    core = check_sections(raw, keys)
    try:
        model = chosen.config.model_validate(model_values)
    except ValidationError as error:
        raise UserError(explain(error, keys, "model.", model_values)) from None
    parts = {name: getattr(core, name) for name in CoreConfig.model_fields if name != "model"}
    if core.data.sources is not None:
        parts["data"] = core.data.model_copy(update={"sources": _sources(core.data.sources, chosen)})
    return Config(model=model, **parts)


def _sources(values: Mapping[str, Any], chosen: Any) -> dict[str, Any]:
    """Each of `data.sources` as the family's own section."""
    if chosen.source is None:
        raise UserError(f"data.sources: model.family={chosen.name} takes one kind of data: give data.shards")
    found = {}
    for name, value in values.items():
        prefix = f"data.sources.{name}."
        if not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"data.sources: '{name}' cannot be a source's name: use letters, digits, _ and -")
        if not isinstance(value, Mapping):
            raise UserError(f"data.sources.{name} is no section: write {name}: {{shards: FOLDER}}")
        try:
            found[name] = chosen.source.model_validate(dict(value))
        except ValidationError as error:
            raise UserError(explain(error, known_keys(chosen.source, prefix), prefix, value)) from None
    return found


def overridden(values: dict[str, Any], overrides: Sequence[str], where: str | Path) -> dict[str, Any]:
    """`values`, which come from `where`, with the dotted overrides laid over them. Raises UserError."""
    for text in overrides:
        keys, value = parse_override(text)
        node: dict[str, Any] = {keys[-1]: value}
        for key in reversed(keys[:-1]):
            node = {key: node}
        if keys[:-1] and not isinstance(values.get(keys[0], {}), Mapping):
            raise UserError(f"'{keys[0]}' is no section in {where}, so {text} cannot be set")
        values = merge(values, node)
    return values


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path` (see `config_file`), its `extends:` chain and the dotted overrides; validate the result."""
    path = config_file(path)
    return validate(overridden(read_extended(path), overrides, path))
