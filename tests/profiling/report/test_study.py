"""The report of a study: its figures against closed forms and the published points, and what it withstands."""

from __future__ import annotations

import csv
import io
import itertools
import json
import time
from pathlib import Path

import pytest

from frontier.errors import UserError
from frontier_profiling.report.command import main
from frontier_profiling.report.study.agreement import pairs, summary
from frontier_profiling.report.study.axes import compact, log_ticks, spread_out
from frontier_profiling.report.study.bars import chosen
from frontier_profiling.report.study.best import best_points, spans
from frontier_profiling.report.study.clouds import front
from frontier_profiling.report.study.heat import heat
from frontier_profiling.report.study.limits import limit
from frontier_profiling.report.study.looks import FIXED, looks
from frontier_profiling.report.study.points import panels, scaling_axis
from frontier_profiling.report.study.read import Study, read_study
from frontier_profiling.report.study.scaling import curves
from frontier_profiling.report.study.sections import sections
from frontier_profiling.report.study.traces import trace
from frontier_profiling.rows import Row
from tests.conftest import ROOT
from tests.profiling.report import by_hand
from tests.profiling.report.by_hand import predicted, record, row, write
from tests.profiling.test_report import Page

REFERENCE = ROOT.parent / "shared" / "reference" / "frontier_published.yaml"


def report(*folders: Path, out: Path | None = None) -> int:
    return main([*map(str, folders), *(["--out", str(out)] if out else [])])


def check_page(folder: Path) -> str:
    """report.html nests, has each id once, and loads nothing."""
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") for link in page.loads)
    assert page.tags.count("script") == 1
    return text


def laptop() -> list[Row]:
    """Weak scaling on 1, 2, 4 ranks of one node: 100, 160, 240 images/s, and a timeout on 8."""
    rows = [
        row(devices=d, images_per_s=speed, step_s=32 * d / speed) for d, speed in ((1, 100.0), (2, 160.0), (4, 240.0))
    ]
    return [*rows, row(devices=8, status="timeout", error="no step in 600 s", images_per_s=None, step_s=None)]


def test_efficiency_by_hand() -> None:
    rows = laptop()
    axis = scaling_axis(rows)
    assert (axis.name, axis.values) == ("devices", [1, 2, 4, 8])
    (curve,) = curves(rows, axis, "weak")
    assert curve.efficiency() == pytest.approx([1.0, 0.8, 0.6])
    assert [lost.status for lost in curve.lost] == ["timeout"]
    assert curves(rows, axis, "strong") == []


