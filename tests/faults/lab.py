"""Carrying out a scenario: prepare, start, hurt, wait, judge, mend, start again, judge; one row of the table."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.faults import checks
from tests.faults.checks import Problem, Reference
from tests.faults.damage import CannotHere
from tests.faults.harness import ROOT, Attempt, Missed, Outcome, Run, make_config, make_shards
from tests.faults.scenarios import KNOWN, STEPS, TIMEOUT_S, Scenario

FINISH_S = 90
"""For a start that nobody disturbs."""


@dataclass
class Row:
    """A line of the summary."""

    scenario: str
    injected: str = ""
    expected: str = ""
    codes: list[int | None] = field(default_factory=list)
    seconds: float = 0.0
    message: str = ""
    resumed: list[int | None] = field(default_factory=list)
    difference: float | None = None
    problems: list[Problem] = field(default_factory=list)
    skipped: str | None = None

    @property
    def known(self) -> list[str]:
        return sorted({KNOWN[key] for p in self.problems if (key := (self.scenario, p.kind)) in KNOWN})

    @property
    def failed(self) -> bool:
        return any((self.scenario, p.kind) not in KNOWN for p in self.problems)

    @property
    def verdict(self) -> str:
        if self.skipped:
            return f"skipped: {self.skipped}"
        if not self.problems:
            return "ok"
        told = "; ".join(f"{p.kind}: {p.text}" for p in self.problems)
        return f"**failed** {told}" if self.failed else f"known ({', '.join(self.known)}): {told}"


class Lab:
    """A folder with the data, the undisturbed runs and the scenes of one strategy on so many ranks."""

    def __init__(self, folder: Path, ranks: int = 2, strategy: str = "full_shard", seed: int = 0) -> None:
        self.folder, self.ranks, self.strategy, self.seed = folder, ranks, strategy, seed
        self.shards = folder / "shards"
        if not (self.shards / "manifest.json").exists():
            make_shards(self.shards)
        self._undisturbed: tuple[Run, Reference] | None = None

    @property
    def undisturbed(self) -> tuple[Run, Reference]:
        """The run that all others must equal, every checkpoint of it kept."""
        if self._undisturbed is None:
            config = make_config(self.folder / "undisturbed.yaml", self.shards, STEPS, self.strategy)
            run = Run(config, self.folder / "undisturbed", self.ranks, ("checkpoint.keep=100",))
            done = run.finish(FINISH_S)
            assert done.code == 0, f"the undisturbed run fails: {done.err[-2000:]}"
            self._undisturbed = run, Reference.of(run)
        return self._undisturbed

    @staticmethod
    def frontier(*args: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "frontier", *map(str, args)], cwd=ROOT, capture_output=True, text=True
        )

    def carry_out(self, scenario: Scenario) -> Row:
        scene = Scene(self, scenario)
        row = Row(scenario.name, expected=f"exit {' or '.join(map(str, scenario.codes))}, {scenario.bound_s:.0f} s")
        try:
            scene.play(row)
        except CannotHere as reason:
            row.skipped = str(reason)
        except Missed as reason:
            row.problems.append(Problem("missed", str(reason)))
        finally:
            scene.clear(keep=row.failed)
        return row


class Scene:
    """One scenario on the stage: what the faults may touch and what they leave for the verdict."""

    def __init__(self, lab: Lab, scenario: Scenario) -> None:
        self.lab, self.scenario = lab, scenario
        self.reference = lab.undisturbed[1]
        self.random = np.random.default_rng([lab.seed, *scenario.name.encode()])
        self.victim = int(self.random.integers(lab.ranks))
        self.folder = lab.folder / "-".join("".join(c if c.isalnum() else " " for c in scenario.name).split())
        shutil.rmtree(self.folder, ignore_errors=True)
        self.shards = self.folder / "shards"
        shutil.copytree(lab.shards, self.shards)
        config = make_config(self.folder / "config.yaml", self.shards, STEPS, lab.strategy)
        self.run = Run(config, self.folder / "run", lab.ranks, scenario.overrides)
        self.attempt: Attempt
        self.file = ""
        self.poisoned: list[int] = []
        self.resumed = 0
        self.damaged: set[int] = set()
        self.chain: list[int | None] = []
        self.undo: list[Callable[[], None]] = []
        self.mounts: list[Path] = []
        self.difference: float | None = None
        self._noted = ""

    # -- for the faults

    def hurt(self, what: str) -> None:
        """Note a fault done before the start."""
        self._noted = what

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)

    def half_done(self, newest: int = 21, done: Run | None = None) -> None:
        """The run folder as a run of these settings leaves it after step `newest`, all its checkpoints kept; `done`: such a run to its end,
        where the settings are not those of the lab.
        """
        done = done or self.lab.undisturbed[0]
        shutil.copytree(done.dir, self.run.dir)
        for step in checks.steps_in(self.run.checkpoints):
            if step > newest:
                shutil.rmtree(checks.step_folder(self.run.checkpoints, step))
        (self.run.dir / "starts.jsonl").unlink()
        if not any(o.startswith("checkpoint.keep=") for o in self.run.overrides):
            self.run.overrides += ("checkpoint.keep=100",)

    def undisturbed(self, name: str) -> tuple[Run, Reference]:
        """This scene's settings and data, run without a fault."""
        run = Run(self.run.config, self.folder / name, self.run.ranks, self.run.overrides)
        done = run.finish(FINISH_S)
        assert done.code == 0, done.err[-2000:]
        return run, Reference.of(run)

    # -- the play

    def _moment(self) -> None:
        scenario, attempt = self.scenario, self.attempt
        first = scenario.at or int(self.random.integers(1, STEPS - 6))
        if scenario.moment == "starting":
            time.sleep(float(self.random.uniform(0.5, 2.5)))
            return
        attempt.until_step(STEPS if scenario.moment == "end" else first)
        if scenario.moment == "saving":
            attempt.until_saving()
        elif scenario.moment == "committed":
            attempt.until_committed()

    def play(self, row: Row) -> None:
        scenario = self.scenario
        if scenario.before is not None:
            scenario.before(self)
        self.chain.append(checks.newest_valid(self.run, self.damaged))
        with self.run.start() as self.attempt:
            if scenario.fault is not None:
                self._moment()
                scenario.fault(self)
            outcome = self.attempt.wait(scenario.bound_s)
        row.injected = "; ".join(filter(None, [self._noted, *self.attempt.injected]))
        row.codes.append(outcome.code)
        row.seconds = outcome.seconds
        words = tuple(w.replace("{rank}", str(self.victim)).replace("{file}", self.file) for w in scenario.words)
        row.message = self._short(checks.message(outcome, words))
        row.problems += checks.check_outcome(outcome, scenario.codes, words, scenario.bound_s)
        row.problems += checks.check_folder(self.run, self.damaged)
        if callable(scenario.then):
            row.problems += scenario.then(self)
        for undo in self.undo:
            undo()
        if not callable(scenario.then) and (outcome.code in scenario.codes or scenario.then == "resume"):
            row.problems += self._bring_to_end(row, outcome)
        row.difference = self.difference
        row.resumed = checks.resumes(self.run)
        for problem in row.problems:  # paths of the scratch folder say nothing to a reader
            object.__setattr__(problem, "text", self._short(problem.text))

    def _bring_to_end(self, row: Row, outcome: Outcome) -> list[Problem]:
        problems = checks.check_rows(self.run, self.reference)[0] if outcome.code != 0 else []
        if self.scenario.then == "resume":
            self.chain.append(checks.newest_valid(self.run, self.damaged))
            again = self.run.finish(FINISH_S)
            row.codes.append(again.code)
            if again.code != 0:
                return [*problems, Problem("resume", f"the next start exits {again.code}: {again.err.strip()[-300:]}")]
        finished, self.difference = checks.check_finished(self.run, self.reference)
        told = {p.text for p in problems}
        problems += [p for p in finished if p.text not in told]
        return problems + checks.check_starts(self.run, self.chain)

    def _short(self, text: str) -> str:
        return text.replace(str(self.folder) + "/", "")

    def clear(self, keep: bool) -> None:
        for mount in reversed(self.mounts):
            subprocess.run(["umount", mount], check=True)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def settings(lab: Lab) -> str:
    return f"{lab.strategy}, {lab.ranks} ranks, {STEPS} steps, parallel.timeout_s={TIMEOUT_S}, seed {lab.seed}"
