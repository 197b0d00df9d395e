"""`frontier sweep STUDY`: one question, one grid, one folder; measured here, submitted to Slurm, or predicted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from frontier.arguments import Parser
from frontier.errors import EXIT_OK, EXIT_REQUEUE, EXIT_TRANSIENT, UserError

if TYPE_CHECKING:
    from frontier_profiling.rows import Row
    from frontier_profiling.sweep.grid import Point
    from frontier_profiling.sweep.study import Study

EXIT_INTERRUPTED = 130
RETRIES = ("oom", "timeout", "failed", "changed")


def parser() -> argparse.ArgumentParser:
    out = Parser(
        prog="frontier sweep",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run a scaling study: every point of a grid of models, strategies, sizes and settings.\n\n"
        "measured   each point is a run of `frontier pretrain`, on this machine's ranks or, inside a Slurm allocation, by srun\n"
        "submitted  Slurm jobs that do so; call again (or with --collect) to gather what they left\n"
        "predicted  no hardware: rows.json and the report alone, no folder for a point\n\n"
        "OUT/ holds study.yaml, rows.json, rows.csv, report.html and points/ID/{point.json,config.yaml,status.json,log.txt,run/}.\n"
        "Killed at any moment, the same command goes on. Out of memory and timeouts are results, not errors.",
        epilog="exit codes: 0 every point has its result (or waits in a job), 2 the input is wrong, 75 some points failed "
        "(--retry failed), 85 stopped by a signal, 130 by Ctrl-C: the same command goes on",
    )
    out.add_argument(
        "study",
        nargs="?",
        metavar="STUDY",
        help="a YAML file, the name of a shipped study, or the folder of one that was begun",
    )
    out.add_argument("--list", action="store_true", help="the shipped studies and the questions they answer")
    out.add_argument("--out", metavar="DIR", help="default runs/studies/NAME, or the folder given as STUDY")
    out.add_argument("--mode", choices=("measured", "submitted", "predicted"), help="instead of the study's own")
    out.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="such as steps=10 grid.nodes=[1,2] system=lumi, or a key of a run's config: data.shards=FOLDER",
    )  # fmt: skip
    out.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="MODEL/STRATEGY/NODES",
        help="points to run, * for anything (vit_3b, */hybrid_*/8), or their ids",
    )  # fmt: skip
    out.add_argument(
        "--dry-run", action="store_true", help="print the points (submitted: and the job scripts) and stop"
    )
    out.add_argument(
        "--retry",
        metavar="STATUS,…",
        default="",
        help=f"run points again that ended so: {', '.join(RETRIES)} (changed: under another config)",
    )
    out.add_argument("--collect", action="store_true", help="submitted: gather results, submit nothing")
    out.add_argument(
        "--jobs-per-study", choices=("one", "many"), default="one",
        help="submitted: one job for all points of a number of nodes, or many: a job a point",
    )  # fmt: skip
    out.add_argument(
        "--site",
        metavar="NAME",
        help="submitted: header, modules, environment and srun's words of a site: frontier, lumi, …, or a YAML file; kept in "
        "study.yaml (job.site)",
    )
    out.add_argument(
        "--sbatch-args",
        metavar="ARGS",
        help='submitted: such as "-A abc123 -p batch", over the site\'s (job.sbatch_args)',
    )
    out.add_argument(
        "--srun-args", metavar="ARGS", help='after the site\'s, such as "-c7 --gpus-per-task=1" (job.srun_args)'
    )
    out.add_argument(
        "--job-setup", metavar="FILE", help="submitted: shell lines that run after the site's modules (job.setup)"
    )
    out.add_argument("--no-report", action="store_true", help="rows.json and rows.csv only")
    out.add_argument("--json", action="store_true", help="print rows.json on standard output")
    return out


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns the exit code. Raises UserError."""
    options = parser().parse_args(joined(argv))
    if options.list:
        print(listing(options.json))
        return EXIT_OK
    if not options.study and (options.set or options.only):
        raise UserError("name a study, and before --set and --only: they take all words that follow")
    if not options.study:
        raise UserError("name a study: a YAML file, or one of `frontier sweep --list`")
    retry = [word for word in options.retry.split(",") if word]
    for word in retry:
        if word not in RETRIES:
            raise UserError(f"--retry {word}: choose among {', '.join(RETRIES)}")

    from frontier_profiling.sweep.grid import points, select
    from frontier_profiling.sweep.study import find, read_study

    path = find(options.study)
    study = read_study(path, [*options.set, *job_settings(options)], options.mode)
    if study.mode != "submitted" and (options.collect or options.job_setup or options.sbatch_args or options.site):
        raise UserError(
            f"--collect, --site, --sbatch-args and --job-setup go with --mode submitted, the study is {study.mode}"
        )
    if study.mode == "predicted" and (retry or options.srun_args):
        raise UserError("--retry and --srun-args are for points that run, the study is predicted")
    out = (
        Path(options.out)
        if options.out
        else path.parent
        if path.name == "study.yaml"
        else Path("runs/studies") / study.name
    )
    out = out.absolute()
    found = points(study, ranks_per_node(study))
    chosen = select(found, options.only)
    if options.dry_run:
        print(plan(study, chosen, out, options))
        return EXIT_OK
    return run(study, out, found, chosen, retry, options)


def joined(argv: Sequence[str]) -> list[str]:
    """`--srun-args -c7` as one word with =: argparse takes a value that begins with - and has no space for an option."""
    words, out = iter(argv), []
    for word in words:
        value = next(words, None) if word in ("--sbatch-args", "--srun-args") else None
        out.append(word if value is None else f"{word}={value}")
    return out


