"""Random kills in a row on one run: at any moment of its life, of one rank, of all, or of the launcher."""

from __future__ import annotations

import sys
import time
from collections import Counter

import numpy as np

from tests.faults import checks
from tests.faults.checks import Problem, Reference
from tests.faults.harness import KILL, Attempt, Missed, Run, make_config
from tests.faults.lab import FINISH_S, Lab, Row
from tests.faults.scenarios import LATE

NAME = "random kills in a row"
MOMENTS = {"starting": 0.1, "step": 0.4, "saving": 0.25, "committed": 0.25}
VICTIMS = {"a rank": 0.6, "all ranks": 0.2, "the launcher": 0.2}
ENDS = 0.05
"""Share of the kills kept for the very end of the run: after its last step, around its last save."""
STEPS_A_KILL = 4
AHEAD = 10
"""A kill comes at most so many steps after the step resumed from."""


def _draw(random: np.random.Generator, shares: dict[str, float]) -> str:
    return str(random.choice(list(shares), p=list(shares.values())))


def _kill(
    attempt: Attempt, random: np.random.Generator, resumed: int, last: int, at_end: bool
) -> tuple[str, list[int]]:
    """Wait for a random moment and kill; returns (what was done, the ranks killed)."""
    moment = "end" if at_end else _draw(random, MOMENTS)
    if resumed == last:  # a start that has nothing left to do, and may be done before the kill
        moment = "ended before"
    victim = _draw(random, VICTIMS)
    rank = int(random.integers(attempt.ranks))
    if moment in ("starting", "ended before"):
        time.sleep(float(random.uniform(0.1, 3.5)))
    elif moment == "end":
        attempt.until_step(last, FINISH_S + last)
        time.sleep(float(random.uniform(0, 0.15)))
    else:
        attempt.until_step(min(last - 1, resumed + int(random.integers(1, AHEAD))))
        if moment == "saving":
            attempt.until_saving()
            time.sleep(float(random.uniform(0, 0.01)))
        elif moment == "committed":
            attempt.until_committed()
    if victim == "the launcher":
        attempt.signal(KILL, "launcher")
        return f"{moment}, {victim}", []
    attempt.signal(KILL, "all" if victim == "all ranks" else rank)
    return f"{moment}, {victim}", list(range(attempt.ranks)) if victim == "all ranks" else [rank]


def random_kills(lab: Lab, kills: int, steps: int | None = None) -> Row:
    """`kills` kills in a row, judged after each one, then brought to the end and compared with the undisturbed run."""
    random = np.random.default_rng([lab.seed, kills])
    steps = steps or max(24, kills * STEPS_A_KILL)
    folder = lab.folder / "kills"
    config = make_config(folder / "config.yaml", lab.shards, steps, lab.strategy)
    straight = Run(config, folder / "undisturbed", lab.ranks, ("checkpoint.every_steps=1000000",))
    done = straight.finish(FINISH_S + steps)
    assert done.code == 0, done.err[-2000:]
    reference = Reference.of(straight)
    run = Run(config, folder / "run", lab.ranks)
    row = Row(NAME, expected=f"exit 75 after each (0 at the very end), {LATE} s; then 0")
    done_kills: Counter[str] = Counter()
    chain: list[int | None] = []
    row.seconds = 0.0
    for number in range(kills):
        chain.append(checks.newest_valid(run))
        at_end = number >= kills - max(1, round(kills * ENDS))
        # Saved in the background and in the foreground by turns: a run may change that on any start.
        save = f"checkpoint.async_save={'true' if random.random() < 0.5 else 'false'}"
        with run.start(save) as attempt:
            try:
                what, ranks = _kill(attempt, random, chain[-1] or 0, steps, at_end)
            except Missed:
                # It was at its end, or ran past its last save: whatever it did must still be right.
                what, ranks = "missed: it was done", []
            outcome = attempt.wait(LATE)
        done_kills[what] += 1
        row.codes.append(outcome.code)
        row.seconds = max(row.seconds, outcome.seconds)
        words: tuple[str, ...] = ()
        codes: tuple[int, ...] = (75,)
        if "launcher" in what:
            codes = (-9,)
        if what.startswith(("end", "missed")):
            codes = (*codes, 0)
        elif len(ranks) == 1:
            words = (f"rank {ranks[0]} ended with signal SIGKILL",)
        elif ranks:
            words = (r"rank \d+ ended with signal SIGKILL",)
        row.message = checks.message(outcome, words) or row.message
        found = checks.check_outcome(outcome, codes, words, LATE) + checks.check_folder(run)
        # A row once lost stays lost: told at the end, with all the others.
        found += [p for p in checks.check_rows(run, reference)[0] if p.kind != "row-lost"]
        row.problems += [Problem(p.kind, f"kill {number + 1} ({what}): {p.text}") for p in found]
        if (number + 1) % 10 == 0:
            print(f"{number + 1} of {kills} kills, at step {checks.newest_valid(run)}", file=sys.stderr, flush=True)
    chain.append(checks.newest_valid(run))
    last = run.finish(FINISH_S + steps)
    row.codes.append(last.code)
    if last.code != 0:
        row.problems.append(Problem("resume", f"the last start exits {last.code}: {last.err[-300:]}"))
    else:
        found, row.difference = checks.check_finished(run, reference)
        row.problems += found + checks.check_starts(run, chain)
    row.resumed = checks.resumes(run)
    row.injected = f"{kills} kills over {steps} steps: " + ", ".join(
        f"{n} × {what}" for what, n in sorted(done_kills.items())
    )
    return row
