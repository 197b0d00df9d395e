"""One rank's visit, and what rank 0 makes of the findings of all: a report also where some are missing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from frontier.doctor import compare, meeting, nodes
from frontier.doctor.checks import Check, bounded, error, leave_out, merge, ok, some, warning
from frontier.doctor.meeting import Meeting
from frontier.errors import EXIT_OK, EXIT_TRANSIENT, UserError
from frontier.launch.ranks import Ranks

FATAL = ("env.GLOO_SOCKET_IFNAME", "env.NCCL_SOCKET_IFNAME", "env.OMP_NUM_THREADS")
"""With an ERROR in one of these the ranks would wait for each other in vain."""


@dataclass(frozen=True)
class Options:
    quick: bool
    timeout_s: int
    target: Path | None = None
    """Of --write-system."""
    local: Path | None = None
    bad_nodes: Path | None = None
    table: Path | None = None


class Output(Protocol):
    checks: list[Check]
    table: list[str]

    def end(self) -> int: ...

    def abort(self, words: str) -> None:
        """From any thread: report and end the process."""


@dataclass
class Visit:
    """What one rank knows. `own`: its checks; `hosts` and what follows: rank 0's view of all ranks."""

    ranks: Ranks
    options: Options
    output: Output
    host: str
    began: float
    own: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    meeting: Meeting | None = None
    hosts: list[str] = field(default_factory=list)
    table: dict[str, nodes.Row] = field(default_factory=dict)

    @contextmanager
    def bound(self, name: str) -> Iterator[None]:
        """For what this rank does by itself."""
        if self.meeting:
            self.meeting.doing = name
        with bounded(name, self.options.timeout_s, self._hung_alone):
            yield

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """For what waits for other ranks. Rank 0 judges a hang first: who left before it asks would look lost."""
        patience = self.options.timeout_s if self.ranks.is_main else 2 * self.options.timeout_s + 30
        if self.meeting:
            self.meeting.doing = ""
        with bounded(name, patience, self._hung_together):
            yield

    def _hung_alone(self, found: Check) -> None:
        self.own.append(found)
        if self.ranks.is_main:
            gather(self, now=True)
            conclude(self)
        elif self.meeting:
            with contextlib.suppress(RuntimeError):
                self.meeting.send(self.sent(gone=True), aside=True)
        self.output.abort(f"{found.check} {found.text}: {found.mend}")

    def _hung_together(self, found: Check) -> None:
        if self.ranks.is_main:
            # A rank alone has nobody to lose: what it did takes too long.
            alone = self.meeting is None
            self.output.checks += [found] if alone else lost(self, f"{found.check} {found.text}")
            conclude(self)
        self.output.abort(f"{found.check} {found.text}")

    def sent(self, gone: bool = False) -> dict[str, Any]:
        """To rank 0. Of the other ranks of a node it needs what is wrong only."""
        first = self.ranks.local_rank == 0
        checks = self.own if first else [c for c in self.own if c.status != "OK"]
        empty: dict[str, Any] = {"versions": {}, "places": {}, "free": {}, "host_to_device": None}
        return {**empty, **self.facts, "checks": meeting.packed(checks), "gone": gone}


def gather(visit: Visit, *, now: bool = False) -> bool:
    """Rank 0: what all ranks found, merged into the report; with `now` what is known by now. Whether the ranks can go on together."""
    ranks, output = visit.ranks, visit.output
    hosts, findings = {0: visit.host}, {0: visit.sent()}
    absent: list[Check] = []
    if visit.meeting:
        hosts = visit.meeting.came(now=now)
        findings |= visit.meeting.findings([r for r in hosts if r], now=now)
        absent = [] if now else _absent(visit, visit.meeting, hosts, findings)
    visit.hosts = [hosts.get(rank, "") for rank in range(ranks.world_size)]
    launcher = "without a launcher" if ranks.source == "alone" else f"by the variables of {ranks.source}"
    text = f"{ranks.world_size} on {ranks.nodes} nodes, {launcher}; this is {visit.host}"
    output.checks.append(ok("ranks", text, ranks.world_size, "ranks"))
    seen = [(visit.hosts[r], meeting.unpacked(f["checks"])) for r, f in sorted(findings.items())]
    output.checks += merge(seen)
    came = [r for r in range(ranks.world_size) if r in hosts]
    visit.table = nodes.rows([hosts[r] for r in came], {i: findings[r] for i, r in enumerate(came) if r in findings})
    if visit.meeting is None:
        alone = ranks.world_size == 1
        found = ok("collectives", "not measured: one rank")
        if not alone:
            found = warning("collectives", "not measured: the ranks cannot meet", "mend the ERROR above")
        output.checks.append(found)
        return alone
    output.checks.append(_hosts([hosts[r] for r in came], ranks))
    output.checks += absent
    sane = [r for r in came if r in findings and not findings[r]["gone"]]
    of = [hosts[r] for r in sane]
    if len(sane) > 1:
        output.checks.append(compare.check_same("same_versions", [findings[r]["versions"] for r in sane], of))
        output.checks.append(compare.check_same("same_places", [findings[r]["places"] for r in sane], of))
        copies = [findings[r]["host_to_device"] for r in sane]
        if None not in copies:
            output.checks.append(compare.check_spread("host_to_device", copies, of, "GB/s"))
    free = {h: row["local_gib"] for h, row in visit.table.items() if row["local_gib"] is not None}
    if len(free) > 1:
        output.checks.append(compare.check_free(free))
    fatal = [c.check for _, checks in seen for c in checks if c.status == "ERROR" and c.check in FATAL]
    if len(sane) < ranks.world_size or fatal:
        why = some(dict.fromkeys(fatal)) if fatal else f"{ranks.world_size - len(sane)} ranks are missing"
        output.checks.append(warning("collectives", f"not measured: {why}", "mend the ERROR above"))
        return False
    return True