def test_strong_scaling_is_told_from_weak() -> None:
    rows = [row(nodes=n, micro_batch=64 // n, images_per_s=speed) for n, speed in ((1, 100.0), (2, 190.0), (4, 300.0))]
    axis = scaling_axis(rows)
    assert axis.name == "nodes"
    (curve,) = curves(rows, axis, "strong")
    assert curve.efficiency() == pytest.approx([1.0, 0.95, 0.75])
    assert curves(rows, axis, "weak") == []


def test_limits_from_the_parts_of_a_step() -> None:
    def of(**parts: float) -> str:
        return limit(
            row(
                step_s=sum(parts.get(p, 0.0) for p in ("compute", "launch", "optimizer", "exposed", "data")),
                step_parts_s=parts,
            )
        ).word

    assert of(compute=0.6, exposed=0.3, data=0.1) == "compute"
    assert (
        of(compute=0.3, exposed=0.6, gather=5.0, reduce=1.0, data=0.1) == "communication"
    )  # hidden parts do not count
    assert of(compute=0.3, data=0.7) == "data"
    assert of(compute=0.3, launch=0.5) == "launch"
    found = limit(
        row(step_s=1.0, step_parts_s={"compute": 0.3, "exposed": 0.5, "gather": 1.0, "reduce": 0.1, "data": 0.2})
    )
    assert found.why == "50 % of the step (mostly gathering weights), compute 30 %, data 20 %"
    assert limit(row()).word == ""
    oom = limit(row(status="oom", memory_gib={"peak": 80.0}, memory_limit_gib=64.0))
    assert (oom.word, oom.why) == ("memory", "80.0 GiB of 64.0 GiB")


def test_pareto_front_holds_what_nothing_beats() -> None:
    points = {(10.0, 100.0), (20.0, 90.0), (20.0, 150.0), (30.0, 150.0), (40.0, 200.0)}
    rows = [row(memory_gib={"peak": gib}, images_per_s=speed) for gib, speed in points]
    assert [(r.memory_gib["peak"], r.images_per_s) for r in front(rows)] == [
        (10.0, 100.0),
        (20.0, 150.0),
        (40.0, 200.0),
    ]


def test_best_prefers_what_was_measured() -> None:
    rows = [
        row(source="predicted", strategy="ddp", images_per_s=900.0),
        row(strategy="full_shard", images_per_s=100.0),
        row(strategy="no_shard", images_per_s=110.0, samples=396_000),
    ]
    (best,) = best_points(panels(rows)[0], scaling_axis(rows))
    assert (best.row.strategy, best.row.source) == ("no_shard", "measured")
    assert best.lead == pytest.approx(0.1)
    assert best.node_hours == (pytest.approx(1.0), 396_000)  # 396,000 images at 110 a second on one node
    rows[2].samples = None
    (best,) = best_points(panels(rows)[0], scaling_axis(rows))
    assert best.node_hours == (pytest.approx(1e6 / 396_000), 1_000_000)


def test_agreement_by_hand() -> None:
    rows = []
    for i, ratio in enumerate((1.0, 1.05, 1.2, 1.5)):
        rows += [row(nodes=i + 1, images_per_s=100.0), row(nodes=i + 1, source="predicted", images_per_s=100.0 * ratio)]
    found = pairs(rows, [])
    assert [pair.error for pair in found] == pytest.approx([0, 0.05, 0.2, 0.5])
    assert summary(found) == {
        "points": 4, "median": pytest.approx(0.125), "within_10": 0.5, "within_30": 0.75, "memory_median": None,
    }  # fmt: skip
    rows[1].micro_batch = 16
    assert len(pairs(rows, [])) == 3


def test_heat_map_has_no_gap_without_a_reason() -> None:
    rows = [*laptop(), row(strategy="ddp", devices=1, status="oom", images_per_s=None)]
    table = heat(rows, scaling_axis(rows))
    assert table is not None
    cells = {(name, x): cell for name, line in table.rows for x, cell in zip(table.columns, line, strict=True)}
    assert cells["full_shard", 1].text == "100"
    assert cells["full_shard", 4].text == "60.0"
    assert cells["full_shard", 8].state == "other"
    assert cells["full_shard", 8].text == "timeout"
    assert cells["ddp", 1].state == "oom"
    assert cells["ddp", 2].title == "not tried"


def test_heat_map_does_not_mix_the_peaks_of_two_precisions() -> None:
    rows = [row(strategy="ddp", precision="fp32", mfu=0.4, peak_tflops=47.9), row(mfu=0.3, peak_tflops=191.5)]
    table = heat(rows, scaling_axis(rows))
    assert table is not None and table.unit == "images/s a device"
    rows[0].precision, rows[0].peak_tflops = "bf16", 191.5
    table = heat(rows, scaling_axis(rows))
    assert table is not None and table.unit == "MFU, %"


@pytest.mark.skipif(not REFERENCE.exists(), reason="the published points are not here")
def test_published_study(tmp_path: Path) -> None:
    folder = write(tmp_path / "study", by_hand.published(REFERENCE), title="As published")
    assert report(folder) == 0
    facts = record(folder)
    assert {row["source"] for row in facts["rows"]} == {"published"}
    best = {(item["panel"], item["x"]): item["strategy"] for item in facts["best"]}
    assert best["vit_base", 128] == best["vit_1b", 128] == best["vit_3b", 128] == "hybrid_1"
    assert best["vit_5b", 128] == "hybrid_8"
    found = {(r["model"], r["strategy"], r["nodes"]): r["weak_efficiency"] for r in facts["rows"]}
    assert found["vit_base", "full_shard", 128] == pytest.approx(11336 / 1205 / 128)
    assert found["vit_1b", "hybrid_1", 64] == pytest.approx(12264 / 189 / 64)
    text = check_page(folder)
    assert "As published" in text and "not published" in text


def test_formats_agree_and_hold_every_row(tmp_path: Path) -> None:
    rows = [predicted("vit_5b", s, n) for s in by_hand.STRATEGIES for n in (1, 8, 64)]
    folder = write(
        tmp_path / "study",
        rows,
        name="five",
        question="Which?",
        mode="predicted",
        axes={"nodes": [1, 8, 64]},
        surprise={"a": 1},
    )
    assert report(folder) == 0
    facts, text, markdown = record(folder), check_page(folder), (folder / "report.md").read_text()
    table = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text())))
    own = [line for line in table if line["source"] == "predicted"]
    assert len(own) == len(facts["rows"]) == len(rows) == 18
    for line, node, point in zip(own, facts["rows"], rows, strict=True):
        assert line["status"] == node["status"] == point.status
        assert line["images_per_s"] == ("" if point.images_per_s is None else str(point.images_per_s))
        assert line["limited_by"] == (node["limited_by"] or "")
        assert point.command in text
    lost = [point for point in rows if point.status == "oom"]
    assert lost
    for point in lost:
        assert point.error in text
        assert point.error in markdown
    assert facts["environment"]["surprise"] == "a 1"
    assert "Spread of the ranks" in facts["missing"]
    assert facts["verdict"] in markdown.replace("\\", "")
    for source in ("measured", "predicted", "published"):
        assert f'<span class="tag {source}">' in text


