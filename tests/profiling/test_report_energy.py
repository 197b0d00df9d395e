"""Energy in the report: joules from reading to reading, and "not measured" where there is no meter."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from frontier_profiling.report.command import main
from frontier_profiling.report.energy import training_seconds_at
from frontier_profiling.report.read import read_run
from tests.profiling import runs

J_PER_IMAGE = 12.5
WATTS = J_PER_IMAGE * runs.GLOBAL_BATCH / 0.6  # a step every 0.6 s of `runs.rows`


def metered(path: Path, every: int, starts_metered: tuple[int, ...] = (0, 1, 2)) -> Path:
    """A run whose counter moves once in `every` steps, offset in each start; the first reading of a start costs extra (compilation)."""
    run = runs.make_run(path)
    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    waiting, before = 0.0, -1
    for line in lines:
        if line["start"] != before:
            waiting, before = 5000.0, line["start"]
        waiting += J_PER_IMAGE * runs.GLOBAL_BATCH
        if line["start"] in starts_metered and line["step"] % every == 0:
            line |= {"energy_j": waiting, "power_w": WATTS}
            waiting = 0.0
    runs.write_lines(run / "metrics.jsonl", lines)
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    for i, start in enumerate(starts):
        start |= {
            "energy_source": "Cray pm_counters" if i in starts_metered else None,
            "energy_covers": "the whole node",
            "energy_why_not": None,
        }
    runs.write_lines(run / "starts.jsonl", starts)
    return run


def reported(run: Path) -> tuple[dict[str, Any], dict[str, str]]:
    assert main([str(run), "--no-pictures"]) == 0
    (row,) = csv.DictReader(io.StringIO((run / "report.csv").read_text()))
    return json.loads((run / "report.json").read_text()), row


@pytest.mark.parametrize("every", [1, 3])
def test_joules_per_image_whatever_the_counter(tmp_path: Path, every: int) -> None:
    run = metered(tmp_path / "run", every)
    record, row = reported(run)
    figures = record["figures"]
    assert figures["energy_j_per_image"]["value"] == pytest.approx(J_PER_IMAGE)
    assert figures["power_w"]["value"] == pytest.approx(WATTS)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert figures["energy_kwh"]["value"] == pytest.approx(sum(line["energy_j"] or 0 for line in lines) / 3.6e6)
    assert figures["energy_j_per_image"]["provenance"] == "measured"
    assert figures["energy_j_per_image"]["note"].startswith("Cray pm_counters;")
    assert float(row["power_w"]) == pytest.approx(WATTS)
    assert row["energy_source"] == "Cray pm_counters"
    page, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert "Power over the time in training" in page
    assert "12.5 J an image" in page and "12.5 J an image" in text
    assert "the whole node" in text


def test_starts_without_a_meter_are_told(tmp_path: Path) -> None:
    record, _ = reported(metered(tmp_path / "run", 1, (0, 2)))
    figure = record["figures"]["energy_j_per_image"]
    assert figure["value"] == pytest.approx(J_PER_IMAGE)
    assert "2 of 3 starts had a meter" in figure["note"]


def test_without_a_meter_nothing_is_drawn_and_the_reason_stands(tmp_path: Path) -> None:
    run = runs.make_run(tmp_path / "run")
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    starts[-1]["energy_why_not"] = "rapl: no <powercap> driver"
    runs.write_lines(run / "starts.jsonl", starts)
    record, row = reported(run)
    for key in ("energy_j_per_image", "power_w", "energy_kwh"):
        assert record["figures"][key]["value"] is None
        assert row[key] == "not measured"
    page = (run / "report.html").read_text()
    assert "Not measured (rapl: no &lt;powercap&gt; driver)." in page
    assert "Power over the time in training" not in page


def test_one_reading_gives_a_total_but_no_rate(tmp_path: Path) -> None:
    record, _ = reported(metered(tmp_path / "run", 60))
    assert record["figures"]["energy_kwh"]["value"] is not None
    assert record["figures"]["energy_j_per_image"]["value"] is None
    assert record["figures"]["power_w"]["value"] is None


def test_comparison_has_joules_per_image(tmp_path: Path) -> None:
    folders = [metered(tmp_path / "with", 1), runs.make_run(tmp_path / "without")]
    assert main([*map(str, folders), "--out", str(tmp_path / "both")]) == 0
    header, _, *rows = [
        line for line in (tmp_path / "both/report.md").read_text().splitlines() if line.startswith("|")
    ][:4]
    column = header.split("|").index(" J/image ")
    assert [row.split("|")[column].strip() for row in rows] == ["12.5 J", "not measured"]


def test_time_in_training_leaves_out_what_lies_between_starts(tmp_path: Path) -> None:
    seconds = training_seconds_at(read_run(metered(tmp_path / "run", 1)))
    assert seconds[0] == 0
    assert seconds[-1] == pytest.approx(3 * 19 * 0.6)
