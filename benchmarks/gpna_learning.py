"""`python benchmarks/gpna_learning.py --data ../shared/data --part fuel_moisture|eurosat|both|few_labels --seeds 3`

What GPNA learns from real data, next to well-kept baselines on the same samples and inputs. Every run goes through `frontier pretrain`'s trainer
with a config of jobs/configs; every row is measured here. A part replaces its own rows in benchmarks/results/gpna_learning.json, from which
benchmarks/results/gpna_learning.md is written. Finished runs in --work are used again: give another folder to start afresh.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_prep.command import main as shards_main
from frontier import metrics
from frontier.config.load import load_config
from frontier.data.shards import ShardSet
from frontier.launch.process_group import process_group
from frontier.launch.ranks import Ranks
from frontier.train.checkpoint import load_model
from frontier.train.plan import resolve
from frontier.train.preemption import StopFlag
from frontier.train.trainer import train
from gpna.baselines import Budget, baselines, read_split
from gpna.model import GPNA
from gpna.predict import Predicted, open_split, predict

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "jobs" / "configs"
RESULTS = ROOT / "benchmarks" / "results"
FEW = 0.05
"""Share of the labels in the few-label comparison."""
LEARNING_RATES = (4.0e-3, 1.2e-2)
"""Values of train.base_lr that both arms of that comparison try with the first seed; the better on val is used with all seeds."""
LONGER = 3
"""Times as many steps for one more run from scratch."""
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % quantile of Student's t for so many seeds."""

Row = dict[str, Any]


def shards_of(data: Path, work: Path) -> dict[str, Path]:
    """Both data sets as shards; nothing is written that is there already."""
    found = {"fuel_moisture": work / "shards" / "fuel_moisture", "eurosat": work / "shards" / "eurosat"}
    moisture = data / "timeseries" / "presto_eval" / "fuel_moisture"
    orders = {
        "fuel_moisture": ["--reader", "presto_fuel_moisture", "--from", str(moisture), "--val-fraction", "0.15"],
        "eurosat": ["--from", str(data / "eurosat_rgb"), "--val-fraction", "0.1"],
    }
    for name, out in found.items():
        if shards_main(["write", *orders[name], str(out)]):
            raise SystemExit(f"{out} could not be written")
    return found


def trained(
    config: Path, run_dir: Path, overrides: Sequence[str], start: str | None = None
) -> tuple[GPNA, dict[str, Any], Row]:
    """(module, resolved config, what training took) of a finished run, which is trained unless it is there."""
    words = [f"run.dir={run_dir}", "log.progress=none", *overrides, f"train.start_from={start or 'null'}"]
    plan = resolve(load_config(config, words), 1)
    device, before = torch.device("cpu"), (time.perf_counter(), time.process_time())
    done = run_dir / "checkpoints" / f"step_{plan.steps:08d}"
    if not done.is_dir():
        ranks = Ranks(0, 1, 0, 1, "alone")
        with process_group(ranks, device, plan.config.parallel.timeout_s):
            if train(plan, ranks, device, StopFlag()):
                raise SystemExit(f"{run_dir}: stopped before its end")
        took = {"wall_s": time.perf_counter() - before[0], "cpu_s": time.process_time() - before[1]}
        (run_dir / "took.json").write_text(json.dumps(took))
    module, resolved, steps = load_model(run_dir)
    assert isinstance(module, GPNA)
    took = json.loads((run_dir / "took.json").read_text()) | {"steps": steps, "parameters": plan.parameters}
    print(f"{run_dir.name}: {steps} steps, {took['wall_s']:.0f} s", file=sys.stderr, flush=True)
    return module, resolved, took


def predicted(module: GPNA, config: dict[str, Any], source: str, split: str) -> dict[str, Predicted]:
    return predict(module, config, open_split(config, source, split), size=128)


def groups_of(config: dict[str, Any], source: str, split: str) -> np.ndarray | None:
    """The sites of fuel moisture: intervals resample whole ones."""
    shards: ShardSet = ShardSet(config["data"]["sources"][source]["shards"], split)
    return shards.column("site") if "site" in shards.manifest["columns"] else None