def test_one_row(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", [row()])
    assert report(folder) == 0
    assert "full_shard was tried for vit_debug: 128 images/s (measured)" in record(folder)["verdict"]
    check_page(folder)


def test_all_rows_out_of_memory(tmp_path: Path) -> None:
    rows = [predicted("vit_15b", s, 1) for s in ("no_shard", "hybrid_1", "hybrid_2")]
    folder = write(tmp_path / "oom", rows)
    assert report(folder) == 0
    said = record(folder)["verdict"]
    assert "3 of 3 out of memory" in said
    assert "hybrid_2, needs" in said  # the smallest of them
    assert check_page(folder).count('class="dead"') == 3


def test_rows_of_nothing_but_none(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    bare = dict.fromkeys(Row.__dataclass_fields__)
    named = bare | {
        "source": "measured",
        "model": "m",
        "system": "s",
        "strategy": "ddp",
        "nodes": 1,
        "devices": 1,
        "micro_batch": 1,
    }
    strange = named | {
        "memory_gib": {"peak": "much"},
        "step_s": "fast",
        "images_per_s": float("nan"),
        "step_ci95_s": [1],
    }
    (folder / "rows.json").write_text(json.dumps([bare, named, strange, 7]))
    assert report(folder) == 0
    facts = record(folder)
    assert len(facts["rows"]) == 2
    assert len(facts["notes"]) == 2
    assert "names no point (model" in facts["notes"][0]
    assert "not measured" in check_page(folder)


def test_only_one_node_count_draws_no_scaling(tmp_path: Path) -> None:
    folder = write(tmp_path / "flat", [predicted("vit_3b", s, 8) for s in by_hand.STRATEGIES])
    assert report(folder) == 0
    missing = record(folder)["missing"]
    assert {"Weak scaling", "Strong scaling", "Weak-scaling efficiency"} <= set(missing)
    assert "Memory" not in missing


def test_prefetch_bars_name_each_value(tmp_path: Path) -> None:
    rows = [
        row(prefetch=p, strategy=s, images_per_s=100.0 + 10 * p) for s in ("full_shard", "hybrid_2") for p in (0, 1, 2)
    ]
    folder = write(tmp_path / "prefetch", rows)
    assert report(folder) == 0
    assert "Prefetch" not in record(folder)["missing"]
    assert check_page(folder).count("prefetch 2</text>") == 2


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script> $\\nope$'
    rows = [
        row(
            model=evil,
            strategy=evil,
            system=evil,
            command=evil,
            notes=[evil],
            status=status,
            error=evil,
            nodes=n,
            facts={evil: evil},
        )
        for n, status in ((1, "done"), (2, "done"), (4, "failed"))
    ]
    folder = write(tmp_path / "evil", rows, title=evil, question=evil, axes={evil: [evil]}, more=evil)
    assert report(folder) == 0
    assert "<script>alert" not in check_page(folder)
    markdown = (folder / "report.md").read_text()
    assert "<script>alert" not in markdown.split("## Reproduce")[0]


def test_power_is_drawn_from_the_runs_and_from_nowhere_else(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"time": 100.0 + i, "power_w": 300.0 + i}) for i in range(20)) + '\n{"torn'
    inside, outside = row(path="points/a"), row(path="../elsewhere", strategy="ddp")
    folder = write(tmp_path / "study", [inside, outside])
    for place in (folder / "points" / "a" / "run", tmp_path / "elsewhere"):
        place.mkdir(parents=True)
        (place / "metrics.jsonl").write_text(lines)
    study = read_study(folder)
    found = trace(study, study.rows[0])
    assert found is not None
    assert (found[0][-1], found[1][-1]) == (19.0, 319.0)
    assert trace(study, study.rows[1]) is None
    assert report(folder) == 0
    assert "Power over time" not in record(folder)["missing"]


