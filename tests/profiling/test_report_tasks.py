"""The report's section on tasks: what `frontier evaluate` wrote, every number found again, nothing made up where files are odd."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from frontier_profiling.report.command import main
from tests.profiling import runs


def row(task: str, model: str, **metrics: tuple[float, float, float] | None) -> dict[str, Any]:
    values = {name: None if given is None else given[0] for name, given in metrics.items()}
    bounds = {name: [None, None] if given is None else list(given[1:]) for name, given in metrics.items()}
    about = {
        "head": "regression",
        "target": "yield_t_ha",
        "units": "t/ha",
        "data": "soy",
        "split": "test",
        "groups": "region",
    }
    counts = {
        "n": 40,
        "missing": 3,
        "kind": "model" if model == "gpna" else "baseline",
        "metric": next(iter(metrics), None),
    }
    return {"task": task, "model": model, "metrics": values, "ci95": bounds, **about, **counts}


ROWS = [
    row("yield", "ridge", rmse=(0.625, 0.5, 0.75), pearson_r2=(0.111, 0.05, 0.2)),
    row("yield", "gpna", rmse=(0.5, 0.4, 0.6), pearson_r2=None),
    row("area<b>|", "gpna", dice=(0.75, 0.7, 0.8)),
    row("area<b>|", "unet") | {"left_out": "no MONAI"},
]
ROWS[-1] |= {"metrics": {}, "ci95": {}, "metric": "dice"}
STOPPING = {
    "split": "val",
    "steps": [100, 200, 300],
    "common_step": 200,
    "mean_relative_loss": {"at_common_step": 0.051, "at_last_step": 0.25},
    "left_out": [],
    "tasks": [
        {"task": "yield", "metric": "rmse", "values": [0.9, 0.55, 0.5], "best_step": 300, "best": 0.5, "last": 0.5}
        | {"common": 0.55, "relative_loss_last": 0.0, "relative_loss_common": 0.1}
    ],
}


def reported(folder: Path, rows: Any, stopping: Any) -> tuple[dict[str, Any], str, str]:
    run = runs.make_run(folder / "run")
    for name, content in (("evaluation.json", rows), ("early_stopping.json", stopping)):
        if content is not None:
            (run / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assert main([str(run), "--no-pictures"]) == 0
    return tuple(  # type: ignore[return-value]
        json.loads(text) if name.endswith("json") else text
        for name in ("report.json", "report.html", "report.md")
        for text in [(run / name).read_text()]
    )


def test_rows_and_the_step_to_stop_at(tmp_path: Path) -> None:
    record, page, text = reported(tmp_path, ROWS, STOPPING)
    assert record["tasks"] == ROWS and record["early_stopping"]["common_step"] == 200
    plain = re.sub(r"<[^>]+>", " ", page[page.index('id="tasks"') : page.index('id="pictures"')])
    section = text[text.index("## Tasks") : text.index("## Sample reconstructions")]
    for found in (plain, section):
        for told in ("0.500 (0.400 to 0.600)", "0.625 (0.500 to 0.750)", "0.111 (0.050 to 0.200)", "undefined"):
            assert told in found
        for told in (
            "intervals resample by region",
            "no MONAI",
            "t/ha",
            "3 checkpoints",
            "loses 10.0 %",
            "5.1 %",
            "25.0 %",
        ):
            assert told in found
        assert found.index("gpna") < found.index("ridge")
    assert "rmse (judged by)" in section and "rmse *" in plain
    assert "<b>" not in page[page.index('id="tasks"') : page.index('id="pictures"')]
    assert '<a href="#tasks">' in page and any("frontier evaluate" in line for line in record["reproduce"])


def test_tables_of_the_markdown_have_as_many_cells_as_headings(tmp_path: Path) -> None:
    _, _, text = reported(tmp_path, ROWS, STOPPING)
    section = text[text.index("## Tasks") : text.index("## Sample reconstructions")]
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)]
    assert len(tables) == 3
    for table in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table}) == 1


def test_no_section_without_files(tmp_path: Path) -> None:
    record, page, text = reported(tmp_path, None, None)
    assert record["tasks"] == [] and record["early_stopping"] is None
    assert 'id="tasks"' not in page and "## Tasks" not in text


def test_odd_files_are_noted(tmp_path: Path) -> None:
    record, page, _ = reported(tmp_path / "a", "{torn", {"steps": 3})
    assert record["tasks"] == [] and record["early_stopping"] is None
    assert any("evaluation.json is not readable JSON" in note for note in record["notes"])
    assert any("early_stopping.json is not a report" in note for note in record["notes"])
    assert "evaluation.json is not readable JSON" in page
    record, _, _ = reported(tmp_path / "b", [ROWS[0], {"task": "x"}, 3], None)
    assert len(record["tasks"]) == 1 and any("2 row(s)" in note for note in record["notes"])
