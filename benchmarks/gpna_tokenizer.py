"""What GPNA's tokenizer costs: processor time and memory kept for the backward pass, by hidden channels.

    OMP_NUM_THREADS=1 python benchmarks/gpna_tokenizer.py

Processor time of this process, least of `--turns` turns; the turns go round all cases, so that a busy machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from frontier.models.init import initialise
from gpna import stems
from gpna.sensors import InputSpec, find_sensor
from gpna.tokenizer import Tokenizer, TokenizerSettings

BANDS = tuple(find_sensor("sentinel2").bands.values())
INPUTS = {
    "224x224x8": InputSpec("CHW", (8, 224, 224), BANDS[:8], 10.0, 8),
    "64x64x13": InputSpec("CHW", (13, 64, 64), BANDS[:13], 10.0, 8),
    "series 24x13": InputSpec("TC", (24, 13), BANDS[:13], 10.0, 1),
}


def tokenizer(hidden: tuple[int, int]) -> Tokenizer:
    """With weights."""
    with torch.device("meta"):
        model = Tokenizer(INPUTS, TokenizerSettings(hidden=hidden))
    model = model.to_empty(device="cpu")
    initialise(model, 0)
    return model


def turn(model: Tokenizer, key: str, batch: int) -> tuple[float, float, int]:
    """Seconds forward, seconds backward, bytes that the forward pass keeps."""
    spec, settings, kept = INPUTS[key], model.settings, {}
    values, place = torch.randn(batch, *spec.shape), torch.randn(batch, settings.place)
    dates = torch.randn(batch, spec.steps, settings.time)

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    start = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        tokens = model(key, values, place, dates)
    middle = time.process_time()
    tokens.backward(torch.ones_like(tokens))
    return middle - start, time.process_time() - middle, sum(kept.values())


def main() -> None:
    """Print a Markdown table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--turns", type=int, default=5)
    arguments.add_argument("--batch", type=int, default=8)
    given = arguments.parse_args()
    models = {hidden: tokenizer(hidden) for hidden in ((8, 16), (16, 32), (32, 64))}
    found: dict[tuple, list[tuple[float, float, int]]] = {}
    shipped = stems.ONE_BY_ONE
    for _ in range(given.turns):
        for hidden, model in models.items():
            for key in INPUTS:
                for grouped in (False, True):
                    stems.ONE_BY_ONE = sys.maxsize if grouped else shipped
                    found.setdefault((hidden, key, grouped), []).append(turn(model, key, given.batch))
    print(
        "| input | tokens | hidden | forward, ms | backward, ms | kept, MB | all bands in one grouped convolution, ms |"
    )
    print("|---|---|---|---|---|---|---|")
    for key, spec in INPUTS.items():
        for hidden in models:
            ahead, back, kept = (min(column) for column in zip(*found[hidden, key, False], strict=True))
            grouped = sum(min(column) for column in list(zip(*found[hidden, key, True], strict=True))[:2])
            other = "-" if spec.form == "point" else f"{grouped * 1e3:.0f}"
            times = f"{ahead * 1e3:.0f} | {back * 1e3:.0f} | {kept / 1e6:.0f} | {other}"
            print(f"| {key} | {given.batch * spec.tokens:,} | {hidden[0]}, {hidden[1]} | {times} |")


if __name__ == "__main__":
    main()