@pytest.mark.parametrize("text", ['{"rows": [{"sou', "", "[1, 2", '{"schema": 1}', '{"rows": 3}', '{"rows": []}'])
def test_a_torn_study_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError) as raised:
        report(tmp_path)
    assert "rows.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_study_without_rows_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="run `frontier sweep` first"):
        report(tmp_path)


def test_a_file_of_rows_is_enough(tmp_path: Path) -> None:
    file = write(tmp_path / "plan", [predicted("vit_3b", "hybrid_1", 1)]) / "rows.json"
    moved = file.rename(tmp_path / "plan.json")
    assert report(moved, out=tmp_path / "out") == 0
    assert record(tmp_path / "out")["study"] == "plan"


def test_broken_study_yaml_is_a_note(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [row()])
    (folder / "study.yaml").write_text("a: [1")
    assert "study.yaml" in read_study(folder).notes[0]


def test_studies_and_runs_do_not_mix(tmp_path: Path) -> None:
    study, run = write(tmp_path / "s", [row()]), tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="not of both"):
        report(study, run)
    with pytest.raises(UserError, match="pictures of a run"):
        main([str(study), "--no-pictures"])


def test_same_input_same_bytes(tmp_path: Path) -> None:
    rows = [predicted("vit_1b", s, n) for s in ("hybrid_1", "full_shard") for n in (1, 2)]
    texts = []
    for _ in range(2):
        folder = write(tmp_path / "s", rows)
        report(folder)
        texts.append((folder / "report.html").read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_big_study_is_one_small_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "big", by_hand.big())
    start = time.monotonic()
    assert report(folder) == 0
    print(f"288 rows in {time.monotonic() - start:.1f} s")
    assert (folder / "report.html").stat().st_size < 5_000_000
    assert len(record(folder)["rows"]) == 288
    check_page(folder)


def test_looks_are_apart_and_hold() -> None:
    names = [*FIXED, "hybrid_32", "zero_2", "zero_3"]
    found = looks(names)
    assert len({colour for colour, _ in found.values()}) == len(names) == 12
    many = looks([*names, *(f"hybrid_{k}" for k in range(100, 184))])
    assert len(set(many.values())) == 96
    assert all(found[name] == FIXED[name] for name in FIXED)
    assert looks(["hybrid_1"])["hybrid_1"] == found["hybrid_1"]


def test_the_page_has_every_colour_light_and_dark() -> None:
    from frontier_profiling.report.study.looks import COLOUR_NAMES
    from frontier_profiling.report.svg import COLOURS

    light, dark = (ROOT / "profiling" / "report" / "report.css").read_text().split("prefers-color-scheme: dark", 1)
    for name in COLOUR_NAMES:
        assert name in COLOURS and all(text.count(f"--{name}: #") == 1 for text in (light, dark)), name
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_bars_stand_at_four_sizes_and_the_largest_measured() -> None:
    rows = [predicted("vit_1b", s, n) for s in ("hybrid_1", "full_shard") for n in by_hand.NODES]
    measured = predicted("vit_1b", "hybrid_1", 16, "measured")
    for rows_now, at in ((rows, [1, 4, 32, 128]), ([*rows, measured], [1, 4, 16, 32, 128])):
        groups = chosen(rows_now, scaling_axis(rows_now), lambda row: True)
        assert [found[0].nodes for _, found in groups] == at
    few = [row for row in rows if row.nodes < 16]
    assert len(chosen(few, scaling_axis(few), lambda row: True)) == 4


