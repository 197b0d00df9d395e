"""`python -m tests.faults`: every scenario and a row of random kills; a Markdown table; exit 1 where a verdict failed."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.faults.kills import NAME as KILLS
from tests.faults.kills import random_kills
from tests.faults.lab import Lab, Row, settings
from tests.faults.scenarios import ALL, KNOWN

HEAD = ("scenario", "injected", "expected", "exit codes", "s", "message", "resumed from", "curve difference", "verdict")


def cells(row: Row) -> list[str]:
    resumed = [str(s) for s in row.resumed if s is not None]
    told = ", ".join(resumed) if len(resumed) < 6 else f"{resumed[0]} … {resumed[-1]} ({len(resumed)} times)"
    difference = "–" if row.difference is None else "0" if row.difference == 0 else f"{row.difference:.1e}"
    codes = row.codes if len(row.codes) < 6 else sorted(set(row.codes), key=str)
    listed = ", ".join("none" if code is None else str(code) for code in codes)
    return [
        row.scenario,
        row.injected,
        row.expected,
        listed,
        f"{row.seconds:.1f}",
        row.message[:140] + ("…" if len(row.message) > 140 else ""),
        told or "–",
        difference,
        row.verdict,
    ]


def line(values: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(v.split()).replace("|", "\\|") for v in values) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=100, help="random kills in a row (default: 100; 0 leaves them out)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of moments, victims and damage (default: 0)")
    parser.add_argument("--only", action="append", metavar="WORDS", help="scenarios whose name holds WORDS; repeatable")
    parser.add_argument("--strategy", default="full_shard")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="scratch; kept (default: a temporary one, removed)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    args = parser.parse_args(argv)

    def wanted(name: str) -> bool:
        return not args.only or any(words in name for words in args.only)

    chosen = [s for s in ALL if wanted(s.name)]
    kills = args.kills if wanted(KILLS) else 0
    if not chosen and not kills:
        parser.error(f"no scenario holds {' or '.join(args.only)}: {', '.join([*(s.name for s in ALL), KILLS])}")
    # Asked to end, it still ends what it started and unmounts what it mounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        lab = Lab((args.folder or Path(temporary)).resolve(), args.ranks, args.strategy, args.seed)
        print(f"Faults: {settings(lab)}\n\n{line(HEAD)}\n{line(['---'] * len(HEAD))}", flush=True)
        for scenario in chosen:
            rows.append(lab.carry_out(scenario))
            print(line(cells(rows[-1])), flush=True)
        if kills:
            rows.append(random_kills(lab, kills))
            print(line(cells(rows[-1])), flush=True)
    failed = [row.scenario for row in rows if row.failed]
    known = [row.scenario for row in rows if row.problems and not row.failed]
    skipped = [row.scenario for row in rows if row.skipped]
    good = len(rows) - len(failed) - len(known) - len(skipped)
    print(
        f"\n{good} ok, {len(failed)} failed, {len(known)} known, {len(skipped)} skipped in {time.monotonic() - began:.0f} s"
    )
    for title, listed in (("failed", failed), ("known, to be mended", known), ("skipped", skipped)):
        if listed:
            print(f"{title}: {'; '.join(listed)}")
    mended = sorted(
        {name for name, _ in KNOWN} & {row.scenario for row in rows if not row.problems and not row.skipped}
    )
    if mended:
        print(f"no longer seen, take off the list KNOWN if mended: {'; '.join(mended)}")
    if args.json:
        values = [{**asdict(row), "verdict": row.verdict, "failed": row.failed} for row in rows]
        args.json.write_text(json.dumps(values, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
