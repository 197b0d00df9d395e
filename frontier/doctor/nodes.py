"""The table of nodes, and the list of those that a job should leave out."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frontier.doctor import compare
from frontier.doctor.checks import Check, leave_out, ok, some, warning

COLUMNS = {
    "product_tflops": ("product", "TFLOP/s"),
    "memory_gb_per_s": ("memory", "GB/s"),
    "link_gb_per_s": ("link", "GB/s"),
    "local_gib": ("local", "GiB free"),
    "tmp_gib": ("/tmp", "GiB free"),
    "run_gib": ("run", "GiB free"),
    "clock_s": ("clock", "s"),
}
"""Of a row, with the words of its head; the worst rank's rate, the best partner's link, the clock against the median node."""
SHOWN = 16
"""With more nodes, only those with a finding are printed, and the median."""
PART = 3
"""If more than one node in so many looks bad, the cause is not the nodes. One may always be named."""

Row = dict[str, Any]


def rows(hosts: Sequence[str], findings: Mapping[int, Mapping[str, Any]]) -> dict[str, Row]:
    """A row for each host, with what its ranks sent; the rest is filled in as it is measured."""
    out: dict[str, Row] = {}
    for rank, host in enumerate(hosts):
        row = out.setdefault(host, {"host": host, "ranks": 0, **dict.fromkeys(COLUMNS), "versions": None})
        found = findings.get(rank)
        row["ranks"] += found is not None
        if found and row["versions"] is None:
            row |= found["free"]
            row["versions"] = hashlib.sha256(json.dumps(found["versions"]).encode()).hexdigest()[:8]
    return out


def fill(table: Mapping[str, Row], column: str, values: Sequence[float], hosts: Sequence[str]) -> None:
    """The least of a node's ranks."""
    for host, value in zip(hosts, values, strict=True):
        before = table[host][column]
        table[host][column] = value if before is None else min(before, value)


def middle(table: Mapping[str, Row]) -> Row:
    out: Row = {"host": "median", "ranks": statistics.median(row["ranks"] for row in table.values())}
    for column in COLUMNS:
        known = [row[column] for row in table.values() if row[column] is not None]
        out[column] = statistics.median(known) if known else None
    return out


def with_findings(table: Mapping[str, Row], checks: Sequence[Check]) -> list[Row]:
    """The rows as they are written: each with the names of the checks that are not OK on this node."""
    about: dict[str, list[str]] = {host: [] for host in table}
    for check in checks:
        for host in check.hosts if check.check != "bad_nodes" else ():
            about.setdefault(host, []).append(check.check)
    return [{**row, "findings": about[host]} for host, row in table.items()]


def document(table: Mapping[str, Row], checks: Sequence[Check]) -> dict[str, Any]:
    """What --table writes."""
    return {
        "nodes": with_findings(table, checks),
        "median": middle(table),
        "thresholds": {
            "slow_part_of_median": compare.SLOW,
            "very_slow_part_of_median": compare.VERY_SLOW,
            "far_times_the_spread_from_four_values_on": compare.FAR,
            "clock_s": compare.SKEW_S,
            "clock_error_s": compare.WILD_SKEW_S,
        },
    }


def lines(table: Mapping[str, Row], checks: Sequence[Check]) -> list[str]:
    """For a terminal: all nodes, or beyond `SHOWN` those with a finding (at most as many), then the median."""
    whole = with_findings(table, checks)
    shown = whole if len(whole) <= SHOWN else [row for row in whole if row["findings"]][:SHOWN]
    head = ["node", "ranks", *(name for name, _ in COLUMNS.values()), "versions", "findings"]
    units = ["", "", *(unit for _, unit in COLUMNS.values()), "", ""]
    body = [[_cell(row.get(key)) for key in ("host", "ranks", *COLUMNS, "versions", "findings")] for row in shown]
    body.append([_cell(middle(table).get(key)) for key in ("host", "ranks", *COLUMNS, "versions", "findings")])
    widths = [max(len(line[i]) for line in (head, units, *body)) for i in range(len(head))]
    out = [
        "  ".join(c.rjust(w) if 0 < i < len(head) - 1 else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in (head, units, *body)
    ]  # fmt: skip
    if len(shown) < len(whole):
        bad = sum(bool(row["findings"]) for row in whole)
        out.append(
            f"{len(whole)} nodes, {bad} with findings, {len(shown)} of them shown; all of them with --table FILE"
        )
    return out


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return " ".join(value) if isinstance(value, list) else str(value)


def bad(checks: Sequence[Check], hosts: Sequence[str], path: Path | None = None) -> tuple[dict[str, str], Check]:
    """(host -> reason, the check that says so) of the nodes without which findings would be gone.

    What is found on more than a third of the nodes is not about these nodes. Where more than a third look bad for whatever reasons, those with
    an ERROR are named if they are few enough, since being slow may pass; otherwise none is: another set of nodes would not be better.
    """
    nodes = len(set(hosts))
    most = max(1, nodes // PART)
    reasons: dict[str, list[str]] = {}
    failed: set[str] = set()
    common = []
    for check in checks:
        if len(check.blame) > most:
            common.append(check.check)
        else:
            for host, reason in check.blame.items():
                reasons.setdefault(host, []).append(f"{check.check}: {reason}")
            failed.update(check.blame if check.status == "ERROR" else ())
    if len(reasons) > most and 0 < len(failed) <= most:
        reasons = {host: texts for host, texts in reasons.items() if host in failed}
    where = f" (listed in {path})" if path else ""
    if len(reasons) > most or (common and not reasons):
        what = f"{len(reasons)} of {nodes} nodes look bad" if reasons else f"{some(common)}: on more than a third"
        mend = "mend what the checks above say: with other nodes it would most likely be the same"
        return {}, warning("bad_nodes", f"none named: {what}, so the cause is not the nodes", mend, 0, "nodes")
    if not reasons:
        return {}, ok("bad_nodes", f"none of {nodes}", 0, "nodes")
    named = {host: " ".join("; ".join(texts).split()) for host, texts in reasons.items()}
    text = f"{len(named)} of {nodes} nodes to leave out: {some(f'{h} ({named[h]})' for h in named)}"
    found = warning("bad_nodes", text, leave_out(named) + where, len(named), "nodes")
    return named, Check(found.check, found.status, found.text, found.value, found.unit, found.mend, tuple(named))


def list_lines(named: Mapping[str, str]) -> str:
    """A host a line with the reason after it; nothing where none is bad."""
    return "".join(f"{host} {reason}\n" for host, reason in named.items())


def write(path: Path, text: str) -> None:
    """The whole file or none. Raises OSError."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
        part = Path(handle.name)
        try:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
            part.chmod(0o644)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
