"""The `frontier` command: a table of verbs. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

VERBS: dict[str, tuple[str, str]] = {
    "pretrain": ("frontier.train.command:main", "pretrain a model from a config; resumes by itself"),
    "probe": (
        "frontier.probe.command:main",
        "evaluate a frozen encoder: linear, MLP, kNN, k-means, maps; with baselines",
    ),
    "evaluate": (
        "frontier.evaluate:main",
        "measure a run on a held-out split by what its family learns, with baselines",
    ),
    "export": (
        "frontier.export.command:main",
        "write a checkpoint's weights for others to load: safetensors, hf, timm, croma",
    ),
    "import": ("scale_alibi.croma_import:main", "CROMA's released weights as a checkpoint to probe or train on from"),
    "doctor": ("frontier.doctor.command:main", "check node, ranks and environment; measure this machine for `plan`"),
    "plan": (
        "frontier_profiling.predict.command:main",
        "predict memory, time, energy and cost of a run; rank strategies",
    ),
    "report": ("frontier_profiling.report.command:main", "one self-contained report of one or several runs"),
    "sweep": (
        "frontier_profiling.sweep.command:main",
        "a scaling study: measured here, submitted to Slurm, or predicted",
    ),
    "submit": ("frontier.submit.command:main", "check a run, render a site's job script for it, submit it"),
    "shards": ("data_prep.command:main", "write, verify and describe HDF5 shards"),
}
"""verb -> (module:function taking argv and returning an exit code, one line of help)"""


def usage() -> str:
    width = max(map(len, VERBS))
    lines = ["usage: frontier VERB …    (frontier VERB --help tells the rest)", "", "verbs:"]
    lines += [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    lines += ["", "exit codes: 0 done, 2 the input is wrong, 75 a passing failure, 85 checkpointed: requeue me"]
    return "\n".join(lines)


def _unknown(verb: str) -> str:
    import difflib

    near = difflib.get_close_matches(verb, VERBS, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the verbs are {', '.join(VERBS)}"
    return f"frontier: unknown verb '{verb}': {hint}"


def complain(verb: str, error: Exception) -> None:
    """The one line of an error."""
    print(f"frontier {verb}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code. A `UserError` becomes one line on stderr."""
    from frontier.errors import EXIT_TRANSIENT, UserError

    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except UserError as error:
        complain(argv[0], error)
        return error.exit_code
    except BrokenPipeError:  # `frontier … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_TRANSIENT
    except KeyboardInterrupt:
        print("frontier: interrupted", file=sys.stderr)
        return 130


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(), flush=True)
        return 0
    if argv[0] in ("-V", "--version"):
        from frontier import __version__

        print(f"frontier {__version__}")
        return 0
    from frontier.errors import EXIT_USER

    verb, *rest = argv
    if verb not in VERBS:
        print(_unknown(verb), file=sys.stderr)
        return EXIT_USER
    target, function = VERBS[verb][0].split(":")
    return getattr(importlib.import_module(target), function)(rest)


if __name__ == "__main__":
    sys.exit(main())