def test_of_a_resident_set_what_was_there_before_the_model_is_told_apart() -> None:
    from frontier_profiling.report.study.bars import unknown_parts
    from frontier_profiling.report.study.points import before_model, tensors_peak

    rss = {"memory_kind": "rss", "rss_before_model_gib": 0.5}
    measured = row(memory_gib={"peak": 0.9}, facts=rss)
    assert unknown_parts(measured, 0.9) == [(0.5, "grid"), (pytest.approx(0.4), "s5")]
    assert before_model(measured) == 0.5 and tensors_peak(measured) is None
    device = row(memory_gib={"peak": 0.9}, facts=rss | {"memory_kind": "device_peak"})
    assert tensors_peak(device) == 0.9
    for other in (row(memory_gib={"peak": 0.9}), device, row(memory_gib={"peak": 0.4}, facts=rss)):
        assert unknown_parts(other, 0.4) == [(0.4, "s5")] and before_model(other) is None
    foretold = row(source="predicted", memory_gib={"peak": 0.42}, images_per_s=100.0)
    study = Study(Path("."), "s", [measured, foretold])
    (pair,) = pairs(study.rows, [])
    assert pair.memory_error is None
    found = {section.id: section for section in sections(study, scaling_axis(study.rows), [pair])}
    assert (
        "resident before the model" in found["memory"].legend and "what came with the model" in found["memory"].legend
    )
    assert "Memory: median" not in found["agreement"].caption and "not compared" in found["agreement"].caption
    assert [title for title, _ in found["agreement"].panels] == ["Throughput"]


