"""The front-page sentences. Each is built from figures of the report; what is unknown is said, not skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from frontier_profiling.report import probes
from frontier_profiling.report.probes import PRETRAINED, encoder_name
from frontier_profiling.report.quantities import Quantity
from frontier_profiling.report.read import Run
from frontier_profiling.report.summary import (
    PARTS,
    Spread,
    common_images,
    final_loss,
    model_name,
    spread,
    warmed_up,
)
from frontier_profiling.report.wording import (
    NOT_MEASURED,
    count,
    duration,
    interval,
    listed,
    percent,
    significant,
)

Figures = Mapping[str, Quantity]


def _value(figures: Figures, key: str) -> float | None:
    return figures[key].value if key in figures else None


def run_verdict(run: Run, figures: Figures) -> str:
    """Model, size, images seen, final loss, throughput, and the best probe row against the baselines: one
    sentence.
    """
    parameters, images = _value(figures, "parameters"), _value(figures, "images_seen")
    size = f"{count(parameters)} parameters" if parameters is not None else f"parameters {NOT_MEASURED}"
    seen = f"has seen {count(images)} {run.noun}s" if images is not None else "has not logged a step yet"
    loss, speed = _value(figures, "final_loss"), _value(figures, "images_per_s_median")
    devices = run.fact("world_size")
    on = f" on {devices} {'rank' if devices == 1 else 'ranks'}" if isinstance(devices, int) else ""
    losses = f"at a final loss of {significant(loss, 4)}" if loss is not None else f"final loss {NOT_MEASURED}"
    rate = f"at {significant(speed)} {run.noun}s/s{on}" if speed is not None else f"throughput {NOT_MEASURED}"
    return f"{model_name(run)} ({size}) {seen}, {losses}, {rate}; {probe_clause(run)}."


def probe_clause(run: Run) -> str:
    """The best pretrained probe row against the best row of every baseline, and whether the intervals are
    apart.
    """
    top = probes.best(run.probe, PRETRAINED)
    if top is None:
        return f"frozen-feature accuracy {NOT_MEASURED}"
    text = f"its best probe ({top.method}) reaches {probes.worded(top)}"
    if top.ci95:
        text += f" ({interval(top.ci95)})"
    rivals = [probes.difference(top, row) for row in probes.baselines(run.probe)]
    if not rivals:
        return f"{text}, baselines {NOT_MEASURED}"
    against = listed([f"{percent(d.b.score)} of the {encoder_name(d.b.encoder)}" for d in rivals])
    return f"{text} against {against}: {_judgement(rivals)}"


def _judgement(rivals: Sequence[probes.Difference]) -> str:
    if any(d.intervals_apart is None for d in rivals):
        return "intervals not measured, so no claim"
    above = [d for d in rivals if d.intervals_apart and d.value > 0]
    if len(above) == len(rivals):
        who = "the baseline" if len(rivals) == 1 else "both" if len(rivals) == 2 else "all baselines"
        return f"above {who}, outside the 95 % confidence intervals"
    parts = []
    if above:
        parts.append(f"above the {listed([encoder_name(d.b.encoder) for d in above])} outside the 95 % intervals")
    within = [d for d in rivals if not d.intervals_apart]
    if within:
        parts.append(
            f"not separated from the {listed([encoder_name(d.b.encoder) for d in within])} (95 % intervals overlap)"
        )
    below = [d for d in rivals if d.intervals_apart and d.value < 0]
    if below:
        parts.append(f"below the {listed([encoder_name(d.b.encoder) for d in below])} outside the 95 % intervals")
    return "; ".join(parts)


def limit_sentence(split: Mapping[str, Spread]) -> str:
    """Which part of a step takes longest, and what waiting for data costs."""
    total = split["step"].median
    known = {part: split[part].median for part in PARTS if split[part].known}
    if not known or not total > 0:
        return f"The split of the step time was {NOT_MEASURED}."
    largest = max(known, key=lambda part: known[part])
    text = f"A step takes {duration(total)}; {largest} is the largest part, {percent(known[largest] / total, 0)} of it"
    if "data" in known and largest != "data":
        text += f", and waiting for data costs {percent(known['data'] / total)}"
    return text + "."


def comparison_verdict(runs: Sequence[Run]) -> str:
    """The fastest run, the lowest loss (at equal images) and the best probe: one sentence."""
    clauses = [_fastest(runs), _lowest_loss(runs), _best_probe(runs)]
    return f"{len(runs)} runs: {'; '.join(clauses)}."


def _fastest(runs: Sequence[Run]) -> str:
    speeds = [(spread(run.columns["images_per_s"][warmed_up(run)[0]]).median, run) for run in runs]
    known = sorted((pair for pair in speeds if pair[0] > 0), key=lambda pair: -pair[0])
    if not known:
        return f"throughput {NOT_MEASURED}"
    text = f"{known[0][1].name} is the fastest at {significant(known[0][0])} images/s"
    if len(known) > 1:
        text += f", {significant(known[0][0] / known[-1][0])} times the slowest ({known[-1][1].name})"
    devices = {run.fact("world_size") for _, run in known}
    return text + (" (unequal numbers of devices)" if len(devices) > 1 else "")


def _lowest_loss(runs: Sequence[Run]) -> str:
    images = common_images(runs)
    known = [(loss, run) for run in runs if (loss := final_loss(run, images)[0]) is not None]
    if not known:
        return f"final loss {NOT_MEASURED}"
    known.sort(key=lambda pair: pair[0])
    loss, run = known[0]
    where = "at the end" if images is None else f"at the {images:,} images that all have seen"
    return f"{run.name} has the lowest loss {where}, {significant(loss, 4)}"


def _best_probe(runs: Sequence[Run]) -> str:
    tops = [(top, run) for run in runs if (top := probes.best(run.probe, PRETRAINED)) is not None]
    if not tops:
        return f"frozen-feature accuracy {NOT_MEASURED}"
    # Figures of one metric can be compared: that of the first run.
    tops = sorted((pair for pair in tops if pair[0].metric == tops[0][0].metric), key=lambda pair: -pair[0].score)
    top, run = tops[0]
    text = f"{run.name} has the best probe, {probes.worded(top)} ({top.method})"
    if len(tops) == 1:
        return text
    second, other = tops[1]
    apart = probes.difference(top, second).intervals_apart
    claim = {
        None: "intervals not measured",
        True: "outside the 95 % confidence intervals",
        False: "not separated, 95 % intervals overlap",
    }[apart]
    return f"{text} against {percent(second.score)} of {other.name}: {claim}"
