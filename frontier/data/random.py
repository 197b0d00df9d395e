"""Counter-based random numbers on any device: a function of integer keys, equal for every rank and batch split.

The mixer is the 32-bit finaliser with the constants 0x7feb352d / 0x846ca68b (C. Wellons, hash-prospector, 2018, "lowbias32"),
applied in turn to the parts of the key, so that each (seed, stream, epoch, sample) opens its own sequence.
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Bijective scrambling of 32-bit values held in int64 (products wrap modulo 2^64; the low half is right)."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def stream_keys(seed: int, stream: int, members: torch.Tensor) -> torch.Tensor:
    """[B] keys from a seed, a stream number and members [B, 2] = (epoch, sample) int64."""
    key = torch.full_like(members[:, 0], (seed * 0x9E3779B1 + stream * 0x85EBCA77 + 1) & _MASK)
    key = _mix(key)
    for part in (members[:, 0], members[:, 1] & _MASK, members[:, 1] >> 32):
        key = _mix((key + part * 0x9E3779B1) & _MASK)
    return key


def uniform(keys: torch.Tensor, n: int) -> torch.Tensor:
    """[B, n] float32 uniform in [0, 1) with 24 random bits, from keys [B]."""
    counter = torch.arange(1, n + 1, device=keys.device, dtype=torch.int64) * 0x9E3779B1
    bits = _mix(_mix((keys[:, None] + counter) & _MASK) ^ keys[:, None])
    return (bits >> 8).to(torch.float32) * (1.0 / 2**24)
