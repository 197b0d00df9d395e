"""A site as bash, which the job scripts source, and as the tables of docs/sites.md: both made from jobs/sites/NAME.yaml.

python -m frontier.submit.shell my_site.yaml     # its bash, to read or to keep as jobs/sites/my_site.sh
python -m frontier.submit.shell --write          # every jobs/sites/NAME.sh and the tables of docs/sites.md
python -m frontier.submit.shell --check          # exit 1 where a file is not what its YAML makes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from frontier.errors import UserError
from frontier.submit.site import Partition, Site, Sourced, jobs_folder, load_site, shipped

BEGIN, END = "<!-- made from jobs/sites/*.yaml: begin -->", "<!-- made from jobs/sites/*.yaml: end -->"


def site_shell(site: Site) -> str:
    """Bash that defines SITE, SITE_ACCOUNT, SITE_DEVICE, SITE_RANKS_PER_NODE, SITE_LOCAL, SITE_MODULES, SITE_STEP, SITE_WRAP
    and the functions `site_environment` (batch shell, after the modules; wants JOB_ID and USER) and `site_once_a_node`.
    """
    head = [
        "# shellcheck shell=bash disable=SC2034,SC2054",
        f"# {site.title}. Made from {site.name}.yaml by `python -m frontier.submit.shell --write`: change that file instead.",
        *(f"#   {key}: {document}" for key, document in site.sources.items()),
        f"SITE={site.name}",
        f"SITE_ACCOUNT={int(site.account)}",
        f"SITE_DEVICE={site.device}",
        *_ranks(site),
        *([f"# {because(site.local_storage)}"] if site.local_storage else []),
        f"SITE_LOCAL={site.local_storage.text if site.local_storage else ''}",
        *_words("SITE_MODULES", site.modules),
        *_words("SITE_STEP", site.step),
        *_words("SITE_WRAP", site.container),
    ]
    notes = [f"  #   {line.text} ({because(line)})" for line in site.set_by_modules]
    if notes:
        notes.insert(0, "  # The modules have set, so that nothing here repeats it:")
    functions = [
        *_function("site_environment", site.environment, notes),
        "",
        *_function("site_once_a_node", site.once_a_node),
    ]
    return "\n".join([*head, "", *functions, ""])


def because(line: Sourced) -> str:
    return f"{line.source}: {line.why}" if line.why else line.source


def _ranks(site: Site) -> list[str]:
    if not site.count_devices:
        return [f"SITE_RANKS_PER_NODE={site.ranks_per_node}"]
    counted, unless = [], ""
    for line in site.count_devices:
        counted += [f"# {because(line)}", f"{unless}SITE_RANKS_PER_NODE=$({line.text}) || true"]
        unless = '[ -n "$SITE_RANKS_PER_NODE" ] || '
    return [*counted, f'[ "${{SITE_RANKS_PER_NODE:-0}}" -gt 0 ] || SITE_RANKS_PER_NODE={site.ranks_per_node}']


def _words(name: str, lines: Sequence[Sourced]) -> list[str]:
    if not lines:
        return [f"{name}=()"]
    return [f"{name}=(", *(f"  {line.text} # {because(line)}" for line in lines), ")"]


def _function(name: str, lines: Sequence[Sourced], notes: Sequence[str] = ()) -> list[str]:
    body = [text for line in lines for text in (f"  # {because(line)}", f"  {line.text}")]
    return [f"{name}() {{", *notes, *(body or ["  :"]), "}"]


def site_table(site: Site) -> str:
    """Markdown: what the site's scripts hold, each line with why and source."""
    parts = {
        "header": site.directives,
        "module": site.modules,
        "batch shell": site.environment,
        "once a node": site.once_a_node,
        "srun" if site.scheduler == "slurm" else "mpiexec": site.step,
        "container": site.container,
        "node's own disk": [site.local_storage] if site.local_storage else [],
        "ranks a node": site.count_devices,
        "to install": site.install,
        "set by modules": site.set_by_modules,
        "left out": site.left_out,
    }
    rows = [
        f"| {part} | {_cell(line.text, part != 'left out')} | {_cell(line.why)} | {_cell(line.source)} |"
        for part, lines in parts.items()
        for line in lines
    ]
    ranks = f"{site.ranks_per_node} ranks a node" + (f" of {site.cores_per_rank} cores" if site.cores_per_rank else "")
    return "\n".join(
        [
            f"### `{site.name}`: {site.title}",
            "",
            f"{site.tested}",
            "",
            f"{'Slurm' if site.scheduler == 'slurm' else 'PBS'}, {ranks}, device `{site.device}`"
            + (f", `{site.queue_flag} {site.partition}` by default." if site.partition else "."),
            *(f"- `{name}`: {_limits(partition)}" for name, partition in site.partitions.items()),
            "",
            "| where | line | why | source |",
            "|---|---|---|---|",
            *rows,
            "",
            *(f"- {key}: {document}" for key, document in site.sources.items()),
            "",
        ]
    )


def _cell(text: str, code: bool = False) -> str:
    shown = text.replace("|", "\\|")
    return f"`{shown}`" if code and shown else shown


def _limits(partition: Partition) -> str:
    limits = ", ".join(f"{limit.first}-{limit.last} nodes {limit.hours:g} h" for limit in partition.limits)
    return f"{limits or 'limits unknown'} ({partition.source})"


def made_files() -> dict[Path, str]:
    """Every file that is made of the shipped sites, with the text that it should hold.

    Raises:
        UserError: a site is broken, or docs/sites.md lost its marks.
    """
    folder = jobs_folder() / "sites"
    sites = [load_site(name) for name in shipped()]
    found = {folder / f"{site.name}.sh": site_shell(site) for site in sites}
    page = jobs_folder().resolve().parent / "docs" / "sites.md"  # an installation has none
    if page.is_file():
        before, begin, rest = page.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise UserError(f"{page}: the lines '{BEGIN}' and '{END}' are missing: the tables go between them")
        tables = "\n".join(site_table(site) for site in sites)
        found[page] = f"{before}{BEGIN}\n\n{tables}\n{END}{after}"
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m frontier.submit.shell", description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("site", nargs="?", help="print the bash of this site: a name, or a YAML file")
    what.add_argument("--write", action="store_true", help="rewrite every jobs/sites/NAME.sh and docs/sites.md")
    what.add_argument("--check", action="store_true", help="exit 1 where one of them is not what its YAML makes")
    asked = parser.parse_args(words)
    try:
        if asked.site:
            print(site_shell(load_site(asked.site)), end="")
            return 0
        stale = {p: text for p, text in made_files().items() if not p.is_file() or p.read_text() != text}
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for path, text in stale.items():
        if asked.write:
            path.write_text(text)
        print(
            f"{path}: {'written' if asked.write else 'not what its YAML makes: python -m frontier.submit.shell --write'}"
        )
    return int(bool(stale)) if asked.check else 0


if __name__ == "__main__":
    sys.exit(main())