def measure(found: Predicted, groups: np.ndarray | None) -> Row:
    """Metrics of one run's predictions."""
    if found.values.shape[1] == 1:
        return metrics.regression(found.values[:, 0], found.labels[:, 0], groups=groups)
    return metrics.classification(found.values.argmax(1), found.labels, groups=groups)


def over_seeds(rows: Sequence[Row], names: Sequence[str]) -> Row:
    """Mean over runs and its 95 % interval by Student's t; of one run its own bootstrap interval."""
    out: Row = {}
    for name in names:
        values = np.array([row[name] for row in rows])
        out[name] = float(values.mean())
        half = STUDENT[len(values)] * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
        own = (
            [float(values.mean() - half), float(values.mean() + half)] if half is not None else rows[0][f"{name}_ci95"]
        )
        out[f"{name}_ci95"] = own
        out[f"{name}_each"] = [float(value) for value in values]
    return out


class Part:
    """A part of the comparison: where its data are, where its runs go, what was found."""

    def __init__(self, shards: dict[str, Path], work: Path, seeds: int) -> None:
        self.shards, self.work, self.seeds = shards, work, seeds
        self.rows: list[Row] = []

    def sources(self, *names: str) -> list[str]:
        where = {"series": "fuel_moisture", "images": "eurosat"}
        return [f"data.sources.{name}.shards={self.shards[where[name]]}" for name in names]

    def add(self, table: str, model: str, scores: Row, **more: Any) -> None:
        keep = {k: v for k, v in scores.items() if isinstance(v, (int, float, list))}
        self.rows.append({"table": table, "model": model, **keep, **more})
        print({k: v for k, v in self.rows[-1].items() if not k.endswith("_ci95")}, file=sys.stderr, flush=True)

    def baselines(
        self, table: str, name: str, target: str, kind: str, groups: str | None, budget: Budget | None = None
    ) -> None:
        kept = self.work / f"baselines_{table}.json"
        if not kept.exists():
            splits = {
                s: read_split(ShardSet(self.shards[name], s), target, groups=groups) for s in ("train", "val", "test")
            }
            rows = baselines(kind, splits["train"], splits["test"], splits["val"], budget=budget, task=target)
            kept.write_text(json.dumps(rows))
        for row in json.loads(kept.read_text()):
            self.add(table, f"{row['model']} (baseline)", row, chosen=row["chosen"], n_train=row["n_train"], runs=1)

    def runs(
        self,
        config: Path,
        name: str,
        sources: Sequence[str],
        starts: Callable[[int], str | None] | None = None,
        overrides: Callable[[int], list[str]] | None = None,
        seeds: int | None = None,
    ) -> tuple[dict[str, list[Row]], dict[str, list[Predicted]], list[Row]]:
        """Scores and predictions on test of every task, and what training took, one entry a seed."""
        scores: dict[str, list[Row]] = {}
        answers: dict[str, list[Predicted]] = {}
        costs = []
        for seed in range(seeds or self.seeds):
            words = [*self.sources(*sources), f"run.seed={seed}", *(overrides(seed) if overrides else [])]
            module, resolved, took = trained(
                config, self.work / "runs" / f"{name}_{seed}", words, starts(seed) if starts else None
            )
            costs.append(took)
            for source in sources:
                for task, found in predicted(module, resolved, source, "test").items():
                    scores.setdefault(task, []).append(measure(found, groups_of(resolved, source, "test")))
                    answers.setdefault(task, []).append(found)
        return scores, answers, costs


REGRESSION, CLASSES = ("pearson_r2", "r2", "rmse"), ("accuracy", "macro_f1")


