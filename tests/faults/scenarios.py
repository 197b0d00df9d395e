"""The faults as data: when, what is done, and what the design promises. `lab.py` carries them out.

Exit codes: 0 done, 2 the user must act, 75 a passing failure (start again), 85 saved on request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.faults import damage
from tests.faults.harness import CONT, KILL, STOP, TERM, USR1

if TYPE_CHECKING:
    from tests.faults.lab import Scene

STEPS = 24
TIMEOUT_S = 10
"""parallel.timeout_s of the runs: how long a lost rank may hold the others."""
GRACE_S = 10
"""What the local launcher gives the other ranks once one has failed (`run_local`)."""
SLACK_S = 10
"""For a slow, shared machine."""
SOON, LATE = TIMEOUT_S + SLACK_S, TIMEOUT_S + GRACE_S + SLACK_S


@dataclass(frozen=True)
class Scenario:
    """One fault.

    Attributes:
        moment: "starting" (at a random time before the first step), "step" (at a random one), "saving" (a save's
            temporary folder is there), "committed" (a new checkpoint is), "end" (the last step is done), or "before"
            (a half-done run is prepared, hurt, then started).
        fault: what is done at that moment.
        codes: exit codes that the design allows for the start that was hurt.
        words: regular expressions that one line of its output must match, `{rank}` being the victim.
        bound_s: from the fault to the end of the last process.
        then: "resume" (the fault is undone and the next start must end as the undisturbed run did), "same" (the start
            that was hurt must end so itself), or a function that gives the problems it finds.
        before: what is done before the start.
        at: the step, where it must not be a random one.
    """

    name: str
    moment: str
    fault: Callable[[Scene], None] | None
    codes: tuple[int, ...]
    words: tuple[str, ...] = ()
    bound_s: float = SOON
    then: str | Callable[[Scene], list[Any]] = "resume"
    overrides: tuple[str, ...] = ()
    before: Callable[[Scene], None] | None = None
    at: int | None = None


def _signal(number: Any, *who: str) -> Callable[[Scene], None]:
    """To "victim" (a random rank), "all" ranks, or the "launcher"."""

    def fault(scene: Scene) -> None:
        scene.attempt.signal(number, *[scene.victim if w == "victim" else w for w in who])

    return fault


def _stopped(seconds: float, then_continue: bool = True) -> Callable[[Scene], None]:
    def fault(scene: Scene) -> None:
        scene.attempt.signal(STOP, scene.victim)
        if then_continue:
            scene.sleep(seconds)
            scene.attempt.signal(CONT, scene.victim)

    return fault


KILLED = ("rank {rank} ended with signal SIGKILL",)
SAVED = ("asked to stop", "saved .*step_", "exit 85")
LOST = (r"rank \d+ .*(lost contact|hung)",)

SIGNALS = [
    Scenario("kill a rank while it starts", "starting", _signal(KILL, "victim"), (75,), KILLED, LATE),
    Scenario("kill a rank in a step", "step", _signal(KILL, "victim"), (75,), KILLED),
    Scenario("kill a rank in an async save", "saving", _signal(KILL, "victim"), (75,), KILLED),
    Scenario(
        "kill a rank in a sync save",
        "saving",
        _signal(KILL, "victim"),
        (75,),
        KILLED,
        overrides=("checkpoint.async_save=false",),
    ),
    Scenario(
        "kill a rank as a checkpoint appears",
        "committed",
        _signal(KILL, "victim"),
        (75,),
        KILLED,
        overrides=("checkpoint.async_save=false",),
    ),
    Scenario("kill a rank after the last step", "end", _signal(KILL, "victim"), (0, 75), (), SOON),
    Scenario("kill all ranks", "step", _signal(KILL, "all"), (75,), (r"rank \d ended with signal SIGKILL",)),
    Scenario("kill the launcher while it starts", "starting", _signal(KILL, "launcher"), (-9,)),
    Scenario("kill the launcher", "step", _signal(KILL, "launcher"), (-9,)),
    Scenario("kill the launcher in a save", "saving", _signal(KILL, "launcher"), (-9,)),
    Scenario("SIGUSR1 to one rank", "step", _signal(USR1, "victim"), (85,), SAVED),
    Scenario("SIGUSR1 to all ranks", "step", _signal(USR1, "all"), (85,), SAVED),
    Scenario("SIGTERM to one rank", "step", _signal(TERM, "victim"), (85,), SAVED),
    Scenario("SIGTERM to all ranks", "step", _signal(TERM, "all"), (85,), SAVED),
    Scenario("SIGTERM to the launcher", "step", _signal(TERM, "launcher"), (85,), SAVED),
    Scenario("SIGUSR1 in a save", "saving", _signal(USR1, "victim"), (85,), SAVED),
    # Before a rank listens there is nothing to save: it may also end and say so.
    Scenario("SIGTERM to the launcher while it starts", "starting", _signal(TERM, "launcher"), (75, 85), (), LATE),
    Scenario("SIGUSR1 to one rank while it starts", "starting", _signal(USR1, "victim"), (75, 85), (), LATE),
    Scenario("SIGTERM to all ranks after the last step", "end", _signal(TERM, "all"), (0,)),
    Scenario("a STOP file", "step", damage.stop_file, (85,), SAVED),
    Scenario("a rank stopped for less than timeout_s", "step", _stopped(TIMEOUT_S / 3), (0,), bound_s=30, then="same"),
    Scenario("a rank stopped in a save, shorter", "saving", _stopped(TIMEOUT_S / 3), (0,), bound_s=30, then="same"),
    Scenario("a rank stopped for ever", "step", _stopped(0, False), (75,), LOST, LATE),
    Scenario("a rank stopped for ever in a save", "saving", _stopped(0, False), (75,), LOST, LATE),
    Scenario("a rank stopped for ever while it starts", "starting", _stopped(0, False), (75,), LOST, LATE),
    Scenario("a rank stopped for longer, then continued", "step", _stopped(TIMEOUT_S + 5), (75,), LOST, SOON),
]


def _before(
    name: str,
    before: Callable[[Scene], None],
    codes: tuple[int, ...],
    words: tuple[str, ...],
    then: str | Callable[[Scene], list[Any]] = "resume",
    overrides: tuple[str, ...] = (),
) -> Scenario:
    """Hurt first, then started: the bound is that of a whole start."""
    return Scenario(name, "before", None, codes, words, 60, then, overrides, before)


def _passed(name: str, before: Callable[[Scene], None]) -> Scenario:
    return _before(name, before, (0,), ("passed over: .*{file}",), "same")


CHECKPOINTS = [
    _passed("a byte flipped in a checkpoint's data", damage.flip_data),
    _passed("a checkpoint's data truncated", damage.truncate_data),
    _passed("a checkpoint's data file gone", damage.lose_data),
    _passed("a checkpoint's index truncated", damage.truncate_index),
    _passed("index.json: a digit of a crc32", damage.index_crc),
    _passed("index.json: a letter of a tensor's name", damage.index_name),
    _passed("index.json: a letter of a dtype", damage.index_dtype),
    _passed("index.json: a digit of a shape", damage.index_shape),
    _passed("index.json: a digit of an offset", damage.index_offset),
    _passed("complete.json truncated", damage.truncate_record),
    _passed("complete.json gone", damage.lose_record),
    _passed("complete.json: a digit of the step", damage.record_step),
    _passed("complete.json: a digit of the updates", damage.record_updates),
    _passed("complete.json: a letter of a parameter", damage.record_name),
    _passed("the three newest checkpoints damaged", damage.three_newest),
    Scenario(
        "damaged checkpoints push no good one out",
        "step",
        _signal(KILL, "victim"),
        (75,),
        KILLED,
        overrides=("checkpoint.every_steps=2", "checkpoint.keep=2"),
        before=damage.two_newest,
        at=18,
    ),
]

SHARDS = [
    _before("a shard truncated before the start", damage.truncate_shard, (2,), ("shard .*{file}.*truncated",)),
    _before("a shard gone before the start", damage.lose_shard, (2,), ("shard .*{file}.*missing",)),
    _before("a byte flipped in a shard", damage.flip_shard, (0,), (), damage.verify_names_it),
    Scenario(
        "a shard truncated while it is read",
        "step",
        damage.truncate_shard_live,
        (2,),
        (r"rank \d.*shard .*{file}.*truncated",),
        at=2,  # the third window, of steps 17 to 24, is read from step 9 on
    ),
]

DISKS = [
    _before("no room for a checkpoint", damage.no_room, (2,), ("not enough disk", "free")),
    _before("files run out while a checkpoint is written", damage.no_inodes, (2,), ("the disk filled up",)),
    Scenario(
        "the disk full to the last byte",
        "step",
        damage.fill_disk,
        (2,),
        ("(?i)disk|space|room", "metrics.jsonl"),
        overrides=("checkpoint.every_steps=1000",),
        before=damage.run_on_small_disk,
        at=2,
    ),
]

NUMBERS = [
    # Said once for each of the three epochs; the counts are compared with the sampler's plan.
    _before("a wild number in one sample", damage.one_wild, (0,), (), damage.skipped_and_went_on),
    _before(
        "wild numbers in every sample",
        damage.all_wild,
        (2,),
        ("in a row", "look at the data"),
        damage.nothing,
        ("train.max_skipped=2",),
    ),
    Scenario(
        "a wild number in one sample, and a kill",
        "step",
        _signal(KILL, "victim"),
        (75,),
        KILLED,
        then=damage.as_wild_alone,
        before=damage.one_wild,
    ),
    _before(
        "a spike in one sample",
        damage.one_spike,
        (0,),
        (r"step \d+ skipped: a spike",),
        damage.skipped_and_went_on,
        ("model.norm_pix_loss=false",),
    ),
]
ALL = [*SIGNALS, *CHECKPOINTS, *SHARDS, *DISKS, *NUMBERS]

KNOWN: dict[tuple[str, str], str] = {}
"""(scenario, kind of problem) -> what is to be mended in the engine. Shown in the table as known; nothing else passes.
Each mend takes its lines out of here."""
