"""The verdicts: what must hold of a run folder after any fault, and of a run that was brought to its end."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import torch

from frontier.train.checkpoint import read_record, step_folder
from frontier.train.storage import CorruptCheckpoint, read_tensors
from tests.faults.harness import Outcome, Run, names


@dataclass(frozen=True)
class Problem:
    """Something that should not be. `kind` is what the list of known ones goes by."""

    kind: str
    text: str


@dataclass
class Reference:
    """An undisturbed run of the same ranks and strategy: its losses by step and its last checkpoint."""

    losses: dict[int, float | None]
    final: Path

    @classmethod
    def of(cls, run: Run) -> Reference:
        rows = rows_of(run)
        losses = {row["step"]: row["loss"] for row in rows}
        steps = len(losses)
        assert [row["step"] for row in rows] == list(range(1, steps + 1)), "the undisturbed run is broken itself"
        return cls(losses, step_folder(run.checkpoints, steps))


def rows_of(run: Run) -> list[dict]:
    rows = []
    lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number != len(lines) - 1:  # a torn last line is dropped by the next start
                raise
    return rows


def readable(folder: Path) -> str | None:
    """None where every byte of a checkpoint is as written, else why it would be passed over."""
    try:
        read_record(folder)
        read_tensors(folder, "")
    except CorruptCheckpoint as error:
        return str(error)
    except Exception as error:  # it is damaged all the same; the start that meets it tells how it is taken
        return f"{folder}: {type(error).__name__}: {error}"
    return None


def steps_in(folder: Path) -> list[int]:
    """Steps under a committed name, newest first; not asked of the engine, which is on trial."""
    return sorted((int(n[5:]) for n in names(folder) if re.fullmatch(r"step_\d{8}", n)), reverse=True)


def newest_valid(run: Run, damaged: Container[int] = ()) -> int | None:
    """The step to go on from. `damaged`: those that a scenario hurt, in ways that `readable` need not see."""
    for step in steps_in(run.checkpoints):
        if step not in damaged and readable(step_folder(run.checkpoints, step)) is None:
            return step
    return None


def check_folder(run: Run, damaged: Container[int] = ()) -> list[Problem]:
    """After any fault: every checkpoint under a committed name is whole, but for those the scenario damaged itself."""
    problems = []
    for step in steps_in(run.checkpoints):
        why = readable(step_folder(run.checkpoints, step))
        if why is not None and step not in damaged:
            problems.append(Problem("torn-checkpoint", f"step {step} has its final name and is broken: {why}"))
    return problems


def check_rows(run: Run, reference: Reference, upto: int | None = None) -> tuple[list[Problem], float]:
    """Every step once, in order, each loss bit-identical; `upto`: all of 1..upto. Returns the greatest difference too."""
    problems, difference = [], 0.0
    rows = rows_of(run)
    steps = [row["step"] for row in rows]
    if len(steps) != len(set(steps)) or steps != sorted(steps):
        problems.append(Problem("row-repeated", f"steps in metrics.jsonl are not in order or repeated: {steps}"))
    last = upto if upto is not None else max(steps, default=0)
    if missing := sorted(set(range(1, last + 1)) - set(steps)):
        problems.append(Problem("row-lost", f"metrics.jsonl lacks steps {missing[:20]}"))
    if upto is not None and (beyond := [s for s in steps if s > upto]):
        problems.append(Problem("row-beyond", f"metrics.jsonl holds steps after the end: {beyond}"))
    different = []
    for row in rows:
        ours, theirs = row["loss"], reference.losses.get(row["step"])
        if ours != theirs:
            different.append(row["step"])
            both = ours is not None and theirs is not None
            difference = max(difference, abs(ours - theirs) / abs(theirs) if both else math.inf)
    if different:
        problems.append(
            Problem(
                "curve", f"losses differ at {len(different)} steps from {different[0]} on, by up to {difference:.1e}"
            )
        )
    return problems, difference


def resumes(run: Run) -> list[int | None]:
    """Where each start that got so far went on from, as starts.jsonl has it."""
    path = run.dir / "starts.jsonl"
    return [json.loads(line)["resumed_from"] for line in path.read_text().splitlines()] if path.exists() else []


def check_starts(run: Run, allowed: list[int | None]) -> list[Problem]:
    """The chain of resumes: each start that got that far went on from the newest checkpoint that was valid then."""
    told = resumes(run)
    # A start that was killed before it wrote its line is not there; the others are, in order.
    place = 0
    for step in told:
        while place < len(allowed) and allowed[place] != step:
            place += 1
        if place == len(allowed):
            return [Problem("chain", f"starts went on from {told}, the newest valid checkpoints were {allowed}")]
        place += 1
    return []


def check_finished(run: Run, reference: Reference) -> tuple[list[Problem], float]:
    """A run at its end equals the undisturbed one, and nothing temporary is left."""
    problems, difference = check_rows(run, reference, max(reference.losses))
    final = run.checkpoints / reference.final.name
    if (why := readable(final)) is not None:
        return [*problems, Problem("final", why)], difference
    ours, theirs = read_tensors(final, ""), read_tensors(reference.final, "")
    if ours.keys() != theirs.keys():
        problems.append(Problem("final", "the last checkpoint holds other tensors"))
    elif wrong := [name for name, value in theirs.items() if not torch.equal(ours[name], value)]:
        problems.append(Problem("final", f"{len(wrong)} tensors of the last checkpoint differ, first {wrong[0]}"))
    if stale := [p.name for p in run.checkpoints.glob(".*")] + [p.name for p in run.dir.glob("*.tmp")]:
        problems.append(Problem("stale", f"left behind: {', '.join(stale)}"))
    return problems, difference


def check_outcome(outcome: Outcome, codes: tuple[int, ...], words: tuple[str, ...], bound_s: float) -> list[Problem]:
    """It ended in time, with a right code, and said why in one message that holds all of `words` (regular expressions)."""
    problems = []
    if outcome.code is None:
        problems.append(Problem("hang", f"still running {bound_s:.0f} s after {outcome.injected}"))
    elif outcome.lingering:
        problems.append(Problem("orphans", f"{len(outcome.lingering)} ranks outlived the launcher by {bound_s:.0f} s"))
    if outcome.code is not None and outcome.code not in codes:
        problems.append(Problem("exit-code", f"exit {outcome.code}, expected {' or '.join(map(str, codes))}"))
    if "Traceback" in outcome.err:
        last = next((line for line in reversed(outcome.lines) if re.match(r"[\w.]*(Error|Exception)\b", line)), "")
        problems.append(Problem("traceback", f"a traceback for the user: {last[:160]}"))
    if words:
        told = [
            line for line in (outcome.out + "\n" + outcome.err).splitlines() if all(re.search(w, line) for w in words)
        ]
        if not told:
            problems.append(Problem("silent", f"no line says {' + '.join(words)}: {outcome.err.strip()[-200:]!r}"))
        else:
            # Each rank that met the cause by itself may say so, once.
            speakers = Counter("".join(re.findall(r"rank \d+", line)[:1]) for line in told)
            if max(speakers.values()) > 1:
                problems.append(Problem("said-twice", f"said {len(told)} times: {told[:3]}"))
    return problems


def message(outcome: Outcome, words: tuple[str, ...]) -> str:
    """The line that gave the cause, for the table."""
    lines = (outcome.out + "\n" + outcome.err).splitlines()
    return next((line for line in lines if words and all(re.search(w, line) for w in words)), "")