def test_a_front_is_of_one_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicted bytes of tensors beside a resident set: the front is drawn through what was measured."""
    from frontier_profiling.report.study import clouds

    drawn: list[list[Row]] = []
    monkeypatch.setattr(clouds, "front", lambda rows: drawn.append(list(rows)) or front(rows))
    measured = [row(strategy=s, memory_gib={"peak": 0.6}) for s in ("ddp", "full_shard")]
    foretold = [row(source="predicted", strategy=s, memory_gib={"peak": 0.1}) for s in ("ddp", "full_shard")]
    for rows, first in (([*foretold, *measured], "measured"), ([*foretold, measured[0]], "predicted")):
        assert clouds.pareto(
            rows, scaling_axis(rows), looks(["ddp", "full_shard"]), name="p", title="t", size=(400, 300)
        )
        assert {point.source for point in drawn.pop()} == {first}


def test_bars_of_memory_hold_settings_apart_that_it_depends_on() -> None:
    from frontier_profiling.report.study.bars import held_apart, memory

    kinds = {"none": 3.0, "selective": 2.0, "full": 1.0}
    rows = [
        row(strategy=s, activation_checkpointing=kind, memory_gib={"peak": gib})
        for s in ("ddp", "full_shard")
        for kind, gib in kinds.items()
    ]
    axis = scaling_axis(rows)
    assert held_apart(rows, axis) == ["activation_checkpointing"]
    svg = memory(rows, axis, name="m", title="t", width=960)
    places = [svg.index(f"{s} · {kind}") for s in ("ddp", "full_shard") for kind in kinds]
    assert places == sorted(places)
    only = [r for r in rows if (r.strategy, r.activation_checkpointing) in (("ddp", "none"), ("full_shard", "full"))]
    assert held_apart(only, axis) == []  # each strategy has one
    many = [row(micro_batch=n, memory_gib={"peak": 1.0 + n}) for n in range(1, 30)]
    assert held_apart(many, scaling_axis(many)) == []


def test_models_without_a_count_stand_by_their_name() -> None:
    rows = [
        row(model="vit_small"),
        row(model="vit_tiny", parameters=5_600_000),
        row(model="vit_base", parameters=111_000_000),
    ]
    assert [panel.title for panel in panels(rows)] == ["vit_tiny", "vit_small", "vit_base"]


def test_a_limit_far_beyond_all_bars_is_named_and_leaves_them_their_room() -> None:
    from frontier_profiling.report.study.bars import memory

    def drawn(gib: float) -> str:
        rows = [row(strategy=s, memory_gib={"peak": gib}, memory_limit_gib=64.0) for s in ("ddp", "full_shard")]
        return memory(rows, scaling_axis(rows), name="m", title="t", width=400)

    assert "limit 64.0 ▸" in drawn(2.0) and "limit 64.0 ▸" not in drawn(30.0) and "limit 64.0" in drawn(30.0)
    assert drawn(2.0).count("stroke-dasharray: 5.2") == 0 < drawn(30.0).count("stroke-dasharray: 5.2")


def test_panels_are_as_wide_as_those_that_are_drawn() -> None:
    """Of four models one has a step time: its section is one wide drawing, not a quarter of a row."""
    rows = [row(model=m, memory_gib={"peak": 2.0}) for m in ("vit_base", "vit_1b", "vit_3b", "vit_5b")]
    rows[0].step_parts_s = {"compute": 0.5}
    found = {section.id: section for section in sections(Study(Path("."), "s", rows), scaling_axis(rows), [])}
    assert (found["memory"].columns, found["split"].columns) == (2, 1)
    assert 'width="570"' in found["memory"].panels[0][1] and 'width="960"' in found["split"].panels[0][1]


def test_labels_are_moved_apart_and_keep_their_order() -> None:
    moved = spread_out([0.5, 0.5, 0.52, 0.9], 0.1)
    assert sorted(moved) == moved
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(moved))
    assert moved[3] == 0.9
    assert all(0 <= place <= 1 for place in spread_out([1.0] * 6, 0.1))


def test_ticks_are_numbers_that_people_read() -> None:
    assert log_ticks(700, 160_000) == [1000, 10_000, 100_000]
    assert log_ticks(9, 31) == [10, 20, 30] or len(log_ticks(9, 31)) >= 3
    assert len(log_ticks(100, 118)) >= 1
    assert [compact(v) for v in (5, 500, 1500, 20_000, 1.5e6)] == ["5", "500", "1,500", "20 k", "1.5 M"]


def test_spans_join_equal_winners() -> None:
    rows = [
        row(nodes=n, strategy=s, images_per_s=100.0 * n)
        for n, s in ((1, "full_shard"), (2, "full_shard"), (4, "hybrid_1"))
    ]
    axis = scaling_axis(rows)
    assert spans(best_points(panels(rows)[0], axis), axis) == "full_shard at 1 to 2, hybrid_1 at 4 nodes"


def test_impossible_numbers_are_left_out_and_said(tmp_path: Path) -> None:
    """Negative times, a rate of nothing, degrees of 0: absent, with a note, not a traceback of a logarithm."""
    rows = [predicted("vit_1b", word, 1).as_dict() for word in ("full_shard", "hybrid_1")]
    rows[0] |= {"images_per_s": -5.0, "step_s": 0.0, "memory_gib": {"peak": -3.0, "parameters": 1.0}, "tensor": 0}
    rows[1] |= {"joules_per_image": -1.0, "global_batch": 0, "step_ci95_s": [-1.0, 2.0]}
    (tmp_path / "rows.json").write_text(json.dumps({"rows": rows}))
    study = read_study(tmp_path)
    first, second = study.rows
    assert (first.images_per_s, first.step_s, first.tensor, first.memory_gib) == (None, None, 1, {"parameters": 1.0})
    assert second.joules_per_image is None and second.step_ci95_s is None and second.global_batch is None
    assert "images_per_s" in study.notes[0] and "memory_gib.peak" in study.notes[0]
    assert report(tmp_path) == 0


def test_bars_of_memory_end_at_the_peak() -> None:
    from frontier_profiling.report.study.bars import shares

    parts = {"parameters": 4.0, "optimizer": 8.0, "activations": 8.0}
    above = shares(predicted("vit_1b", "full_shard", 1), 1.0)
    assert sum(above.values()) == pytest.approx(1.0)
    assert sum(shares(row(memory_gib=parts), 15.0).values()) == pytest.approx(15.0)
    assert shares(row(memory_gib=parts), 22.0) == parts | {"allocator": 2.0}
    assert shares(row(memory_gib={"peak": 3.0}), 3.0) == {}
