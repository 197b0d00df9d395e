"""Fit the predictor's constants from the published points, in the open: `python -m frontier_profiling.predict.fit [--write]`.

Throughput: eight constants from 167 cells, by least squares of log(predicted / published) under a soft-L1 loss (single published
points are noisy: 64 nodes of one curve can lie above and below the curve through 32 and 128). A weak prior ties each to a plausible
value, so that a constant that the remaining cells say nothing about stays there: being off by a factor e costs as much as an error of 5 %.
Memory of the published engine: seven constants from 55 cells, likewise. Nothing is tuned by cell, model or strategy.

What is scored on cells that were left out is fitted without them (`left_out`).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from frontier_profiling.predict.constants import FILE, FITTED, Constants, FSDP1Memory, defaults, fsdp1_memory
from frontier_profiling.predict.memory import published_memory
from frontier_profiling.predict.published import case_of, memory_cells, throughput
from frontier_profiling.predict.step import step

PRIOR = {
    "product_efficiency_bf16": 0.45,
    "product_efficiency_fp32": 0.55,
    "memory_efficiency": 0.6,
    "launch_s": 0.0025,
    "hop_s": 5e-6,
    "ring_congestion": 300.0,
    "network_efficiency": 0.5,
    "contention": 0.6,
}
MEMORY_PRIOR = {
    "library_gib": 0.4,
    "scores": 2.0,
    "start_blocks": 1.0,
    "end_blocks": 2.0,
    "active_start_blocks": 4.0,
    "active_end_blocks": 8.0,
    "active_whole": 5.0,
}
PRIOR_WEIGHT, SCALE = 0.05, 0.05

Cell = tuple[str, str, int, float]


def errors(constants: Constants, cells: Sequence[Cell]) -> np.ndarray:
    """predicted / published of each cell's images/s."""
    out = []
    for model, word, nodes, rate in cells:
        case = case_of(model, word, nodes)
        out.append(case.global_batch / step(case, constants).seconds / rate)
    return np.array(out)