def _absent(visit: Visit, meet: Meeting, hosts: dict[int, str], findings: dict[int, Any]) -> list[Check]:
    """ERRORs for ranks that did not come, and for those that came and sent nothing."""
    out = []
    world, waited = visit.ranks.world_size, visit.options.timeout_s
    if missing := [r for r in range(world) if r not in hosts]:
        blame = meeting.missing_hosts(meeting.expected_hosts(os.environ, visit.ranks), hosts)
        where = f" (of {some(blame)})" if blame else ""
        text = f"{len(missing)} of {world} ranks did not come within {waited} s: {meeting.spans(missing)}{where}"
        mend = f"see what they printed; can all nodes reach {meet.place}?"
        mend += f" Leave out what stays away: {leave_out(blame)}" if blame else ""
        out.append(Check("rendezvous", "ERROR", text, waited, "s", mend, tuple(blame), blame))
    if silent := [r for r in hosts if r and r not in findings]:
        out.append(_named(meet, silent, hosts, f"came, but found nothing within {waited} s after rank 0"))
    return out


def _named(meet: Meeting, ranks: Sequence[int], hosts: Any, what: str) -> Check:
    """An ERROR with what these ranks say that they are doing."""
    doing = meet.roll_call(ranks)
    words = {r: f"hangs in {doing[r] or 'waiting'}" if r in doing else "does not answer" for r in ranks}
    named = some(f"rank {r} on {hosts[r]} {words[r]}" for r in ranks)
    blame = {hosts[r]: f"rank {r} {words[r]}" for r in reversed(list(ranks))}
    mend = f"see what they printed; if it happens again, tell the site's support and {leave_out(blame)}"
    text = f"{len(ranks)} ranks lost ({what}): {named}"
    return Check("lost_ranks", "ERROR", text, len(ranks), "ranks", mend, tuple(blame), blame)


def lost(visit: Visit, what: str) -> list[Check]:
    """Rank 0, after a collective failed or hung: who does not answer, or is busy with something of its own."""
    assert visit.meeting is not None
    doing = visit.meeting.roll_call(range(visit.ranks.world_size))
    words = {
        r: f"hangs in {doing[r]}" if r in doing else "does not answer"
        for r in range(1, visit.ranks.world_size)
        if r not in doing or doing[r]
    }
    if not words:
        text = f"{what}: all ranks answer and wait for each other"
        mend = "the network between them is at fault, or what its library is told: NCCL_SOCKET_IFNAME, the libfabric plugin, a firewall"
        return [error("lost_ranks", text, mend)]
    blame = {visit.hosts[r]: f"rank {r} {word}" for r, word in reversed(words.items())}
    text = f"{what}: {some(f'rank {r} on {visit.hosts[r]} {word}' for r, word in words.items())}"
    mend = f"see what they printed; if it happens again, tell the site's support and {leave_out(blame)}"
    return [Check("lost_ranks", "ERROR", text, len(words), "ranks", mend, tuple(blame), blame)]


def conclude(visit: Visit) -> None:
    """Rank 0: the list of bad nodes, the table, and the verdict for the others."""
    options, output = visit.options, visit.output
    hosts = {*filter(None, visit.hosts), *(h for c in output.checks for h in c.hosts)}
    named, found = nodes.bad(output.checks, sorted(hosts), options.bad_nodes)
    for path, text in (
        (options.bad_nodes, nodes.list_lines(named)),
        (options.table, json.dumps(nodes.document(visit.table, output.checks), indent=1) + "\n"),
    ):
        try:
            if path is not None:
                nodes.write(path, text)
        except OSError as problem:
            mend = "name a file where there is space"
            output.checks.append(error("report", f"{path} could not be written: {problem.strerror}", mend))
    if options.bad_nodes is not None:
        output.checks.append(found)
    if len(visit.table) > 1:
        output.table += nodes.lines(visit.table, output.checks)
    if visit.meeting:
        failed = any(c.status == "ERROR" for c in output.checks)
        with contextlib.suppress(RuntimeError):
            visit.meeting.tell("go", "stop", aside=True)  # to those who still wait for it
            visit.meeting.tell("verdict", str(EXIT_TRANSIENT if failed else EXIT_OK), aside=True)
        visit.meeting.leave()


def _hosts(hosts: Sequence[str], ranks: Ranks) -> Check:
    counts = {host: hosts.count(host) for host in dict.fromkeys(hosts)}
    first = ", ".join(list(counts)[:4]) + (f" and {len(counts) - 4} more" if len(counts) > 4 else "")
    if len(set(counts.values())) > 1:
        few = min(counts, key=counts.__getitem__)
        text = f"{first}: {counts[few]} ranks on {few}, {max(counts.values())} elsewhere"
        return warning(
            "hosts", text, "give every node the same number of ranks (--ntasks-per-node)", len(counts), "hosts"
        )
    return ok("hosts", f"{first}; {ranks.local_world_size} ranks each", len(counts), "hosts")


def check_targets(options: Options) -> None:
    """Before minutes are spent on what cannot be written. A list of an earlier visit goes: it must not be taken for this one's."""
    for flag, path in (("--bad-nodes", options.bad_nodes), ("--table", options.table)):
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise UserError(f"{flag} {path} is a folder: name a file")
            path.unlink(missing_ok=True)
            nodes.write(path, "")
            path.unlink()
        except OSError as problem:
            raise UserError(
                f"{flag} {path}: cannot be written ({problem.strerror}): name a file where there is space"
            ) from None
