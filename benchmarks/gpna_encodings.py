"""`python benchmarks/gpna_encodings.py`: what the choices of docs/gpna_encodings.md are worth, and what the encodings cost.

Linear (ridge) fits show which functions an encoding hands to the model as they are; all fits, points and fields are seeded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch

from gpna.fourier import (
    CIRCUMFERENCE_M,
    Region,
    encode,
    place_features,
    plane_frequencies,
    position_features,
    spectral_features,
    time_features,
)

ANGLES = np.arange(0, 180, 22.5)


def ridge_r2(features: np.ndarray, values: np.ndarray, training: int, lam: float = 1.0, seed: int = 0) -> float:
    """R2 on the points that a linear map with an intercept was not fitted on."""
    features = np.concatenate([features, np.ones((len(features), 1))], 1)
    order = np.random.default_rng(seed).permutation(len(values))
    train, test = order[:training], order[training:]
    a = features[train]
    weights = np.linalg.solve(a.T @ a + lam * np.eye(a.shape[1]), a.T @ values[train])
    return float(1 - ((features[test] @ weights - values[test]) ** 2).mean() / values[test].var())


def directions(cycles: float) -> None:
    print(
        f"\n## Plane waves of {cycles} cycles on 32 x 32 cells: R2 by direction; 128 columns, 400 cells known, ridge 1"
    )
    y, x = (v.ravel() for v in np.meshgrid(*[(np.arange(32) + 0.5) / 32] * 2, indexing="ij"))
    print(f"{'degrees':12s}", *(f"{a:6g}" for a in ANGLES))
    for region in get_args(Region):
        features = position_features(32, 32, 128, region, dtype=torch.float64).view(1024, 128).numpy()
        waves = (np.sin(2 * np.pi * cycles * (x * np.cos(a) + y * np.sin(a))) for a in np.radians(ANGLES))
        print(
            f"{region:12s}", *(f"{np.mean([ridge_r2(features, w, 400, seed=s) for s in range(5)]):6.2f}" for w in waves)
        )


def columns() -> None:
    print("\n## The same, half_plane: mean R2 over the directions, by cycles of the wave")
    y, x = (v.ravel() for v in np.meshgrid(*[(np.arange(32) + 0.5) / 32] * 2, indexing="ij"))
    print(f"{'columns':>8s} {'highest':>8s}", *(f"{c:6g}" for c in (1, 2.3, 4, 6, 10)))
    for size, highest in ((128, 16.0), (128, 8.0), (256, 16.0), (512, 16.0), (512, 8.0)):
        features = position_features(32, 32, size, "half_plane", highest, torch.float64).view(1024, size).numpy()
        scores = []
        for cycles in (1, 2.3, 4, 6, 10):
            waves = [np.sin(2 * np.pi * cycles * (x * np.cos(a) + y * np.sin(a))) for a in np.radians(ANGLES)]
            scores.append(np.mean([ridge_r2(features, w, 400, lam=0.1) for w in waves]))
        print(f"{size:8d} {highest:8g}", *(f"{v:6.2f}" for v in scores))


def places() -> None:
    print(
        "\n## Random fields on the globe (40 Gaussian bumps of 15 degrees, mean of 10 fields): R2; 128 columns, 1,000 places known"
    )
    g = np.random.default_rng(0)
    points = g.normal(size=(4000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    lon, lat = np.degrees(np.arctan2(points[:, 1], points[:, 0])), np.degrees(np.arcsin(points[:, 2]))
    fields = g.normal(size=(10, 40, 4))
    polar, seam = np.abs(lat) > 60, np.abs(lon) > 165

    def plane(region: Region, shortest: float, power: int) -> torch.Tensor:
        """Lengths from 1 on, their logarithms growing with this power of the place in the sequence."""
        k = plane_frequencies(64, CIRCUMFERENCE_M / shortest, region, lowest=1.0)
        place = k.norm(dim=1, keepdim=True).log() / math.log(CIRCUMFERENCE_M / shortest)  # 0 ... 1
        k *= (CIRCUMFERENCE_M / shortest) ** (place**power - place)
        k[:, 0].round_()
        return encode(torch.from_numpy(np.stack([lon, lat], -1)) / 360, 0.0, k, torch.float64)

    for shortest in (2_000_000.0, 1_000.0, 20.0):
        charts = {
            "axes apart (Eq. 2)": plane("axis", shortest, 2),
            "lonlat, equal ratios": plane("half_plane", shortest, 1),
            "lonlat": place_features(lon, lat, 0.0, 128, shortest_m=shortest, dtype=torch.float64),
            "sphere": place_features(lon, lat, 0.0, 128, "sphere", shortest, torch.float64),
        }
        for name, features in charts.items():
            scores = []
            for field in fields:
                centres = field[:, :3] / np.linalg.norm(field[:, :3], axis=1, keepdims=True)
                values = (
                    np.exp(-0.5 * (np.arccos(np.clip(points @ centres.T, -1, 1)) / math.radians(15)) ** 2) @ field[:, 3]
                )
                scores.append(
                    [ridge_r2(features.numpy(), values, 1000), *fit_in(features.numpy(), values, (polar, seam))]
                )
            whole, at_poles, at_seam = np.mean(scores, 0)
            print(
                f"down to {shortest:>9,.0f} m  {name:20s} all {whole:5.2f}   |lat| > 60 {at_poles:5.2f}   |lon| > 165 {at_seam:5.2f}"
            )


def fit_in(features: np.ndarray, values: np.ndarray, parts: tuple[np.ndarray, ...]) -> list[float]:
    """The same fit, scored on parts of the unseen points."""
    features = np.concatenate([features, np.ones((len(features), 1))], 1)
    order = np.random.default_rng(0).permutation(len(values))
    a = features[order[:1000]]
    weights = np.linalg.solve(a.T @ a + np.eye(a.shape[1]), a.T @ values[order[:1000]])
    unseen = np.isin(np.arange(len(values)), order[1000:])
    scores = []
    for part in parts:
        at = part & unseen
        scores.append(float(1 - ((features[at] @ weights - values[at]) ** 2).mean() / values[at].var()))
    return scores


def precision() -> None:
    print("\n## Largest error of sin(2 pi k lon / 360) over 2,000 longitudes")
    x = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, 2000))
    for k in (100, 10_000, 100_000, 1_000_000, 2_003_751):
        exact = np.sin(2 * np.pi * np.remainder(np.longdouble(x.numpy()) * k, 1).astype(np.float64))
        naive = torch.sin(2 * math.pi * k * x.float()).double().numpy()
        ours = encode(x[:, None], 0.0, torch.tensor([[k]], dtype=torch.float64))[:, 0].double().numpy()
        metres = CIRCUMFERENCE_M / k
        print(
            f"{metres:>12,.0f} m a cycle   float32 phase {abs(naive - exact).max():.1e}   encode {abs(ours - exact).max():.1e}"
        )


def cost() -> None:
    print("\n## Seconds a call (median of 7, one thread)")
    torch.set_num_threads(1)
    g = np.random.default_rng(0)
    lon, lat, start = g.uniform(-180, 180, 256), g.uniform(-90, 90, 256), g.uniform(0, 1.6e9, (256, 12))
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "place, 256 samples, 128 columns": lambda: place_features(lon, lat, 1000.0, 128),
        "place on the sphere, the same": lambda: place_features(lon, lat, 1000.0, 128, "sphere"),
        "time, 256 samples of 12 dates, 64 columns": lambda: time_features(start, start + 86400.0, 64),
        "position, 28 x 28 cells, 128 columns": lambda: position_features(28, 28, 128, "half_plane"),
        "position, 224 x 224 cells, 128 columns": lambda: position_features(224, 224, 128, "half_plane"),
        "spectral, 13 bands, 64 columns": lambda: spectral_features(np.linspace(443, 2190, 13), 30.0, 64),
    }
    for name, call in calls.items():
        took = []
        for _ in range(8):
            begin = time.perf_counter()
            call()
            took.append(time.perf_counter() - begin)
        print(f"{name:44s} {np.median(took[1:]):.4f}")


if __name__ == "__main__":
    for cycles in (2.3, 4.0):
        directions(cycles)
    columns()
    places()
    precision()
    cost()
