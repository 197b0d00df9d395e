"""No key of a run's config and no option of `frontier pretrain` is without effect: each is seen to change something."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

import frontier.parallel.apply as apply
from frontier.cli import main
from frontier.config.load import known_keys, load_config
from frontier.config.schema import CoreConfig
from frontier.models.mae_family import MAESection
from frontier.parallel.shares import Share
from frontier.train.command import _parser
from frontier.train.plan import resolve
from tests.conftest import ROOT, read_jsonl, toy_config
from tests.gpna.sets import small_config, write_both
from tests.scale_alibi.sets import write_rows

SECTIONS = {"run", "model", "data", "data.augment", "data.sources", "parallel", "train", "checkpoint", "log"}
FAMILY = {"model.decoder", "model.texture"}

ELSEWHERE = {
    "parallel.prefetch": "tests/parallel/test_prefetch.py::test_blocks_gathered_at_once",
    "log.ranks_every": "tests/train/test_guards.py::test_ranks_are_compared_at_intervals",
}
"""Keys whose effect needs several ranks: the test that shows it."""


class Lab:
    """One toy run, changed by overrides: what of it is seen."""

    def __init__(self, folder: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys, self.runs = folder, capsys, 0
        config = toy_config(folder / "run", shards)
        config["train"] |= {"steps": 4, "global_batch": 16, "warmup_steps": 2}
        config["log"] = {"progress": "none"}
        self.config = folder / "toy.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def start(self, *overrides: str) -> tuple[int, Path, str, str]:
        """(exit code, run folder, what it said, its error) of a real run on one rank."""
        self.runs += 1
        run = self.folder / f"run{self.runs}"
        code = main(["pretrain", str(self.config), f"run.dir={run}", *overrides])
        said = self.capsys.readouterr()
        return code, run, said.out, said.err

    def curve(self, *overrides: str) -> list[tuple[float, float]]:
        """Loss and gradient norm of each step."""
        code, run, _, error = self.start("train.steps=6", "checkpoint.at_end=false", *overrides)
        assert code == 0, error
        return [(row["loss"], row["grad_norm"]) for row in read_jsonl(run / "metrics.jsonl")]

    def files(self, *overrides: str) -> list[str]:
        code, run, _, error = self.start(*overrides)
        assert code == 0, error
        return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.parent.name != "profile")

    def plan(self, *overrides: str, ranks: int = 4) -> Any:
        """The figures of a dry run, without the config that it repeats."""
        words = overrides if "--nodes" in overrides else (*overrides, "--world-size", str(ranks))
        code = main(["pretrain", str(self.config), "--dry-run", "--json", *words])
        said = self.capsys.readouterr()
        assert code == 0, said.err
        figures = json.loads(said.out)
        return {name: value for name, value in figures.items() if name not in ("config", "config_hash")}

    def order(self, *overrides: str) -> list[Any]:
        """Which samples make up the first steps."""
        sampler = resolve(load_config(self.config, overrides), 1).sampler
        return [sampler.members(step).tolist() for step in range(3)]

    def shares(self, config: dict[str, Any]) -> list[int]:
        """Of each source in a global batch."""
        path = self.folder / "sources.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return [stream.sampler.global_batch for stream in resolve(load_config(path), 1).feed.streams]

    def refused(self, *overrides: str) -> str:
        code, _, _, error = self.start(*overrides)
        assert code == 2 and len(error.strip().splitlines()) == 1, error
        return error


@pytest.fixture
def lab(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> Lab:
    return Lab(tmp_path, shards, capsys)


CURVES = {
    "run.seed": "4",
    "data.mean": "[90,90,90]",
    "data.std": "[30,30,30]",
    "data.augment.symmetries": "false",
    "data.augment.crop_scale": "[0.9,1.0]",
    "parallel.precision": "bf16",
    "train.base_lr": "1e-3",
    "train.min_lr": "1e-2",
    "train.warmup_steps": "1",
    "train.weight_decay": "0.5",
    "train.betas": "[0.5,0.6]",
    "train.clip_norm": "0.01",
    "model.heads": "4",
    "model.mlp": "gated",
    "model.decoder.heads": "4",
    "model.mask_ratio": "0.5",
    "model.norm_pix_loss": "false",
    "model.texture": "{weight: 1.0}",
}
PLANS = {
    "data.synthetic": ("data.shards=null", "data.synthetic={}", "data.image_size=32"),
    "data.split": ("data.split=test",),
    "data.image_size": ("data.image_size=64",),
    "parallel.strategy": ("parallel.strategy=hybrid_2",),
    "parallel.tensor": ("parallel.tensor=2",),
    "parallel.activation_checkpointing": ("parallel.activation_checkpointing=full",),
    "parallel.offload": ("parallel.offload=true",),
    "train.steps": ("train.steps=5",),
    "train.epochs": ("train.steps=null", "train.epochs=2"),
    "train.samples": ("train.steps=null", "train.samples=100"),
    "train.global_batch": ("train.global_batch=32",),
    "train.micro_batch": ("train.micro_batch=2",),
    "model.preset": ("model.preset=vit_tiny",),
    "model.width": ("model.width=64",),
    "model.depth": ("model.depth=3",),
    "model.mlp_hidden": ("model.mlp_hidden=64",),
    "model.patch": ("model.patch=16",),
    "model.decoder.width": ("model.decoder.width=32",),
    "model.decoder.depth": ("model.decoder.depth=2",),
}
ORDERS = {"data.block": "2", "data.window": "1"}


@pytest.mark.slow  # two short runs a key
@pytest.mark.parametrize("key", CURVES)
def test_of_the_curve(key: str, lab: Lab) -> None:
    base = lab.curve()
    assert lab.curve() == base, "or else a difference says nothing"
    assert lab.curve(f"{key}={CURVES[key]}") != base


@pytest.mark.parametrize("key", PLANS)
def test_of_the_plan(key: str, lab: Lab) -> None:
    base = lab.plan()
    assert lab.plan() == base
    assert lab.plan(*PLANS[key]) != base


@pytest.mark.parametrize("key", ORDERS)
def test_of_the_order(key: str, lab: Lab) -> None:
    assert lab.order(f"{key}={ORDERS[key]}") != lab.order()


def _dir(lab: Lab) -> bool:
    return (lab.start()[1] / "metrics.jsonl").is_file()


def _deterministic(lab: Lab) -> bool:
    seen = []
    for value in ("true", "false"):
        lab.start(f"run.deterministic={value}")
        seen.append(torch.are_deterministic_algorithms_enabled())
    return seen == [True, False]


def _device(lab: Lab) -> bool:
    return torch.cuda.is_available() or "run.device=cuda" in lab.refused("run.device=cuda")


def _doctor(lab: Lab) -> bool:
    starts = [read_jsonl(lab.start(f"run.doctor={value}")[1] / "starts.jsonl")[0] for value in ("false", "true")]
    return ["doctor" in start for start in starts] == [False, True]


def _shards(lab: Lab) -> bool:
    return "/nonexistent" in lab.refused("data.shards=/nonexistent")


def _column(lab: Lab) -> bool:
    rows = write_rows(lab.folder / "rows")
    counts = [lab.plan(f"data.shards={rows}", f"data.column={name}")["parameters"] for name in ("radar", "hires")]
    return counts[0] < counts[1]


def _energy(lab: Lab) -> bool:
    starts = [read_jsonl(lab.start(f"log.energy={value}")[1] / "starts.jsonl")[0] for value in ("false", "true")]
    return [start["energy_why_not"] == "log.energy is off" for start in starts] == [True, False]


SYNTHETIC = ("data.shards=null", "data.image_size=32")


def _channels(lab: Lab) -> bool:
    counts = [lab.plan(*SYNTHETIC, f"data.synthetic={{channels: {n}}}")["parameters"] for n in (1, 3)]
    return counts[0] < counts[1]


def _samples(lab: Lab) -> bool:
    epochs = [lab.plan(*SYNTHETIC, f"data.synthetic={{samples: {n}}}")["epochs"] for n in (64, 128)]
    return epochs[0] == 2 * epochs[1]


def _images(lab: Lab) -> bool:
    found = []
    for side in (16, 32):
        sensors = {name: {"column": name, "gsd_m": 10.0} for name in ("radar", "hires")}
        model = {"family": "scale_alibi", "preset": "scale_alibi_debug", "patch": 8, "sensors": sensors}
        images = {name: [2, side] for name in sensors}
        config = yaml.safe_load(lab.config.read_text()) | {"model": model, "data": {"synthetic": {"images": images}}}
        path = lab.folder / "images.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        found.append(resolve(load_config(path), 1).flops_per_image)
    return found[0] < found[1]


def _sources(lab: Lab, **changes: Any) -> list[int]:
    data = lab.folder / "sources"
    if not data.is_dir():
        data.mkdir()
        write_both(data)
    config = small_config(lab.folder / "gpna", data)
    config["data"]["sources"]["series"]["samples"] = 16
    config["data"] |= changes
    return lab.shares(config)


def _mixing(lab: Lab) -> bool:
    return _sources(lab, granule=1, mixing=1.0) != _sources(lab, granule=1)


def _granule(lab: Lab) -> bool:
    return _sources(lab, granule=1, mixing=0.5) != _sources(lab, granule=16, mixing=0.5)


def _workers(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> bool:
    import frontier.data.loader as loader

    asked: list[int] = []
    real = loader.ThreadPoolExecutor
    monkeypatch.setattr(loader, "ThreadPoolExecutor", lambda n, *more: asked.append(n) or real(n, *more))
    for workers in (0, 1, 3):
        lab.start(f"data.workers={workers}")
    return asked == [1, 3]


def _stage(lab: Lab) -> bool:
    lab.start(f"data.stage={lab.folder}/stage")
    return bool(list((lab.folder / "stage").rglob("train-*.h5")))


def _stage_gib(lab: Lab) -> bool:
    lab.start(f"data.stage={lab.folder}/stage", "data.stage_gib=1e-6")
    return not list((lab.folder / "stage").rglob("train-*.h5"))


def _sequence_parallel(lab: Lab) -> bool:
    both = [lab.plan("parallel.tensor=2", f"parallel.sequence_parallel={value}") for value in ("true", "false")]
    return [figures["batch"]["rank"] for figures in both] == [4, 8]


def _compile(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> bool:
    units: list[int] = []
    monkeypatch.setattr(apply, "compile_units", lambda found: units.append(len(found)))
    lab.start()
    assert not units
    lab.start("parallel.compile=true")
    return bool(units)


def _timeout(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> bool:
    given: list[float] = []
    real = dist.init_process_group
    monkeypatch.setattr(
        dist,
        "init_process_group",
        lambda *a, timeout, **k: given.append(timeout.seconds) or real(*a, timeout=timeout, **k),
    )
    lab.start("parallel.timeout_s=77")
    return given == [77]


def _start_from(lab: Lab) -> bool:
    _, first, _, _ = lab.start()
    return lab.curve(f"train.start_from={first}") != lab.curve()


def _spikes(lab: Lab) -> bool:
    few = ("train.steps=40", "train.global_batch=2", "checkpoint.at_end=false")
    runs = [lab.start(*few, f"train.spike_factor={factor}")[1] for factor in ("1.001", "null")]
    return [read_jsonl(run / "metrics.jsonl")[-1]["spikes"] > 0 for run in runs] == [True, False]


def _max_skipped(lab: Lab) -> bool:
    bad = "data.std=[1e-44,1e-44,1e-44]"
    return all(
        f"{most + 1} steps in a row" in lab.refused(bad, f"train.max_skipped={most}", "train.steps=9")
        for most in (0, 3)
    )


def _steps_saved(lab: Lab, *overrides: str) -> list[int]:
    _, run, _, _ = lab.start(*overrides)
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").iterdir())


def _reserve(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv("FRONTIER_JOB_END", str(time.time() + 60))
    return [lab.start(f"checkpoint.reserve_s={s}")[0] for s in ("0", "60")] == [0, 85]


def _async(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> bool:
    copies: list[bool] = []
    real = Share.staged
    monkeypatch.setattr(Share, "staged", lambda self: copies.append(True) or real(self))
    lab.start("checkpoint.async_save=false")
    assert not copies
    lab.start("checkpoint.async_save=true")
    return bool(copies)


def _writers(lab: Lab) -> bool:
    scale = ("--nodes", "2", "parallel.strategy=hybrid_2")
    told = [lab.plan(*scale, f"checkpoint.writers={n}")["scale"]["checkpoint"]["files"] for n in (2, 8)]
    return told == [2 + 2, 8 + 2]


def _lines(lab: Lab) -> bool:
    said = [lab.start("log.progress=lines", f"log.every_steps={n}")[2].count("\nstep ") for n in (1, 3)]
    return said == [4, 3]  # the first and the last are always told


def _progress(lab: Lab) -> bool:
    return ["step 1/4" in lab.start(f"log.progress={kind}")[2] for kind in ("lines", "none")] == [True, False]


def _profile_steps(lab: Lab) -> bool:
    return (lab.start("log.profile_steps=[2,3]")[1] / "profile/rank0.json.gz").is_file()


def _profile_ranks(lab: Lab) -> bool:
    return "there are ranks 0 to 0" in lab.refused("log.profile_steps=[2,3]", "log.profile_ranks=[1]")


def _snapshot(lab: Lab) -> bool:
    if torch.cuda.is_available():
        return True
    return "log.memory_snapshot has no effect" in lab.refused("log.profile_steps=[2,3]", "log.memory_snapshot=true")


def _texture(lab: Lab, name: str) -> bool:
    both = [
        "{weight: 1.0, visible: 0.1}",
        "{weight: %s, visible: %s}" % (("2.0", "0.1") if name == "weight" else ("1.0", "0.5")),
    ]
    return lab.curve(f"model.texture={both[0]}") != lab.curve(f"model.texture={both[1]}")


ONE_BY_ONE: dict[str, Callable[..., bool]] = {
    "run.dir": _dir,
    "run.deterministic": _deterministic,
    "run.device": _device,
    "run.doctor": _doctor,
    "data.shards": _shards,
    "data.column": _column,
    "data.synthetic.channels": _channels,
    "data.synthetic.samples": _samples,
    "data.synthetic.images": _images,
    "data.mixing": _mixing,
    "data.granule": _granule,
    "data.workers": _workers,
    "data.stage": _stage,
    "data.stage_gib": _stage_gib,
    "parallel.sequence_parallel": _sequence_parallel,
    "parallel.compile": _compile,
    "parallel.timeout_s": _timeout,
    "train.start_from": _start_from,
    "train.spike_factor": _spikes,
    "train.max_skipped": _max_skipped,
    "checkpoint.every_steps": lambda lab: _steps_saved(lab, "checkpoint.every_steps=3") == [3, 4],
    "checkpoint.at_end": lambda lab: not _steps_saved(lab, "checkpoint.at_end=false"),
    "checkpoint.keep": lambda lab: _steps_saved(lab, "checkpoint.every_steps=1", "checkpoint.keep=3") == [2, 3, 4],
    "checkpoint.keep_every": lambda lab: (
        _steps_saved(lab, "checkpoint.every_steps=1", "checkpoint.keep=1", "checkpoint.keep_every=2") == [2, 4]
    ),
    "checkpoint.reserve_s": _reserve,
    "checkpoint.async_save": _async,
    "checkpoint.writers": _writers,
    "log.every_steps": _lines,
    "log.energy": _energy,
    "log.progress": _progress,
    "log.profile_steps": _profile_steps,
    "log.profile_ranks": _profile_ranks,
    "log.memory_snapshot": _snapshot,
    "model.family": lambda lab: "mea" in lab.refused("model.family=mea"),
    "model.texture.weight": lambda lab: _texture(lab, "weight"),
    "model.texture.visible": lambda lab: _texture(lab, "visible"),
}


@pytest.mark.parametrize("key", ONE_BY_ONE)
def test_of_its_own(key: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    show = ONE_BY_ONE[key]
    assert show(lab, monkeypatch) if show.__code__.co_argcount == 2 else show(lab)


OPTIONS = {
    "--world-size": (("--world-size", "2"), ("--world-size", "4")),
    "--ranks": (("--ranks", "2"), ("--ranks", "4")),
    "--nodes": (("--nodes", "1"), ("--nodes", "2")),
    "--ranks-per-node": (("--nodes", "2", "--ranks-per-node", "1"), ("--nodes", "2", "--ranks-per-node", "2")),
    "--samples": (("--nodes", "1", "--samples", "1000"), ("--nodes", "1", "--samples", "2000")),
    "--rank": (("--nodes", "1", "--rank", "0"), ("--nodes", "1", "--rank", "1")),
    "--json": ((), ("--json",)),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_of_options(option: str, lab: Lab) -> None:
    def said(words: tuple[str, ...]) -> str:
        assert main(["pretrain", str(lab.config), "--dry-run", *words]) == 0
        return "".join(line for line in lab.capsys.readouterr().out.splitlines(True) if "set-up" not in line)

    one, other = OPTIONS[option]
    assert said(one) != said(other)


def test_none_is_left_out() -> None:
    shown = {*CURVES, *PLANS, *ORDERS, *ONE_BY_ONE, *ELSEWHERE}
    assert set(known_keys(CoreConfig)) | set(known_keys(MAESection, "model.")) == shown | SECTIONS | FAMILY
    options = {word for action in _parser()._actions for word in action.option_strings}
    assert options == {*OPTIONS, "--dry-run", "-h", "--help"}
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()


@pytest.mark.parametrize(
    "words",
    [("--ranks", "2", "--world-size", "2"), ("--ranks", "2", "--nodes", "1"), ("--nodes", "1", "--world-size", "8")],
)
def test_two_ways_to_say_how_many(words: tuple[str, ...], lab: Lab) -> None:
    assert main(["pretrain", str(lab.config), "--dry-run", *words]) == 2
    assert "say the same: give one" in lab.capsys.readouterr().err


@pytest.mark.parametrize("option", ["--ranks", "--world-size", "--nodes", "--ranks-per-node", "--samples"])
def test_numbers_are_positive(option: str, lab: Lab) -> None:
    more = () if option in ("--ranks", "--world-size", "--nodes") else ("--nodes", "1")
    assert main(["pretrain", str(lab.config), "--dry-run", option, "0", *more]) == 2
    assert f"{option} 0: give a positive number" in lab.capsys.readouterr().err
