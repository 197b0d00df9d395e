"""Shards of tiles as the folders of 8-bit PNG that the Scale-ALiBi paper describes: `python -m data_prep.tiles.export`.

```
OUT/sar/Z/X/Y.png        256 px: red 0, green VV, blue VH, each amplitude x full scale, cut off at 255
OUT/visual/Z/X/Y.png     256 px: Sentinel-2 true colour
OUT/hires/Z/X/Y.png      256 px: NAIP of the same tile
OUT/hires/Z+1/X/Y.png    256 px: its four children, which together are the 512 px image
OUT/tiles.csv            z, x, y, lon, lat, split, by z, x, y
```
Alpha is the validity mask. The paper scales digital numbers (DN) of Sentinel-1 by 256/1000; DN = 10^(dB/20) x
(DN at 0 dB). That is the calibration constant where the shards were made from amplitude, and has to be given where they
were made from calibrated data; the default 1000 shows 0 dB as 255. Rounding replaces the paper's wrap-around.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.tiles.grid import Tile, children
from data_prep.tiles.sensors import true_colour
from frontier.data.manifest import load_manifest
from frontier.data.shards import ShardSet
from frontier.errors import EXIT_OK, EXIT_USER, UserError

FULL_SCALE_DN = 1000.0
"""Digital number that becomes 255."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.tiles.export", description="Shards of reader tile_triplets as folders of PNG tiles."
    )
    parser.add_argument("shards", metavar="SHARDS", type=Path, help="directory that `frontier shards write` made")
    parser.add_argument("out", metavar="OUT", type=Path, help="new or empty directory")
    parser.add_argument(
        "--dn-at-0db",
        type=float,
        help="Sentinel-1 digital number of 0 dB (default: the calibration of the shards, else 1000)",
    )
    arguments = parser.parse_args(argv)
    try:
        counts = export(arguments.shards, arguments.out, arguments.dn_at_0db)
    except UserError as error:
        print(f"frontier: {error}", file=sys.stderr)
        return EXIT_USER
    print(f"{arguments.out}: {', '.join(f'{count:,} {name}' for name, count in counts.items())} tiles")
    return EXIT_OK


def export(shards: Path, out: Path, dn_at_0db: float | None = None) -> dict[str, int]:
    """Write every sample of every split; returns the number of PNGs by folder. Raises `UserError`."""
    manifest = load_manifest(shards)
    images = manifest["images"]
    known = [name for name in ("s1", "s2", "naip", "naip_2x") if name in images]
    if not known or "tile_z" not in manifest["columns"]:
        raise UserError(f"{shards}: holds no tiles: give shards of reader tile_triplets")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not an empty directory: give a new one")
    if dn_at_0db is None:
        dn_at_0db = _calibration(manifest)
    if not 0 < dn_at_0db < float("inf"):
        raise UserError(f"--dn-at-0db {dn_at_0db}: give a number above 0")
    counts: dict[str, int] = {}
    rows = []
    for split in manifest["splits"]:
        samples = ShardSet(shards, split)
        columns = {name: samples.column(name) for name in ("tile_z", "tile_x", "tile_y", "lon", "lat")}
        for k in range(len(samples)):
            z, x, y = (int(columns[f"tile_{axis}"][k]) for axis in "zxy")
            rows.append((z, x, y, f"{columns['lon'][k]:.8f}", f"{columns['lat'][k]:.8f}", split))
            for name in known:
                image = samples.read(name, k, k + 1)[0]
                alpha = samples.read(f"{name}_mask", k, k + 1)[0] * np.uint8(255)
                folder, pixels = _pixels(name, image, images[name], dn_at_0db)
                for tile, part, mask in _tiles(Tile(z, x, y), name, pixels, alpha):
                    _write(out / folder, tile, part, mask)
                    counts[folder] = counts.get(folder, 0) + 1
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "tiles.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("z", "x", "y", "lon", "lat", "split"))
        writer.writerows(sorted(rows))
    return counts


def _calibration(manifest: dict[str, Any]) -> float:
    source = manifest.get("source") or {}
    return float(source["calibration"]) if source.get("units") == "amplitude" else FULL_SCALE_DN


def _pixels(name: str, image: np.ndarray, spec: dict[str, Any], dn_at_0db: float) -> tuple[str, np.ndarray]:
    """(folder, uint8 [3, n, n]) of one image."""
    if name == "s1":
        decibel = image.astype(np.float64) * spec["scale"] + spec["offset"]
        shade = 10 ** (decibel / 20) * (dn_at_0db * 255 / FULL_SCALE_DN)
        grey = np.clip(np.rint(shade), 0, 255).astype(np.uint8)
        return "sar", np.stack([np.zeros_like(grey[0]), grey[0], grey[1]])
    if name == "s2":
        if image.dtype == np.uint8:
            return "visual", image
        places = [[band["name"] for band in spec["bands"]].index(band) for band in ("B04", "B03", "B02")]
        return "visual", np.rint(true_colour(image[places].astype(np.float32))).astype(np.uint8)
    return "hires", image[:3]


def _tiles(tile: Tile, name: str, pixels: np.ndarray, alpha: np.ndarray) -> list[tuple[Tile, np.ndarray, np.ndarray]]:
    """The image as one tile, or as the four of the next level."""
    if not name.endswith("_2x"):
        return [(tile, pixels, alpha)]
    half = alpha.shape[0] // 2
    parts = [np.s_[..., r : r + half, c : c + half] for r in (0, half) for c in (0, half)]
    return [(child, pixels[part], alpha[part]) for child, part in zip(children(tile), parts, strict=True)]


def _write(folder: Path, tile: Tile, pixels: np.ndarray, alpha: np.ndarray) -> None:
    from PIL import Image

    path = folder / str(tile.z) / str(tile.x) / f"{tile.y}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = np.where(alpha > 0, pixels, 0).astype(np.uint8)
    Image.fromarray(np.concatenate([shown, alpha[None]]).transpose(1, 2, 0)).save(path)


if __name__ == "__main__":
    sys.exit(main())
