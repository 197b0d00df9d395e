"""`frontier report`: its figures against independent computations, what it withstands, and what a page may hold."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontier.cli import main as frontier
from frontier.errors import UserError
from frontier_profiling.report import probes, verdict
from frontier_profiling.report.command import main
from frontier_profiling.report.quantities import quantities
from frontier_profiling.report.read import read_run
from tests.profiling import runs


def report(*args: str | Path) -> int:
    return main([*map(str, args), "--no-pictures"])


def read_report(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "report.json").read_text(), parse_constant=refuse)


VOID = {"meta", "img", "br", "link", "input", "path", "use", "rect"}


class Page(HTMLParser):
    """Collects what a page loads, and checks that its elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_rows_of_maps_and_published_ones(tmp_path: Path) -> None:
    """mIoU is the figure that counts; a published row is shown as such and is no baseline of this run."""
    run = runs.make_run(tmp_path / "run")
    maps = {"metric": "miou", "kind": "measured", "target": "land", "gsd_m": 10.0, "resize": [64, 32]}
    table = [
        runs.probe_row("segment", "pretrained", 0.9, **maps, miou=0.4, miou_ci95=[0.35, 0.45]),
        runs.probe_row("segment", "random", 0.95, **maps, miou=0.3, miou_ci95=[0.25, 0.34]),
        {
            "method": "segment",
            "encoder": "Theirs",
            "kind": "published",
            "metric": "miou",
            "miou": 0.99,
            "n_train": 5,
            "n_test": 5,
        },
    ]
    table[0]["difference"] = {"random": {"miou": 0.1, "ci95": [0.06, 0.14], "resamples": 1000}}
    (run / "probe.json").write_text(json.dumps(table))
    assert report(run) == 0
    record = read_report(run)
    assert (
        "its best probe (segment) reaches 40.0 % mIoU (35.0 to 45.0 %) against 30.0 % of the random"
        in record["verdict"]
    )
    assert [(row["encoder"], row["provenance"], row["miou"]) for row in record["probe"]] == [
        ("pretrained", "measured", 0.4),
        ("random", "measured", 0.3),
        ("Theirs", "published", 0.99),
    ]
    assert record["probe"][0]["accuracy"] == 0.9
    assert [(d["against"], d["interval_from"]) for d in record["differences"]] == [("random", probes.PAIRED)]
    assert record["differences"][0]["ci95"] == [0.06, 0.14]
    assert record["figures"]["probe_accuracy_pct"]["note"] == "segment, mIoU"
    (line,) = [line for line in record["reproduce"] if line.startswith("frontier probe")]
    assert line.endswith("--method segment --target land --resize")
    text = (run / "report.md").read_text()
    assert "| Theirs | mIoU | 99.0 % | not published | 5 | 5 |  | published |" in text
    assert "native m a pixel 10.0, resized 64, 32" in text
    assert "mIoU on the test split" in (run / "report.html").read_text()


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported run with two restarts, two skipped steps and a probe."""
    run = runs.make_run(tmp_path_factory.mktemp("reported") / "run", skipped_at=(10, 33))
    table = [
        runs.probe_row("linear", "pretrained", 0.80, classes=10, checkpoint="step_00000060"),
        runs.probe_row("linear", "random", 0.50, classes=10),
        runs.probe_row("linear", "colour_texture", 0.79, classes=10),
        runs.probe_row("knn", "pretrained", 0.70, classes=10),
        runs.probe_row("knn", "random", 0.55, classes=10),
    ]
    table[0]["difference"] = {"random": {"accuracy": 0.30, "ci95": [0.27, 0.33], "resamples": 2000}}
    (run / "probe.json").write_text(json.dumps(table))
    assert report(run) == 0
    return run


def test_figures_equal_those_computed_by_hand(reported: Path) -> None:
    lines = [json.loads(line) for line in (reported / "metrics.jsonl").read_text().splitlines()]
    found = {key: figure["value"] for key, figure in read_report(reported)["figures"].items()}
    # Each start has 20 lines: a fifth is 4, so its first 4 are dropped.
    warm = [line for line in lines if (line["step"] - 1) % 20 >= 4]
    assert found["images_per_s_median"] == pytest.approx(statistics.median(line["images_per_s"] for line in warm))
    assert found["images_per_s_p10"] == pytest.approx(np.percentile([line["images_per_s"] for line in warm], 10))
    assert found["images_per_s_p90"] == pytest.approx(np.percentile([line["images_per_s"] for line in warm], 90))
    assert found["images_per_s_per_device"] == pytest.approx(found["images_per_s_median"] / runs.WORLD)
    for part in ("step", "data", "forward", "backward", "optimizer", "other"):
        own = [line[f"{part}_s"] for line in warm]
        assert found[f"{part}_s_median"] == pytest.approx(statistics.median(own))
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    assert found["final_loss"] == pytest.approx(statistics.median(losses[-3:]))  # 5 % of 58 logged losses
    assert found["last_loss"] == lines[-1]["loss"]
    assert found["images_seen"] == 60 * runs.GLOBAL_BATCH
    assert found["memory_gib_max"] == pytest.approx(1.06)
    assert found["train_h"] == pytest.approx(3 * 19 * 0.6 / 3600)
    assert found["device_h"] == pytest.approx(3 * 19 * 0.6 * runs.WORLD / 3600)
    assert found["images_per_s_overall"] == pytest.approx(runs.GLOBAL_BATCH / 0.6)
    assert found["data_supply_ratio_median"] == pytest.approx(3.01)
    assert found["parameters"] == 1_234_567
    assert found["skipped_steps"] == found["not_finite_losses"] == 2
    assert found["probe_accuracy_pct"] == pytest.approx(80)
    assert found["baseline_accuracy_pct"] == pytest.approx(79)


def test_every_figure_has_its_provenance_and_absence_is_never_zero(reported: Path) -> None:
    record = read_report(reported)
    for key, figure in record["figures"].items():
        expected = "not measured" if figure["value"] is None else ("measured", "predicted", "published")
        assert figure["provenance"] in expected, key
    for key in ("mfu_pct_median", "power_w", "energy_j_per_image", "energy_kwh", "peak_tflops_per_device"):
        assert record["figures"][key]["value"] is None
    assert record["figures"]["flops_per_image"]["provenance"] == "predicted"
    (row,) = csv.DictReader(io.StringIO((reported / "report.csv").read_text()))
    assert row["mfu_pct_median"] == row["power_w"] == row["energy_kwh"] == "not measured"
    assert float(row["images_per_s_median"]) == pytest.approx(record["figures"]["images_per_s_median"]["value"])
    named = f"{row['provenance_measured']} {row['provenance_predicted']} {row['provenance_published']}".split()
    assert set(named) == {key for key, figure in record["figures"].items() if figure["value"] is not None}
    assert "| MFU | not measured | not measured |" in (reported / "report.md").read_text()
    assert "not measured" in (reported / "report.html").read_text()


def test_verdict_and_differences(reported: Path) -> None:
    record = read_report(reported)
    assert "MAE vit_debug (1.235 M parameters) has seen 1,920 images" in record["verdict"]
    assert "its best probe (linear) reaches 80.0 % (78.0 to 82.0 %)" in record["verdict"]
    assert "above the random encoder outside the 95 % intervals" in record["verdict"]
    assert "not separated from the colour and texture features" in record["verdict"]
    pairs = {(d["method"], d["against"], d["against_method"]): d for d in record["differences"]}
    paired = pairs["linear", "random", "linear"]
    assert paired["ci95"] == [0.27, 0.33]
    assert paired["interval_from"] == probes.PAIRED
    # The best method of the random encoder is knn: there is no paired interval across methods.
    across = pairs["linear", "random", "knn"]
    assert across["interval_from"] == probes.INDEPENDENT
    assert across["difference"] == pytest.approx(0.25)
    assert across["ci95"] == pytest.approx([0.25 - 0.02 * 2**0.5, 0.25 + 0.02 * 2**0.5])
    assert across["intervals_apart"] is True
    assert pairs["linear", "colour_texture", "linear"]["intervals_apart"] is False


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (0.9, "above both, outside the 95 % confidence intervals"),
        (0.3, "below the colour and texture features and random encoder outside the 95 % intervals"),
    ],
)
def test_verdict_judges_against_all_baselines(tmp_path: Path, accuracy: float, words: str) -> None:
    run = runs.make_run(tmp_path / "run", steps=5, restarts=())
    table = [("pretrained", accuracy), ("random", 0.5), ("colour_texture", 0.6)]
    (run / "probe.json").write_text(json.dumps([runs.probe_row("linear", *pair) for pair in table]))
    assert verdict.probe_clause(read_run(run)).endswith(words)


def test_restarts_and_skips_are_shown(reported: Path) -> None:
    record, page = read_report(reported), (reported / "report.html").read_text()
    assert record["restarts"] == [
        {"start": 2, "resumed_from": 20, "drawn_at": 20},
        {"start": 3, "resumed_from": 40, "drawn_at": 40},
    ]
    assert record["skipped_steps"] == [10, 33]
    assert "start 2, from step 20" in page
    assert "2 skipped steps (10, 33)" in page
    assert "start 3 resumed from step 40" in page
    assert "differs between starts" in page  # the host


def test_the_page_is_self_contained_and_well_formed(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert all(load.startswith(("#", "data:image/png;base64,")) for load in page.loads)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "http" not in text
    assert not re.search(r"@import|url\((?!#)", text)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert page.tags.count("svg") == 7
    assert "#010101" not in text  # every stand-in colour has become one of the page's
    assert "prefers-color-scheme: dark" in text


def test_two_renders_are_byte_identical(reported: Path, tmp_path: Path) -> None:
    assert main([str(reported), "--out", str(tmp_path), "--no-pictures"]) == 0
    for name in ("report.html", "report.md", "report.csv", "report.json"):
        assert (tmp_path / name).read_bytes() == (reported / name).read_bytes()


def test_names_and_settings_are_escaped(tmp_path: Path) -> None:
    run = runs.make_run(tmp_path / "<script>alert(1)</script>".replace("/", "∕"), steps=6, restarts=())
    (run / "config.yaml").write_text("model: {family: '<img src=x>', preset: '</pre>'}\nrun: {note: '``` | <b>'}\n")
    (run / "probe.json").write_text(json.dumps([runs.probe_row("<svg onload=1>", "pretrained", 0.5)]))
    assert report(run) == 0
    page = Page((run / "report.html").read_text())
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.tags.count("svg") == 7
    assert not page.open
    markdown = (run / "report.md").read_text()
    assert "# \\<script\\>" in markdown
    assert markdown.count("```") == 4
    assert read_report(run)["run"] == run.name


def test_torn_and_broken_lines_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.make_run(tmp_path / "run", restarts=())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[4] = '{"step": 5, "loss"'
    again = json.dumps({**json.loads(lines[29]), "loss": 7.0})
    (run / "metrics.jsonl").write_text("\n".join([*lines[:30], again, *lines[30:50], lines[50][:40]]))
    with open(run / "starts.jsonl", "a") as file:
        file.write('{"schema": 1, "ti')
    assert report(run) == 0
    notes = " ".join(read_report(run)["notes"])
    assert "metrics.jsonl: its last line (line 52) is torn" in notes
    assert "1 unreadable line(s) left out (line 5)" in notes
    assert "1 step(s) logged more than once" in notes
    assert "starts.jsonl: its last line (line 2) is torn" in notes
    assert "is torn and was left out" in (run / "report.html").read_text()
    found = read_run(run)
    assert found.columns["step"].tolist() == [s for s in range(1, 51) if s != 5]
    assert found.columns["loss"][28] == 7.0  # the last line of step 30 counts
    assert read_report(run)["state"] == "unfinished"
    assert "Step 50 of 60 planned: still running, or stopped." in read_report(run)["progress"]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_run_that_has_just_begun(tmp_path: Path, kept: int) -> None:
    run = runs.make_run(tmp_path / "run", restarts=())
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:kept]))
    (run / "starts.jsonl").unlink()
    assert report(run) == 0
    record = read_report(run)
    assert record["state"] == ("unfinished" if kept else "no step logged")
    assert record["figures"]["images_seen"]["value"] == (kept * runs.GLOBAL_BATCH or None)
    assert record["figures"]["parameters"]["value"] is None
    assert "starts.jsonl is missing" in record["notes"][0]
    assert not Page((run / "report.html").read_text()).open


def test_a_run_of_nothing_but_nan(tmp_path: Path) -> None:
    run = runs.make_run(tmp_path / "run", steps=8, restarts=())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keep = ("schema", "step", "start")
    broken = [{key: value if key in keep else float("nan") for key, value in line.items()} for line in lines]
    runs.write_lines(run / "metrics.jsonl", broken)
    (run / "probe.json").write_text('[{"method": "linear", "encoder": "pretrained", "accuracy": NaN}, 3]')
    assert report(run) == 0
    record = read_report(run)
    assert record["figures"]["final_loss"]["value"] is None
    assert record["not_finite_losses"] == list(range(1, 9))
    assert record["probe"] == []
    assert "final loss not measured, throughput not measured; frozen-feature accuracy not measured" in record["verdict"]


def test_long_logs_are_thinned(tmp_path: Path) -> None:
    run = runs.make_run(tmp_path / "run", steps=6, restarts=())
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    runs.write_lines(run / "metrics.jsonl", [{**line, "step": s, "loss": 1 + (s % 7)} for s in range(1, 20001)])
    assert report(run) == 0
    assert (run / "report.html").stat().st_size < 700_000


def test_what_is_no_run_exits_2_and_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert frontier(["report", str(tmp_path / "nowhere")]) == 2
    assert "no run folder at" in capsys.readouterr().err
    assert frontier(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "config.yaml and metrics.jsonl missing" in error
    assert error.count("\n") == 1
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "config.yaml").write_text("a: [")
    assert frontier(["report", str(tmp_path)]) == 2
    assert "not readable YAML" in capsys.readouterr().err


def test_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = runs.make_run(tmp_path / "runs" / "one", seed=1)
    second = runs.make_run(tmp_path / "runs" / "two", steps=30, restarts=(), seed=2)
    (first / "probe.json").write_text(json.dumps([runs.probe_row("linear", "pretrained", 0.8)]))
    assert report(first, second, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record == read_report(tmp_path / "runs")
    assert [run["run"] for run in record["runs"]] == ["one", "two"]
    assert record["common_images"] == 30 * runs.GLOBAL_BATCH
    lines = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    expected = statistics.median(line["loss"] for line in lines[28:30])  # 5 % of 30 logged steps
    assert record["loss_at_common_images"]["one"] == pytest.approx(expected)
    assert record["config_differences"]["train.steps"] == [60, 30]
    assert "run.dir" not in record["config_differences"]
    assert "at the 960 images that all have seen" in record["verdict"]
    assert "one has the best probe, 80.0 % (linear)" in record["verdict"]
    table = list(csv.DictReader(io.StringIO((tmp_path / "runs" / "report.csv").read_text())))
    assert [row["run"] for row in table] == ["one", "two"]
    text = (tmp_path / "runs" / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert "http" not in text
    assert all(load.startswith("#") for load in page.loads)
    assert not (first / "report.html").exists()


def test_comparison_of_runs_of_one_name(tmp_path: Path) -> None:
    pair = [runs.make_run(tmp_path / name / "run", steps=5, restarts=()) for name in ("a", "b")]
    assert report(*pair, "--out", tmp_path / "out") == 0
    assert [run["run"] for run in read_report(tmp_path / "out")["runs"]] == ["a/run", "b/run"]


def test_mistakes_in_the_arguments(tmp_path: Path) -> None:
    run = runs.make_run(tmp_path / "run", steps=5, restarts=())
    inner = runs.make_run(run / "inner", steps=5, restarts=())
    with pytest.raises(UserError, match="given twice"):
        main([str(run), str(run / "..") + "/run"])
    with pytest.raises(UserError, match="say where with --out"):
        report(run, inner)
    with pytest.raises(UserError, match="--data is for"):
        main([str(run), "--data", "x", "--no-pictures"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the report"):
        report(run, "--out", tmp_path / "file")
    with pytest.raises(UserError, match="required: DIR"):
        main([])


def test_reproduce_names_the_code_the_ranks_and_a_new_folder(reported: Path) -> None:
    lines = read_report(reported)["reproduce"]
    assert lines[0] == "git checkout 0123abc  # and the changes not committed"
    assert lines[1].startswith("torchrun --standalone --nproc-per-node=2 --no-python frontier pretrain ")
    assert lines[1].endswith(f"run.dir={reported}-again")
    assert lines[-1] == f"frontier report {reported}-again"


def test_labels_and_keys_are_distinct(reported: Path) -> None:
    found = quantities(read_run(reported))
    assert len({figure.key for figure in found}) == len(found) == len({figure.label for figure in found})
