"""`frontier report DIR…`: a report of one run or study, or one comparison of several runs or of two studies."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from frontier.arguments import Parser
from frontier.errors import EXIT_OK, UserError

NAMES = ("report.html", "report.md", "report.csv", "report.json")


def parser() -> argparse.ArgumentParser:
    out = Parser(
        prog="frontier report",
        description="Write report.html (one self-contained file), report.md, report.csv and report.json of a run, "
        "or one comparison of several runs; of a study (`frontier sweep`) the same, and of two studies a comparison point by point.",
    )
    out.add_argument(
        "runs",
        nargs="+",
        metavar="DIR",
        help="run folder(s): the `run.dir` of `frontier pretrain`; or one or two folders of a study, or files of rows (`frontier plan --json`)",
    )
    out.add_argument("--out", metavar="DIR", help="where to write (default: the run; for several, their common parent)")
    out.add_argument("--data", metavar="SHARDS", help="shards for the sample pictures, where they have moved")
    out.add_argument("--no-pictures", action="store_true", help="leave the sample pictures out (loads no model)")
    out.add_argument("--json", action="store_true", help="print report.json on standard output")
    return out


def main(argv: Sequence[str]) -> int:
    """Run the verb; returns the exit code. Raises UserError where a folder is not a run or nothing can be
    written.
    """
    options = parser().parse_args(list(argv))
    folders = list(dict.fromkeys(Path(folder) for folder in options.runs))
    if len({folder.resolve() for folder in folders}) < len(options.runs):
        raise UserError("a run folder is given twice: name each run once")
    studies = [is_study(folder) for folder in folders]
    if any(studies):
        return study(folders, studies, options)
    if options.data and (len(folders) > 1 or options.no_pictures):
        raise UserError("--data is for the pictures of one run: give one DIR, and no --no-pictures")

    from frontier_profiling.report.read import read_run

    runs = [read_run(folder) for folder in folders]
    target = Path(options.out) if options.out else folders[0] if len(runs) == 1 else common_parent(folders)
    texts, verdict = one_run(runs[0], options) if len(runs) == 1 else several_runs(runs)
    return deliver(target, texts, verdict, options)


def is_study(path: Path) -> bool:
    """A folder with study.yaml or rows.json, or a JSON file of rows."""
    if path.is_dir():
        return (path / "rows.json").is_file() or (path / "study.yaml").is_file()
    return path.is_file() and path.suffix == ".json"


def study(folders: Sequence[Path], studies: Sequence[bool], options: argparse.Namespace) -> int:
    """Report one study or compare two. Raises UserError where runs are among them."""
    if not all(studies):
        run = folders[studies.index(False)]
        raise UserError(f"{run} is no study: a report is of runs or of studies, not of both")
    if options.data or options.no_pictures:
        raise UserError("--data and --no-pictures are for the pictures of a run: a study has none")
    from frontier_profiling.report.study.page import reports

    target = Path(options.out) if options.out else None
    if target is None:
        target = (
            (folders[0] if folders[0].is_dir() else folders[0].parent) if len(folders) == 1 else common_parent(folders)
        )
    return deliver(target, *reports(folders), options)


def deliver(target: Path, texts: dict[str, str], verdict: str, options: argparse.Namespace) -> int:
    """Write the files, and say on standard output what they say."""
    write(target, texts)
    if options.json:
        print(texts["report.json"], end="")
    else:
        print(verdict)
        print(f"wrote {target / 'report.html'} (and report.md, report.csv, report.json)")
    return EXIT_OK


def one_run(run, options: argparse.Namespace) -> tuple[dict[str, str], str]:
    """File name -> text of the report of one run, and its verdict."""
    from frontier_profiling.report import records, render
    from frontier_profiling.report.pictures import Pictures, sample_pictures

    pictures = (
        [Pictures(unavailable="left out on request (--no-pictures)")]
        if options.no_pictures
        else sample_pictures(run, options.data)
    )
    record = records.run_record(run, pictures)
    context = render.run_context(run, record, pictures)
    texts = {
        "report.html": render.to_html("run.html.j2", context, render.run_drawings(run)),
        "report.md": render.to_markdown("run.md.j2", context),
        "report.csv": records.to_csv([run]),
        "report.json": records.to_json(record),
    }
    return texts, record["verdict"]


def several_runs(runs) -> tuple[dict[str, str], str]:
    """File name -> text of the comparison of several runs, and its verdict."""
    from frontier_profiling.report import records, render

    runs = records.with_distinct_names(runs)
    record = records.comparison_record(runs)
    context = render.comparison_context(runs, record)
    texts = {
        "report.html": render.to_html("comparison.html.j2", context, render.comparison_drawings(runs)),
        "report.md": render.to_markdown("comparison.md.j2", context),
        "report.csv": records.to_csv(runs),
        "report.json": records.to_json(record),
    }
    return texts, record["verdict"]


def common_parent(folders: Sequence[Path]) -> Path:
    """Where a comparison is written by default. Raises UserError where that is a run itself or the file
    system's root.
    """
    parent = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    taken = any((parent / name).exists() for name in ("metrics.jsonl", "rows.json"))
    if parent == Path(parent.anchor) or taken:
        raise UserError(f"the runs' common parent {parent} is no place for a comparison: say where with --out DIR")
    return parent


def write(target: Path, texts: dict[str, str]) -> None:
    """Write the files, each by rename, so that a reader never sees half a report. Raises UserError where it
    cannot.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            part = target / f".{name}.{os.getpid()}.part"
            part.write_text(texts[name], encoding="utf-8")
            part.replace(target / name)
    except OSError as error:
        raise UserError(f"cannot write the report to {target} ({error.strerror}): say where with --out DIR") from error
