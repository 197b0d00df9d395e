"""The comparison of two studies: judged by intervals, and against a simulation of what the interval promises."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from frontier.errors import UserError
from frontier_profiling.report.study import delta
from tests.profiling.report.by_hand import predicted, record, row, write
from tests.profiling.report.test_study import check_page, report


def timed(step: float, half: float | None = None, spread: float | None = None, **more):
    """A measured row with a 95 % interval of ± half of its step, or only a p10–p90 range."""
    out = row(step_s=step, images_per_s=64 / step, **more)
    if half is not None:
        out.step_ci95_s = (step * (1 - half), step * (1 + half))
    if spread is not None:
        out.step_s_low, out.step_s_high = step * (1 - spread), step * (1 + spread)
    return out


@pytest.mark.parametrize(
    ("before", "after", "judged"),
    [
        (timed(0.5, 0.01), timed(0.4, 0.01), "better"),
        (timed(0.5, 0.01), timed(0.6, 0.01), "worse"),
        (timed(0.5, 0.2), timed(0.45, 0.2), "no difference"),  # intervals hold 1
        (timed(0.5, 0.0001), timed(0.4975, 0.0001), "no difference"),  # apart, but half a percent
        (timed(0.5, None, 0.02), timed(0.4, None, 0.02), "better"),
        (timed(0.5, None, 0.2), timed(0.45, None, 0.2), "no difference"),
        (timed(0.5), timed(0.4), "no claim"),
        (timed(0.5, 0.01), row(status="oom", images_per_s=None, step_s=None), "worse"),
        (row(status="oom", images_per_s=None, step_s=None), timed(0.5), "better"),
        (row(status="oom", images_per_s=None), row(status="oom", images_per_s=None), "no claim"),
    ],
)
def test_throughput_is_judged_by_its_interval(before, after, judged: str) -> None:
    assert delta.throughput(before, after).judgement == judged


def test_the_interval_holds_what_it_promises() -> None:
    """Over many pairs of samples, the interval of the ratio of two means must hold the true ratio about 95 times of 100."""
    random, held, n = np.random.default_rng(0), 0, 2000
    for _ in range(n):
        a, b = (random.normal(mean, 0.05, 50) for mean in (0.5, 0.55))
        rows = []
        for sample in (a, b):
            mean, error = sample.mean(), 1.96 * sample.std(ddof=1) / np.sqrt(50)
            found = row(step_s=float(mean), images_per_s=float(64 / mean))
            found.step_ci95_s = (float(mean - error), float(mean + error))
            rows.append(found)
        bounds = delta.ratio_interval(rows[0], rows[1])
        assert bounds is not None
        held += bounds[0] <= 0.55 / 0.5 <= bounds[1]
    assert 0.93 < held / n < 0.97


def test_predictions_carry_no_noise_and_memory_and_energy_are_judged() -> None:
    before, after = predicted("vit_3b", "hybrid_2", 8), predicted("vit_3b", "hybrid_2", 8, speed=1.05)
    assert delta.throughput(before, after).judgement == "better"
    assert delta.throughput(before, before).judgement == "no difference"
    after.memory_gib = after.memory_gib | {"peak": 1.02 * before.memory_gib["peak"]}
    after.joules_per_image = 0.98 * (before.joules_per_image or 0)
    assert delta.memory(before, after).judgement == "worse"
    assert delta.energy(before, after).judgement == "better"
    before.source = after.source = "measured"
    assert delta.energy(before, after).judgement == "no difference"  # 2 % of a measured energy
    after.joules_per_image = None
    assert delta.energy(before, after).judgement == "no claim"


def test_two_studies_point_by_point(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [timed(0.5, 0.01, nodes=n) for n in (1, 2, 4)] + [timed(1.0, nodes=8)], name="before")
    b = write(
        tmp_path / "b",
        [timed(s, 0.01, nodes=n) for n, s in ((1, 0.4), (2, 0.5), (4, 0.8))] + [timed(1.0, nodes=16)],
        name="after",
    )
    assert report(a, b) == 0
    facts = record(tmp_path)
    assert [p["throughput_judgement"] for p in facts["points"]] == ["better", "no difference", "worse"]
    assert facts["points"][0]["throughput_ratio"] == pytest.approx(1.25)
    assert [p["nodes"] for p in facts["only_a"]] == [8]
    assert [p["nodes"] for p in facts["only_b"]] == [16]
    assert "1 faster, 1 slower and 1 no difference" in facts["verdict"]
    text, markdown = check_page(tmp_path), (tmp_path / "report.md").read_text()
    for said in ("▲ better", "▼ worse", "= no difference", "+25.0 %", "−37.5 %"):
        assert said in text
        assert said in markdown
    lines = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    assert [line["throughput_judgement"] for line in lines] == ["better", "no difference", "worse"]


def test_the_same_source_is_compared_where_both_have_it(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [timed(0.5), predicted("vit_3b", "ddp", 1) if False else timed(0.4, source="predicted")])
    b = write(tmp_path / "b", [timed(0.3, source="predicted")])
    assert report(a, b) == 0
    (point,) = record(tmp_path)["points"]
    assert (point["source_a"], point["source_b"]) == ("predicted", "predicted")


def test_no_common_point_is_one_line_that_says_why(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", [row(micro_batch=32)]), write(tmp_path / "b", [row(micro_batch=16)])
    with pytest.raises(UserError, match="no point in common: micro-batch 32 against 16"):
        report(a, b)


def test_three_studies_are_too_many(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, [row()]) for name in "abc"]
    with pytest.raises(UserError, match="two are compared"):
        report(*folders)


def test_a_comparison_is_strict_json(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", [row(images_per_s=None)]), write(tmp_path / "b", [row()])
    assert report(a, b) == 0
    assert json.loads((tmp_path / "report.json").read_text())["points"][0]["throughput_judgement"] == "no claim"