def fuel_moisture(part: Part) -> None:
    """(a) live fuel moisture at sites that were never seen."""
    table = "fuel_moisture"
    part.baselines(table, "fuel_moisture", "fuel_moisture", "regression", "site")
    scores, answers, costs = part.runs(CONFIGS / "gpna_fuel_moisture.yaml", "fuel_moisture", ["series"])
    part.add(table, "GPNA", over_seeds(scores["fuel_moisture"], REGRESSION), runs=part.seeds, **mean_cost(costs))
    if part.seeds > 1:
        found = answers["fuel_moisture"]
        mean = Predicted(np.mean([one.values for one in found], 0), found[0].labels)
        sites = ShardSet(part.shards["fuel_moisture"], "test").column("site")
        part.add(table, f"GPNA, mean of {part.seeds} runs' answers", measure(mean, sites), runs=1)


def eurosat(part: Part) -> None:
    """(b) land cover of EuroSAT's RGB images."""
    table = "eurosat"
    budget = Budget(neighbours=(5, 20), logistic_strengths=(1e-2, 1e-1), tree_features=("sqrt",), tree_leaves=(1, 3))
    part.baselines(table, "eurosat", "label", "classification", None, budget)
    scores, _, costs = part.runs(CONFIGS / "gpna_eurosat.yaml", "eurosat", ["images"])
    part.add(table, "GPNA", over_seeds(scores["land_cover"], CLASSES), runs=part.seeds, **mean_cost(costs))


def both(part: Part) -> None:
    """(c) one set of weights on both tasks; parts fuel_moisture and eurosat are each of them alone, with its own recipe."""
    table = "both"
    scores, _, costs = part.runs(CONFIGS / "gpna_two_tasks.yaml", "both", ["images", "series"])
    for task, names in (("fuel_moisture", REGRESSION), ("land_cover", CLASSES)):
        part.add(
            table,
            "both tasks, one set of weights",
            over_seeds(scores[task], names),
            task=task,
            runs=part.seeds,
            **mean_cost(costs),
        )


def few_labels(part: Part) -> None:
    """(d) pretrained without labels on the training images, then FEW of the labels; against the same model from scratch.

    Both arms have the same steps, batches, labels and tries of the learning rate.
    """
    table = "few_labels"
    config = CONFIGS / "gpna_eurosat_pretrain.yaml"
    finetune = CONFIGS / "gpna_eurosat_finetune.yaml"
    run = part.work / "runs" / "eurosat_pretrain_0"
    _, _, cost = trained(config, run, [*part.sources("images"), "run.seed=0"])
    labels = round(FEW * len(ShardSet(part.shards["eurosat"], "train")))

    def few(seed: int) -> list[str]:
        return [f"data.sources.images.samples={labels}", f"data.sources.images.samples_seed={seed}"]

    each, chosen = {}, {}
    for name, start in (("from scratch", None), ("pretrained", str(run))):
        short = name.replace("from ", "")
        tried = {}
        for lr in LEARNING_RATES:
            words = [*part.sources("images"), "run.seed=0", *few(0), f"train.base_lr={lr}"]
            module, resolved, _ = trained(finetune, part.work / "runs" / f"few_{short}_{lr:g}_0", words, start)
            found = predicted(module, resolved, "images", "val")["land_cover"]
            tried[lr] = measure(found, None)["accuracy"]
        chosen[name] = best = max(tried, key=lambda lr: tried[lr])
        scores, _, costs = part.runs(
            finetune,
            f"few_{short}_{best:g}",
            ["images"],
            lambda seed, start=start: start,
            lambda seed, best=best: [*few(seed), f"train.base_lr={best}"],
        )
        each[name] = [row["accuracy"] for row in scores["land_cover"]]
        part.add(
            table,
            f"GPNA {name}, {labels} labels",
            over_seeds(scores["land_cover"], CLASSES),
            runs=part.seeds,
            val_by_base_lr={f"{lr:g}": value for lr, value in tried.items()},
            **mean_cost(costs),
        )
    if part.seeds > 1:
        gain = np.subtract(each["pretrained"], each["from scratch"])
        half = STUDENT[len(gain)] * gain.std(ddof=1) / np.sqrt(len(gain))
        gained = {
            "accuracy": float(gain.mean()),
            "accuracy_ci95": [float(gain.mean() - half), float(gain.mean() + half)],
            "accuracy_each": gain.tolist(),
        }
        part.add(table, "gain, by seeds in pairs", gained, runs=part.seeds)
    steps = LONGER * (load_config(finetune).train.steps or 0)
    scores, _, costs = part.runs(
        finetune,
        f"few_scratch_{LONGER}_times",
        ["images"],
        overrides=lambda seed: [*few(seed), f"train.base_lr={chosen['from scratch']}", f"train.steps={steps}"],
        seeds=1,
    )
    longer = over_seeds(scores["land_cover"], CLASSES)
    part.add(table, f"GPNA from scratch, {LONGER} times as long, first seed", longer, runs=1, **mean_cost(costs))
    part.add(table, "(pretraining itself)", {}, runs=1, **mean_cost([cost]))