def memory_errors(constants: FSDP1Memory, cells: Sequence[tuple[str, str, int, str, float]]) -> np.ndarray:
    """predicted / published of each cell's GiB."""
    out = []
    for model, word, devices, quantity, gib in cells:
        held = published_memory(case_of(model, word, devices // 8), constants).parts
        out.append(held["total_allocated" if quantity == "max_allocated" else "peak"] / gib)
    return np.array(out)


def _least_squares(residuals: Callable[[np.ndarray], np.ndarray], prior: np.ndarray) -> np.ndarray:
    from scipy.optimize import least_squares

    def all_residuals(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([residuals(np.exp(logs)), PRIOR_WEIGHT * (logs - np.log(prior))])

    return np.exp(least_squares(all_residuals, np.log(prior), loss="soft_l1", f_scale=SCALE).x)


def fit(cells: Sequence[Cell]) -> Constants:
    """The constants that explain `cells` best."""

    def build(values: np.ndarray) -> Constants:
        return dataclasses.replace(defaults(), **dict(zip(FITTED, map(float, values), strict=True)))

    prior = np.array([PRIOR[name] for name in FITTED])
    return build(_least_squares(lambda values: np.log(errors(build(values), cells)), prior))


def fit_memory(cells: Sequence[tuple[str, str, int, str, float]]) -> FSDP1Memory:
    names = list(MEMORY_PRIOR)

    def build(values: np.ndarray) -> FSDP1Memory:
        return FSDP1Memory(**dict(zip(names, map(float, values), strict=True)))

    prior = np.array(list(MEMORY_PRIOR.values()))
    return build(_least_squares(lambda values: np.log(memory_errors(build(values), cells)), prior))


@dataclass(frozen=True)
class Score:
    """How far predictions lie from published points: of |predicted / published - 1|."""

    name: str
    cells: int
    median: float
    p90: float
    within_30: float
    within_5: float

    @classmethod
    def of(cls, name: str, ratios: np.ndarray) -> Score:
        off = np.abs(ratios - 1)
        return cls(name, len(off), float(np.median(off)), float(np.quantile(off, 0.9)), float((off < 0.3).mean()), float((off < 0.05).mean()))  # fmt: skip


def left_out(cells: Sequence[Any], key: int, fitted: Callable, scored: Callable) -> list[Score]:
    """For each value of `cells[.][key]` (0: model, 1: strategy): fit without its cells, score on them; the last is all of them."""
    scores, ratios = [], []
    for value in dict.fromkeys(cell[key] for cell in cells):
        held = [cell for cell in cells if cell[key] == value]
        ratios.append(scored(fitted([cell for cell in cells if cell[key] != value]), held))
        scores.append(Score.of(value, ratios[-1]))
    return [*scores, Score.of("all left out", np.concatenate(ratios))]


def best_named(constants: Constants) -> list[dict[str, Any]]:
    """For each model at 64 and 128 nodes: the strategy with the highest predicted rate among the published ones, and what it
    reached as published against the published best.
    """
    out = []
    for nodes in (64, 128):
        for model in dict.fromkeys(cell[0] for cell in throughput()):
            cells = [cell for cell in throughput() if cell[0] == model and cell[2] == nodes]
            rates = {word: case_of(model, word, nodes).global_batch / step(case_of(model, word, nodes), constants).seconds for _, word, _, _ in cells}  # fmt: skip
            known = {word: rate for _, word, _, rate in cells}
            named = max(rates, key=lambda word: rates[word])
            best = max(known, key=lambda word: known[word])
            out.append(
                {
                    "model": model,
                    "nodes": nodes,
                    "named": named,
                    "published_best": best,
                    "of_best": known[named] / known[best],
                }
            )
    return out


def report(leave_out: bool = True) -> dict[str, Any]:
    """All scores of the shipped constants, and of constants fitted without what they are scored on."""
    cells, constants = throughput(), defaults()
    ratios = errors(constants, cells)
    held = memory_cells()
    found: dict[str, Any] = {
        "throughput": Score.of("all", ratios),
        "by_cell": [(*cell, float(ratio)) for cell, ratio in zip(cells, ratios, strict=True)],
        "memory": Score.of("all", memory_errors(fsdp1_memory(), held)),
        "memory_by_cell": [
            (*cell, float(r)) for cell, r in zip(held, memory_errors(fsdp1_memory(), held), strict=True)
        ],
        "best": best_named(constants),
    }
    if leave_out:
        found["left_out_models"] = left_out(cells, 0, fit, errors)
        found["left_out_strategies"] = left_out(cells, 1, fit, errors)
        found["memory_left_out_models"] = left_out(held, 0, fit_memory, memory_errors)
    return found


def lines(found: dict[str, Any]) -> list[str]:
    """The report as Markdown."""

    def table(title: str, scores: Sequence[Score], memory: bool = False) -> list[str]:
        last = "within 5 %" if memory else "within 30 %"
        head = [
            f"### {title}",
            "",
            f"| | cells | median error | nine of ten within | {last} |",
            "|---|---|---|---|---|",
        ]
        rows = [
            f"| {s.name} | {s.cells} | {100 * s.median:.1f} % | {100 * s.p90:.1f} % | {100 * (s.within_5 if memory else s.within_30):.0f} % |"
            for s in scores
        ]
        return [*head, *rows, ""]

    out = table("Throughput, fitted on all published cells", [found["throughput"]])
    if "left_out_models" in found:
        out += table("Throughput, each model left out of the fit", found["left_out_models"])
        out += table("Throughput, each strategy left out of the fit", found["left_out_strategies"])
    out += table("Memory of the published engine", [found["memory"]], memory=True)
    if "memory_left_out_models" in found:
        out += table("Memory, each model left out of the fit", found["memory_left_out_models"], memory=True)
    out += ["### Best strategy among the published ones", "", "| model | nodes | named | published best | rate of the named, of the best |", "|---|---|---|---|---|"]  # fmt: skip
    out += [f"| {b['model']} | {b['nodes']} | {b['named']} | {b['published_best']} | {100 * b['of_best']:.1f} % |" for b in found["best"]]  # fmt: skip
    out += ["", "### Predicted over published images/s, less 1, %", "", "| model | strategy | 1 | 2 | 4 | 8 | 16 | 32 | 64 | 128 nodes |", "|" + "---|" * 10]  # fmt: skip
    curves: dict[tuple[str, str], dict[int, float]] = {}
    for model, word, nodes, _, ratio in found["by_cell"]:
        curves.setdefault((model, word), {})[nodes] = ratio
    for (model, word), curve in curves.items():
        shown = [f"{100 * (curve[n] - 1):+.1f}" if n in curve else "" for n in (1, 2, 4, 8, 16, 32, 64, 128)]
        out.append(f"| {model} | {word} | " + " | ".join(shown) + " |")
    off = [(m, w, d, q, g, r) for m, w, d, q, g, r in found["memory_by_cell"] if abs(r - 1) >= 0.05]
    out += ["", f"Memory cells off by 5 % or more: {'; '.join(f'{m} {w} {q} {g:.2f} GiB {100 * (r - 1):+.1f} %' for m, w, d, q, g, r in off) or 'none'}.", ""]  # fmt: skip
    return out


def write(constants: Constants, memory: FSDP1Memory, spreads: dict[str, float]) -> None:
    """Put fitted values into `constants.yaml`, keeping its comments."""
    text = FILE.read_text()
    values = {name: getattr(constants, name) for name in FITTED} | dataclasses.asdict(memory)
    for name, value in values.items():
        text, count = re.subn(rf"(?m)^(  {name}: )\S+", lambda m, v=value: f"{m[1]}{v:.4g}", text)
        assert count == 1, name
    shown = ", ".join(f"{name}: {value:.3g}" for name, value in spreads.items())
    text, count = re.subn(r"(?m)^spread: \{.*\}", f"spread: {{{shown}}}", text)
    assert count == 1
    FILE.write_text(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the fitted values into constants.yaml")
    parser.add_argument("--no-leave-out", action="store_true", help="fit once, on everything: quicker")
    args = parser.parse_args(argv)
    constants, memory = fit(throughput()), fit_memory(memory_cells())
    for name in FITTED:
        print(f"{name:28}{getattr(constants, name):12.4g}   prior {PRIOR[name]:.4g}")
    for name, value in dataclasses.asdict(memory).items():
        print(f"memory_fsdp1.{name:15}{value:12.4g}   prior {MEMORY_PRIOR[name]:.4g}")
    if args.write:
        cells = throughput()
        within = Score.of("all", errors(constants, cells)).p90
        others = left_out(cells, 0, fit, errors)[-1].p90
        from frontier_profiling.predict.constants import raw

        # Of an error e, exp|log(1 + e)| is about 1 + e / (1 - e / 2).
        spreads = {
            "within": 1 / (1 - within),
            "other_models": 1 / (1 - others),
            "other_systems": raw()["spread"]["other_systems"],
        }
        assert all(math.isfinite(value) for value in spreads.values())
        write(constants, memory, spreads)
        print(f"wrote {FILE}")
        return 0
    print("\n".join(["", *lines(report(leave_out=not args.no_leave_out))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
