"""`frontier submit CONFIG --site S --nodes N --time T`: check a run, make its job script, hand it to the site's scheduler."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frontier.arguments import Parser
from frontier.errors import EXIT_OK, TransientError, UserError

RECORD = "submitted.jsonl"
"""In RUN/jobs: a line a job."""
OURS = re.compile(
    r"-[NtApJodaW]|--(nodes|time|account|partition|job-name|output|dependency|signal|array)\b|(-l)?(select|walltime)="
)
"""Words for the scheduler that the script already says."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="frontier submit",
        description="Check a run as `frontier pretrain` would on these nodes, render the job script of a site, and submit it. "
        "Settings (environment, staging, doctor, requeue) come from jobs/site.env and the environment.",
        epilog="exit codes: 0 submitted, 2 the input is wrong or the scheduler refuses, 75 the scheduler does not answer",
    )
    parser.add_argument("config", help="YAML file, or the name of a shipped one: mae_vit_3b (jobs/configs/)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="such as train.steps=100")
    parser.add_argument("--site", metavar="S", help="a shipped site or a YAML file of yours; default: FRONTIER_SITE")
    parser.add_argument("--nodes", type=int, required=True, metavar="N")
    parser.add_argument("--time", required=True, metavar="T", help="limit of the job: minutes, HH:MM:SS or D-HH:MM:SS")
    parser.add_argument("--account", metavar="A", help="allocation; default: SBATCH_ACCOUNT")
    parser.add_argument(
        "--partition", metavar="P", help="partition or queue; default: SBATCH_PARTITION, then the site's"
    )
    parser.add_argument("--name", help="of the job and of its script; default: the config's")
    parser.add_argument("--chain", type=int, default=1, metavar="K", help="K jobs, each after the one before it and only while the run is unfinished; they do not requeue themselves")  # fmt: skip
    parser.add_argument("--after", metavar="JOB", help="start when this job has ended, however")
    parser.add_argument("--sbatch-args", default="", metavar="WORDS", help='further words of sbatch (qsub on a PBS site), such as "--qos=debug"')  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the script to stdout, what it would do to stderr, and stop; needs no scheduler")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what was submitted as JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    args = _parser().parse_intermixed_args(_joined(argv))
    if args.nodes < 1 or args.chain < 1:
        raise UserError("--nodes and --chain: give positive numbers")
    extra = split_words("--sbatch-args", args.sbatch_args)
    if any(OURS.match(word) for word in extra):
        raise UserError(
            f"--sbatch-args '{args.sbatch_args}': say nodes, time, account, partition, name and --after by the options of this command"
        )
    from frontier.submit.render import launch_line, script

    job = _job(args, argv)
    from frontier.submit.check import check_run

    words = [*job.overrides, f"run.dir={job.run}"]
    if shards := job.settings["FRONTIER_SHARDS"]:
        words.append(f"data.shards={shards}")
    found = check_run(job.config, words, job.ranks, job.site.device_memory_gib)
    text, launch = script(job), launch_line(job)
    facts = _facts(job, found, launch)
    if args.dry_run:
        if args.json:
            print(json.dumps({**facts, "script_text": text}, indent=1))
        else:
            print(text, end="", flush=True)
        print("\n".join(_lines(facts)), file=sys.stderr)
        return EXIT_OK
    facts["jobs"] = _submit(job, text, args.chain, args.after, extra)
    print(json.dumps(facts, indent=1) if args.json else "\n".join([*_lines(facts), *_next_steps(job, facts["jobs"])]))
    return EXIT_OK


def _joined(argv: Sequence[str]) -> list[str]:
    """`--sbatch-args --qos=debug` as one word: argparse would take the second for an option of its own."""
    out = list(argv)
    if "--sbatch-args" in out[:-1]:
        at = out.index("--sbatch-args")
        out[at : at + 2] = ["=".join(out[at : at + 2])]
    return out


def split_words(name: str, text: str) -> list[str]:
    """Words as a shell splits them. Raises UserError for a quote that is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{name} {text}: {error}: close it") from None


def _job(args: argparse.Namespace, argv: Sequence[str]) -> Any:
    """The `Job` that the words ask for. Raises UserError where the site would not take it."""
    from frontier.submit.check import check_time
    from frontier.submit.render import Job, seconds_of
    from frontier.submit.settings import queue_variable, read_settings
    from frontier.submit.site import load_site

    seconds = seconds_of(args.time)
    settings = read_settings(args.site)
    site = load_site(settings["FRONTIER_SITE"])
    account = args.account or settings.get("SBATCH_ACCOUNT")
    partition = args.partition or settings.get(queue_variable(site)) or site.partition
    settings = {name: value for name, value in settings.items() if name.startswith("FRONTIER_")}
    if site.account and not account:
        raise UserError(f"{site.name} charges an account: pass --account, or export SBATCH_ACCOUNT (jobs/site.env)")
    for option, word in (("--account", account), ("--partition", partition)):
        if word and not re.fullmatch(r"[\w.,@+:-]+", word):
            raise UserError(f"{option} {word}: give one word, as the scheduler lists it")
    check_time(site, args.nodes, partition, seconds)
    per_node, used = _number(settings, "FRONTIER_RANKS_PER_NODE"), _number(settings, "FRONTIER_NODES")
    if used and used > args.nodes:
        raise UserError(f"FRONTIER_NODES={used}, the job has {args.nodes}: pass --nodes {used}")
    name = args.name or re.sub(r"[^\w.-]+", "_", Path(args.config).stem)
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name):
        raise UserError(f"--name {name}: use letters, digits, '_', '-' and '.'")
    run, overrides = _words(args, settings)
    settings |= {"FRONTIER_SITE": site.name, "FRONTIER_RUN": run, "FRONTIER_OVERRIDES": ""}
    settings["FRONTIER_RANKS_PER_NODE"] = str(per_node or site.ranks_per_node)
    if args.chain > 1:
        settings["FRONTIER_REQUEUE"] = "0"
    said = [word for word in argv if word not in ("--dry-run", "--json")]
    typed = shlex.join(["frontier", "submit", *said]).replace("\n", " ")
    return Job(
        site, name, args.nodes, per_node or site.ranks_per_node, seconds, account, partition, run, args.config,
        tuple(overrides), settings, Path.cwd(), typed,
    )  # fmt: skip


def _words(args: argparse.Namespace, settings: dict[str, str]) -> tuple[str, list[str]]:
    """(run folder, the other overrides): the settings' words, then the command's. FRONTIER_SHARDS becomes what the run will read,
    and the script passes it on."""
    from frontier.config.load import load_config

    words = split_words("FRONTIER_OVERRIDES", settings["FRONTIER_OVERRIDES"])
    words = [f"data.shards={settings['FRONTIER_SHARDS']}"] * bool(settings["FRONTIER_SHARDS"]) + words + args.overrides
    words = [f"run.dir={settings['FRONTIER_RUN']}"] * bool(settings["FRONTIER_RUN"]) + words
    config = load_config(args.config, words)
    settings["FRONTIER_SHARDS"] = config.data.shards or ""
    carried = ("run.dir=", "data.shards=") if config.data.shards else ("run.dir=",)
    return config.run.dir, [word for word in words if not word.startswith(carried)]


def _number(settings: dict[str, str], name: str) -> int | None:
    text = settings[name]
    if text and not re.fullmatch(r"[1-9]\d*", text):
        raise UserError(f"{name}={text}: give a positive number, or leave it empty (jobs/site.env)")
    return int(text) if text else None


def _facts(job: Any, found: Any, launch: str) -> dict[str, Any]:
    from frontier.submit.render import hms

    figures = found.figures
    return {
        "site": job.site.name,
        "run": job.run,
        "script": str(job.path),
        "account": job.account,
        "partition": job.partition,
        "nodes": job.nodes,
        "ranks": job.ranks,
        "ranks_per_node": job.ranks_per_node,
        "time": hms(job.seconds),
        "launch": launch,
        "mesh": figures["mesh"],
        "batch": figures["batch"],
        "steps": figures["steps"],
        "from_step": found.from_step,
        "images": figures["images"],
        "flops": figures["flops"],
        "memory_gib": figures["memory_gib"],
        "host_memory_gib": figures["host_memory_gib"],
        "device_memory_gib": job.site.device_memory_gib,
        "provenance": figures["provenance"],
        "warnings": found.warnings,
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    mesh, batch, device = facts["mesh"], facts["batch"], facts["device_memory_gib"]
    size = f"{facts['nodes']} node(s), {facts['ranks']} ranks of {facts['ranks_per_node']} a node"
    data_ranks = batch["global"] // batch["rank"]
    start = f", from step {facts['from_step']}" if facts["from_step"] else ""
    return [
        f"job      {size} on {facts['site']}, {facts['time']}, partition {facts['partition'] or 'of the scheduler'}, account {facts['account'] or 'none'}",
        f"run      {facts['run']}: {facts['steps']} steps{start}, {facts['images']:,} images, {facts['flops']:.3g} FLOP (predicted)",
        f"mesh     {mesh['strategy']} = replicate {mesh['replicate']} x shard {mesh['shard']} x tensor {mesh['tensor']}, batch {batch['global']} = {data_ranks} data ranks x {batch['accumulation']} x {batch['micro']}",
        f"memory   {facts['memory_gib']['peak']:.3g} GiB a rank (predicted), the device has {f'{device:.2f}' if device else 'an amount not known here'}",
        f"launch   {facts['launch']}",
        f"script   {facts['script']}",
        *(f"WARNING  {line}" for line in facts["warnings"]),
    ]


def _submit(job: Any, text: str, chain: int, after: str | None, extra: list[str]) -> list[dict[str, Any]]:
    """Write the script and hand it over; a row a job."""
    from frontier.claim import HeldError, claimed
    from frontier.submit.queue import alive, submit

    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{job.folder} cannot be made ({error.strerror}): give another run.dir") from None
    try:
        with claimed(job.folder, ".submitting", "`frontier submit`"):
            record = job.folder / RECORD
            known = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
            live = alive(job, [row["job"] for row in known if row["site"] == job.site.name])
            last = next(reversed(live), None)
            if last is not None and after != last:
                raise UserError(
                    f"job {last} of run {job.run} is {live[last]}: wait for it, cancel it, or queue this one behind it with --after {last}"
                )
            job.path.write_text(text)
            rows: list[dict[str, Any]] = []
            for _ in range(chain):
                # A job that ended well leaves nothing to do: those behind it are dropped. Each waits for all before it, since a
                # dropped one counts as failed.
                depend = (
                    f"afternotok:{':'.join(row['job'] for row in rows)}"
                    if rows
                    else f"afterany:{after}"
                    if after
                    else ""
                )
                try:
                    job_id = submit(job, extra, depend)
                except UserError as error:
                    if not rows:
                        raise
                    raise type(error)(
                        f"{error} ({', '.join(row['job'] for row in rows)} before it stay submitted)"
                    ) from None
                row = {"job": job_id, "log": str(job.log(job_id)), "depend": depend, "site": job.site.name}
                row |= {"name": job.name, "nodes": job.nodes, "seconds": job.seconds, "time": time.time()}
                with record.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                rows.append(row)
            return rows
    except HeldError as error:
        raise TransientError(str(error)) from None


def _next_steps(job: Any, rows: list[dict[str, Any]]) -> list[str]:
    first, ids = rows[0]["job"], [row["job"] for row in rows]
    stop = f"touch {shlex.quote(job.run + '/STOP')}"
    slurm = job.site.scheduler == "slurm"
    out = [f"job {row['job']}{': ' + row['depend'] if row['depend'] else ''}, log {row['log']}" for row in rows]
    if not slurm:
        again = (
            "at its time limit the next job of the chain goes on"
            if len(ids) > 1
            else f"when it has saved and ended: qsub {shlex.quote(str(job.path))}"
        )
        return [
            *out,
            f"watch    qstat -was1 {' '.join(ids)}",
            f"stop     {stop}     (saves first)",
            f"go on    {again}",
        ]
    requeues = job.settings["FRONTIER_REQUEUE"] == "1"
    usr1 = f"scancel --signal=USR1 --batch {first}"
    return [
        *out,
        f"watch    squeue --jobs={','.join(ids)}; tail -F {shlex.quote(rows[0]['log'])}",
        f"stop     {stop}     (saves first; remove the file to go on)",
        f"save     {usr1}     (saves, ends{' and queues itself again' if requeues else ''})",
        "go on    "
        + ("by itself at the time limit; " if requeues else "the next job of the chain; " if len(ids) > 1 else "")
        + "else the same command again",
    ]