PARTS = {"fuel_moisture": fuel_moisture, "eurosat": eurosat, "both": both, "few_labels": few_labels}


def mean_cost(costs: Sequence[Row]) -> Row:
    return {name: float(np.mean([one[name] for one in costs])) for name in ("wall_s", "cpu_s", "steps", "parameters")}


def cell(row: Row, name: str) -> str:
    if name not in row:
        return ""
    low, high = row[f"{name}_ci95"]
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def report(results: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [
        "# What GPNA learns from real data",
        "",
        "Written by `python benchmarks/gpna_learning.py --part …`; recipes in jobs/configs, what was learned in docs/gpna_learning.md.",
        "Intervals are 95 %: over seeds by Student's t where there are several runs, else by resampling test samples (fuel moisture: whole sites).",
    ]
    for part, found in results.items():
        lines += [
            "",
            f"## {part}",
            "",
            f"{found['date']}, {found['device']}, {found['versions']}, `--seeds {found['seeds']}`.",
            "",
        ]
        rows = found["rows"]
        names = [n for n in (*REGRESSION, *CLASSES) if any(n in row for row in rows)]
        lines += ["| model | task | " + " | ".join(names) + " | runs | steps | CPU s a run | parameters |"]
        lines += ["|---" * (len(names) + 6) + "|"]
        for row in rows:
            cost = [f"{row[n]:,.0f}" if n in row else "" for n in ("steps", "cpu_s", "parameters")]
            values = [cell(row, n) for n in names]
            lines.append(
                "| " + " | ".join([row["model"], row.get("task", ""), *values, str(row["runs"]), *cost]) + " |"
            )
        each = [row for row in rows if row["runs"] > 1]
        first = {n: [row for row in each if f"{n}_each" in row] for n in ("r2", "accuracy")}
        for n, having in first.items():
            for row in having:
                lines += [
                    "",
                    f"{row['model']} {row.get('task', '')}: {n} of each seed "
                    + ", ".join(f"{v:.3f}" for v in row[f"{n}_each"]),
                ]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the shared real data"
    )
    parser.add_argument("--part", choices=PARTS, action="append", help="repeat for several (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/gpna_learning"), help="shards and runs (default: %(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="(default: benchmarks/results)")
    given = parser.parse_args(words)
    if not 1 <= given.seeds <= max(STUDENT):
        parser.error(f"--seeds {given.seeds}: 1 to {max(STUDENT)}")
    torch.set_num_threads(1)
    shards = shards_of(given.data, given.work)
    path = given.results / "gpna_learning.json"
    for name in given.part or PARTS:
        part = Part(shards, given.work, given.seeds)
        PARTS[name](part)
        results = json.loads(path.read_text()) if path.exists() else {}
        results[name] = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "device": f"{device_name()}, one thread",
            "versions": f"torch {torch.__version__}, numpy {np.__version__}, Python {platform.python_version()}",
            "seeds": given.seeds,
            "rows": part.rows,
        }
        path.write_text(json.dumps(results, indent=1, allow_nan=True) + "\n")
        (given.results / "gpna_learning.md").write_text(report({n: results[n] for n in PARTS if n in results}))
        print(report({name: results[name]}))
    return 0


def device_name() -> str:
    from frontier.train.metrics import device_name as name

    return name(torch.device("cpu"))


if __name__ == "__main__":
    sys.exit(main())
