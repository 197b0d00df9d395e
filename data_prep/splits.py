"""Which split each sample goes to, and a check that what is held out is not trained on next door."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.places import blocks, known, nearest_km, split_distances
from data_prep.source import Listing, seeded_hash
from frontier.errors import UserError

SPLITS = ("train", "val", "test")


def assign_splits(
    listing: Listing,
    seed: int,
    fractions: tuple[float, float],
    by: str = "class",
    block_km: float = 20.0,
    gap_km: float = 0.0,
) -> tuple[list[str], dict[str, Any]]:
    """(split of every sample, what was done and found). `fractions` = (val, test); a split that the source gives stays.

    `by` "class": within each class `round(fraction * n)` samples go to test, likewise to val, chosen by seeded hash.
    `by` "place": whole blocks of ground of about `block_km` do, until the fraction is reached. Either way a group goes
    whole to one split. `gap_km`: training samples nearer than that to one held out are left out (split "").
    Raises `UserError` where places are needed and not known.
    """
    units = _groups(listing, blocks_of(listing, block_km) if by == "place" else None)
    out = list(listing.splits)
    free: list[list[int]] = []
    for rows in units:
        given = {out[row] for row in rows if out[row]}
        if given:
            # Copies of one image in several given splits: keep the source's word, which the listing reports.
            for row in rows:
                out[row] = out[row] or min(given)
        else:
            free.append(rows)
    pools: dict[int, list[list[int]]] = {}
    for rows in free:
        pools.setdefault(0 if by == "place" else int(listing.labels[rows[0]]), []).append(rows)
    for pool in pools.values():
        _share_out(pool, listing, seed, fractions, out)
    check: dict[str, Any] = {"by": by}
    if by == "place":
        check["block_km"] = block_km
    if listing.places is not None:
        splits = np.array(out)
        if gap_km > 0:
            check |= {"gap_km": gap_km, "left_out": _leave_gap(listing.places, splits, gap_km)}
            out = splits.tolist()
        check["distances"] = split_distances(listing.places, splits)
        check["places_unknown"] = int((~known(listing.places)).sum())
    elif gap_km > 0:
        raise UserError("--gap-km: this source knows no places: leave it out")
    return out, check


def blocks_of(listing: Listing, block_km: float) -> list[bytes]:
    """The block of every sample. Raises `UserError` where a place is unknown or the size cannot be."""
    if block_km <= 0:
        raise UserError(f"--block-km {block_km:g}: give a size above 0")
    if listing.places is None:
        raise UserError("--split-by place: this source knows no places: use --split-by class")
    missing = np.flatnonzero(~known(listing.places))
    if len(missing):
        raise UserError(
            f"--split-by place: {len(missing)} samples have no place, such as "
            f"{listing.ids[int(missing[0])].decode(errors='replace')}: use --split-by class"
        )
    return blocks(listing.places, block_km)


def _groups(listing: Listing, ground: list[bytes] | None) -> list[list[int]]:
    """Rows that must stay together, in the order of their first row: one group, or joined by a block of ground."""
    parent = list(range(len(listing.ids)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for keys in (listing.groups, ground or ()):
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            a, b = root(first.setdefault(key, row)), root(row)
            if a != b:
                parent[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for row in range(len(parent)):
        members.setdefault(root(row), []).append(row)
    return list(members.values())


def _share_out(
    pool: list[list[int]], listing: Listing, seed: int, fractions: tuple[float, float], out: list[str]
) -> None:
    total = sum(len(rows) for rows in pool)
    pool.sort(key=lambda rows: seeded_hash(seed, "split", listing.ids[rows[0]]))
    want_val, want_test = (int(total * fraction + 0.5) for fraction in fractions)
    done_test = done_val = 0
    for rows in pool:
        if done_test < want_test:
            split, done_test = "test", done_test + len(rows)
        elif done_val < want_val:
            split, done_val = "val", done_val + len(rows)
        else:
            split = "train"
        for row in rows:
            out[row] = split


def _leave_gap(places: np.ndarray, splits: np.ndarray, gap_km: float) -> int:
    """Empty the split of training samples within `gap_km` of one held out; returns how many."""
    there = known(places)
    train, held = there & (splits == "train"), there & (splits != "train") & (splits != "")
    if not train.any() or not held.any():
        return 0
    near = np.flatnonzero(train)[nearest_km(places[train], places[held]) < gap_km]
    splits[near] = ""
    return len(near)