def job_settings(options: argparse.Namespace) -> list[str]:
    """The options about jobs as overrides of the study."""
    import json

    given = {"job.site": options.site, "job.sbatch_args": options.sbatch_args, "job.srun_args": options.srun_args}
    if options.job_setup:
        try:
            given["job.setup"] = Path(options.job_setup).read_text()
        except OSError as error:
            raise UserError(f"--job-setup {options.job_setup}: {error.strerror}: give a file of shell lines") from None
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]


def ranks_per_node(study: Study) -> int:
    """The study's, else the devices of the site's node where one is named, else of the system's."""
    if study.ranks_per_node is not None or study.grid.ranks is not None:
        return study.ranks_per_node or 1
    if study.job.site is not None and study.mode != "predicted":
        from frontier.submit.site import load_site

        return load_site(study.job.site).ranks_per_node
    from frontier_profiling.predict.system import load_system

    return load_system(study.system).node.devices


def run(
    study: Study,
    out: Path,
    found: Sequence[Point],
    chosen: Sequence[Point],
    retry: Sequence[str],
    options: argparse.Namespace,
) -> int:
    """Run the chosen points and write what is known of all of the study's."""
    from frontier_profiling.sweep import results
    from frontier_profiling.sweep.execute import NodeLost, Stopped

    def say(text: str) -> None:
        print(text, file=sys.stderr if options.json else sys.stdout, flush=True)

    code = EXIT_OK
    if study.mode == "predicted":
        from frontier_profiling.sweep.predicted import predict_all

        kept = results.predicted_before(out, found)
        rows = predict_all(study, [point for point in found if point in chosen or point in kept])
        results.write_study(study, out)
    else:
        from frontier_profiling.sweep.measured import lay_out, measure

        results.write_study(study, out)
        lay_out(study, out, chosen, retry)
        try:
            if study.mode == "submitted":
                from frontier_profiling.sweep.slurm import collect, submit

                collect(study, out, found)
                if not options.collect:
                    submit(study, out, chosen, options.jobs_per_study, say)
            else:
                measure(study, out, chosen, say)
        except NodeLost as lost:
            print(lost, file=sys.stderr, flush=True)  # jobs/common.sh reads which node it was
            say("a node is lost: the same command goes on, on other nodes")
            code = EXIT_REQUEUE
        except Stopped as stop:
            say(f"stopped by {stop}: the same command goes on")
            code = EXIT_REQUEUE
        except KeyboardInterrupt:
            say("interrupted: the same command goes on")
            code = EXIT_INTERRUPTED
        rows = results.measured_rows(study, out, found)
    own = {results.place_in_grid(point) for point in chosen}
    shown = [row for row in rows if results.place_in_grid(row) in own] if study.mode == "predicted" else rows
    everything = results.write_rows(study, out, rows)
    said = "" if options.no_report else results.report(out)
    if code == EXIT_OK and any(row.status == "failed" for row in rows):
        code = EXIT_TRANSIENT
    if options.json:
        print(results.as_json(study, everything))
        if said:
            print(said, file=sys.stderr)
        return code
    show(study, out, shown, said)
    return code


def show(study: Study, out: Path, rows: Sequence[Row], said: str) -> None:
    """The study on a terminal."""
    from frontier_profiling.sweep import results

    print(f"\n{study.title}: {study.question}\n\n{results.table(rows)}\n")
    for row in [row for row in rows if row.status == "failed"][:10]:
        print(f"failed: {row.model} {row.strategy} on {row.devices}: {row.error}")
    reasons = {row.error for row in rows if row.status == "skipped"}
    for reason in sorted(reasons)[:5]:
        print(f"skipped: {reason}")
    print(results.counts(rows))
    print(said or f"wrote {out / 'rows.json'} and rows.csv")


def plan(study: Study, chosen: Sequence[Point], out: Path, options: argparse.Namespace) -> str:
    """What a call would do."""
    import json

    from frontier_profiling.sweep.grid import warmup

    if options.json:
        return json.dumps(
            {
                "study": study.as_dict(),
                "out": str(out),
                "points": [{"id": p.id, **p.axes(), "skip": p.skip} for p in chosen],
            },
            indent=1,
        )
    width = max(len(point.id) for point in chosen)
    lines = [f"{study.name}, {study.mode}: {study.question}", f"{len(chosen)} points into {out}", ""]
    for point in chosen:
        what = point.skip and f"skipped: {point.skip}"
        what = (
            what
            or f"{point.ranks} ranks, global batch {point.global_batch} = {point.ranks} x {point.accumulation} x {point.micro_batch}"
        )
        lines.append(f"{point.id:<{width}}  {what}")
    live = [point for point in chosen if not point.skip]
    if study.mode != "predicted":
        lines += [
            "",
            f"at most {len(live)} x {study.time_limit_s} s, {warmup(study.steps)} + {study.steps} steps a point",
        ]
    if study.mode == "submitted":
        from frontier_profiling.sweep.slurm import batches

        for batch in batches(study, live, options.jobs_per_study):
            lines += ["", f"--- sbatch {study.job.sbatch_args} jobs/{batch.name}.sh", batch.script(study, out).rstrip()]
    return "\n".join(lines)


def listing(as_json: bool) -> str:
    """The shipped studies."""
    import json

    from frontier_profiling.sweep.study import read_study, shipped

    studies = [read_study(path) for path in shipped()]
    if as_json:
        return json.dumps(
            [s.model_dump(include={"name", "title", "question", "mode", "system"}) for s in studies], indent=1
        )
    width = max(len(study.name) for study in studies)
    return "\n".join(f"{study.name:<{width}}  {study.mode:<9}  {study.question}" for study in studies)
