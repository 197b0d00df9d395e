"""`frontier doctor`: alone, under torchrun, srun or mpiexec, or on `--ranks N` of this machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from frontier.arguments import Parser
from frontier.doctor.checks import Check
from frontier.errors import EXIT_OK, EXIT_TRANSIENT, UserError


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="frontier doctor",
        description="Check this node, or all nodes of a job: devices, memory, products, collectives, file systems, environment variables, versions, "
        "clocks. Every line is OK, WARNING or ERROR with the number behind it and the mend.",
        epilog="exit codes: 0 no ERROR, 75 at least one ERROR (mend it, or leave the node out, and try again), 2 the command itself is wrong",
    )
    parser.add_argument("--json", action="store_true", help="a list of {check, status, text, value, unit, mend, hosts}")
    parser.add_argument("--ranks", type=int, metavar="N", help="start N ranks on this machine (no launcher needed)")
    parser.add_argument("--quick", action="store_true", help="smaller tensors and files, fewer sizes")
    parser.add_argument(
        "--write-system",
        type=Path,
        metavar="FILE",
        help="measure this machine as a system description for `frontier plan --system FILE`; on a CPU one rank is one device, and without --ranks "
        "there are as many as cores",
    )
    parser.add_argument(
        "--local",
        type=Path,
        metavar="PATH",
        default=Path(folder) if (folder := os.environ.get("FRONTIER_LOCAL")) else None,
        help="node-local storage of every node, looked at as well ($FRONTIER_LOCAL, or none)",
    )
    parser.add_argument(
        "--bad-nodes",
        type=Path,
        metavar="FILE",
        help="write the nodes that a job should leave out, one a line with the reason after it; empty where there is none, or where more "
        "than a third look bad",
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the numbers of every node, as JSON")
    parser.add_argument("--timeout", type=int, default=60, metavar="S", help="bound of one check, seconds (60)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    args = _parser().parse_args(argv)
    if args.timeout < 1:
        raise UserError(f"--timeout {args.timeout}: give a positive number of seconds")
    if args.write_system is not None:
        _check_target(args.write_system)
    from frontier.launch.ranks import discover

    ranks = discover()
    if args.ranks is not None and ranks.source != "alone":
        raise UserError(
            f"--ranks is for a start without a launcher, this one was started by {ranks.source}: leave it out"
        )
    if args.ranks is not None and args.ranks < 1:
        raise UserError(f"--ranks {args.ranks}: give a positive number")
    if args.write_system is not None and ranks.nodes > 1:
        raise UserError(f"--write-system describes one node, this job has {ranks.nodes}: start it on one")
    count = args.ranks or (_devices_here() if args.write_system is not None and ranks.source == "alone" else 1)
    if count > 1:
        from frontier.launch.local import run_local

        command = [sys.executable, "-m", "frontier", "doctor", f"--timeout={args.timeout}"]
        command += ["--json"] * args.json + ["--quick"] * args.quick
        for name in ("write_system", "local", "bad_nodes", "table"):
            if (value := getattr(args, name)) is not None:
                command.append(f"--{name.replace('_', '-')}={value}")
        return run_local(command, count)

    # What the store's clients say about each other is said by the doctor, in one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from frontier.doctor.examine import examine
    from frontier.doctor.visit import Options

    options = Options(args.quick, args.timeout, args.write_system, args.local, args.bad_nodes, args.table)
    with _Output(as_json=args.json, main=ranks.is_main, source=f"rank {ranks.rank}") as output:
        return examine(ranks, output, options)


def _check_target(path: Path) -> None:
    """Before minutes are spent on what cannot be written."""
    if path.is_dir():
        raise UserError(f"--write-system {path} is a folder: name a file, such as {path / 'local.yaml'}")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--write-system {path}: name a .yaml file, as `frontier plan --system` takes it")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"--write-system {path}: {path.parent} is no folder that can be written to ({error.strerror})"
        ) from None


def _devices_here() -> int:
    """Ranks of this node: its accelerators, or its cores."""
    import torch

    from frontier.doctor.environment import cores

    return torch.accelerator.device_count() if torch.accelerator.is_available() else cores()


class _Output:
    """Collects checks; what libraries print meanwhile goes to stderr, so that the report alone is on stdout.

    Rank 0 prints the report, another rank only what ended it.
    """

    def __init__(self, *, as_json: bool, main: bool, source: str) -> None:
        self.checks: list[Check] = []
        self.table: list[str] = []
        self.as_json, self.main, self.source = as_json, main, source

    def __enter__(self) -> _Output:
        sys.stdout.flush()
        self._stdout = os.dup(1)
        os.dup2(2, 1)
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        os.dup2(self._stdout, 1)
        os.close(self._stdout)

    def abort(self, words: str) -> None:
        """Report and end the process, from any thread: the main one may not be interruptible."""
        if self.main:
            self._print()
        else:
            print(f"frontier doctor: {self.source}: {words}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(EXIT_TRANSIENT)

    def end(self) -> int:
        """Rank 0 prints the report; returns the exit code."""
        self._print()
        return EXIT_TRANSIENT if any(c.status == "ERROR" for c in self.checks) else EXIT_OK

    def _print(self) -> None:
        from frontier.doctor.checks import lines

        if self.as_json:
            text = json.dumps([c.as_dict() for c in self.checks], indent=1, allow_nan=False)
        else:
            text = "\n".join([*lines(self.checks), *self.table])
        with os.fdopen(os.dup(self._stdout), "w") as stdout:
            stdout.write(text + "\n")
