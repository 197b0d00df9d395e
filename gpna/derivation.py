"""`python -m gpna.derivation`: derives the encodings of `gpna.fourier` from their definition and checks the shipped code against them.

The integral of Eq. 3 (arXiv 2211.02348) is solved by sympy, in one dimension and in several, brought to the sinc form, and that form
is proved equal to the integral and to the closed form in the documentation. Then `gpna.fourier.encode` is compared in
float64 with the derived expression and with numerical integration of the definition. Exit status 1 where anything fails.
Training never runs this, nor imports sympy: reading it takes 1,500 files, a burden where thousands of processes share a file system.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from gpna import fourier

TOLERANCE = 1e-12


@dataclass
class Averages:
    """sympy expressions of the averages of sin and cos of 2 pi k.x over the box x +- d, in the sinc form, and their symbols."""

    x: tuple[Any, ...]
    d: tuple[Any, ...]
    k: tuple[Any, ...]
    sin: Any
    cos: Any


@dataclass
class Step:
    """One line of the derivation: what is claimed, the expression or figure to show, whether it holds."""

    claim: str
    shown: str
    holds: bool


def symbols(dimensions: int) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """Real coordinates x, positive half-widths d and positive frequencies k, one of each per dimension.

    Both sides of every identity below are analytic in d and k, so what holds for positive ones holds for all.
    """
    import sympy

    names = [""] if dimensions == 1 else [str(i + 1) for i in range(dimensions)]
    x = tuple(sympy.Symbol(f"x{n}", real=True) for n in names)
    d, k = (tuple(sympy.Symbol(f"{letter}{n}", positive=True) for n in names) for letter in "dk")
    return x, d, k


def integral(wave: Any, x: tuple[Any, ...], d: tuple[Any, ...], k: tuple[Any, ...]) -> Any:
    """The definition: 1 / prod(2 d_i) times the integral of wave(2 pi k.t) over t in the box x +- d, solved by sympy."""
    import sympy

    t = tuple(sympy.Symbol(f"t{i + 1}", real=True) for i in range(len(x)))
    value = wave(2 * sympy.pi * sum(ki * ti for ki, ti in zip(k, t, strict=True)))
    for ti, xi, di in zip(t, x, d, strict=True):
        value = sympy.integrate(sympy.expand(value), (ti, xi - di, xi + di)) / (2 * di)
    return value


def sinc_form(expression: Any, d: tuple[Any, ...], k: tuple[Any, ...]) -> Any:
    """The same expression with every sin(2 pi k_i d_i) written z sinc(z), so that each d_i cancels from the denominator.

    sympy's sinc is the unnormalised one, sin(z)/z with sinc(0) = 1.
    """
    import sympy

    halves = {
        2 * sympy.pi * ki * di: sympy.Symbol(f"z{i}", positive=True)
        for i, (ki, di) in enumerate(zip(k, d, strict=True))
    }
    # Each product k_i d_i becomes one symbol, which expand_trig would otherwise not tell from k_i x_i.
    expanded = sympy.expand_trig(sympy.expand(expression).subs(halves))
    expanded = sympy.factor(sympy.expand(expanded))
    for z in halves.values():
        expanded = expanded.subs(sympy.sin(z), z * sympy.sinc(z))
    return sympy.simplify(expanded.subs({z: h for h, z in halves.items()}))


def derive(dimensions: int) -> Averages:
    """The averages of sine and cosine, from the definition to the sinc form."""
    import sympy

    x, d, k = symbols(dimensions)
    return Averages(x, d, k, *(sinc_form(integral(wave, x, d, k), d, k) for wave in (sympy.sin, sympy.cos)))


def closed_form(wave: Any, x: tuple[Any, ...], d: tuple[Any, ...], k: tuple[Any, ...], phase: Any = 0) -> Any:
    """What the documentation states: wave(2 pi k.x + phase) prod_i sinc(2 k_i d_i), sinc(u) = sin(pi u)/(pi u)."""
    import sympy

    attenuation = sympy.prod([sympy.sinc(2 * sympy.pi * ki * di) for ki, di in zip(k, d, strict=True)])
    return wave(2 * sympy.pi * sum(ki * xi for ki, xi in zip(k, x, strict=True)) + phase) * attenuation


def is_zero(expression: Any) -> bool:
    """Whether sympy proves the expression 0, with every sinc written out as sin(z)/z."""
    import sympy

    written_out = expression.replace(sympy.sinc, lambda z: sympy.sin(z) / z)
    return bool(sympy.simplify(sympy.expand_trig(sympy.expand(written_out))) == 0)


def torch_function(averages: Averages) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """(x..., d..., k...) tensors -> (sin, cos) averages.

    sympy's own torch printer knows no sinc and prints a Piecewise whose gradient at d = 0 is NaN; plain names avoid both.
    """
    import sympy

    names = {"sin": torch.sin, "cos": torch.cos, "sinc": lambda z: torch.sinc(z / math.pi), "pi": math.pi}
    return sympy.lambdify((*averages.x, *averages.d, *averages.k), (averages.sin, averages.cos), modules=[names])


def symbolic_steps(one: Averages, dimensions: int) -> Iterator[Step]:
    """The proofs about the one-dimensional average, and the step that carries them to any number of dimensions."""
    import sympy

    (x,), (d,), (k,) = one.x, one.d, one.k
    phase = sympy.Symbol("p", real=True)
    for wave, derived in ((sympy.sin, one.sin), (sympy.cos, one.cos)):
        raw = integral(wave, (x,), (d,), (k,))
        closed = closed_form(wave, (x,), (d,), (k,))
        yield Step(f"integral of {wave.__name__}", str(sympy.simplify(raw)), raw.has(d) and not raw.has(sympy.Integral))
        yield Step("  its sinc form", str(derived), derived.has(sympy.sinc))
        yield Step("  integral - sinc form = 0", "proved", is_zero(raw - derived))
        yield Step("  sinc form - closed form = 0", "proved", is_zero(derived - closed))
        limit = sympy.limit(raw, d, 0)
        point = wave(2 * sympy.pi * k * x)
        yield Step("  limit of the integral for d -> 0 (Eq. 1)", str(limit), is_zero(limit - point))
        yield Step("  sinc form at d = 0", str(derived.subs(d, 0)), is_zero(derived.subs(d, 0) - point))
        yield Step("  sinc form at k d = 1/2", str(derived.subs(d, 1 / (2 * k))), derived.subs(d, 1 / (2 * k)) == 0)
        for n in (2, 3):  # of a box of half-width n d, as expand_trig takes whole multiples of an angle apart
            parts = [derived.subs(x, x + (2 * i + 1 - n) * d) for i in range(n)]
            difference = sum(parts) / n - derived.subs(d, n * d)
            yield Step(f"  mean over {n} equal parts - whole = 0", "proved", is_zero(difference))
        # The other coordinates of k.x are a phase of this one's wave: axis after axis, each brings its sinc. So the product
        # form holds for every number of dimensions, by induction.
        shifted = integral(lambda angle, w=wave: w(angle + phase), (x,), (d,), (k,))
        step = closed_form(wave, (x,), (d,), (k,), phase)
        yield Step("  one more axis under any phase p brings one more sinc", str(step), is_zero(shifted - step))
    for n in range(2, dimensions + 1):
        many = derive(n)
        for wave, derived in ((sympy.sin, many.sin), (sympy.cos, many.cos)):
            closed = closed_form(wave, many.x, many.d, many.k)
            yield Step(
                f"integral of {wave.__name__} over a box in {n}-D, sinc form", str(derived), derived.has(sympy.sinc)
            )
            yield Step("  - closed form = 0", "proved", is_zero(derived - closed))


def by_quadrature(x: np.ndarray, d: np.ndarray, k: np.ndarray, nodes: int = 48) -> np.ndarray:
    """[2] averages of sin and cos of 2 pi k.t over the box x +- d (all [dimensions]) by tensor Gauss-Legendre: no closed form."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    phase, weight = np.zeros(()), np.ones(())
    for xi, di, ki in zip(x, d, k, strict=True):
        phase = phase[..., None] + ki * (xi + di * points)
        weight = weight[..., None] * weights / 2
    return np.array([(weight * np.sin(2 * np.pi * phase)).sum(), (weight * np.cos(2 * np.pi * phase)).sum()])


def random_boxes(cases: int, dimensions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, d, k [cases, dimensions] float64: |x| <= 1, |k| <= 10, d from 0 (every fourth case) to 0.5, always the same."""
    g = np.random.default_rng(dimensions)
    x, d, k = (
        g.uniform(-1, 1, (cases, dimensions)),
        g.uniform(0, 0.5, (cases, dimensions)),
        g.uniform(-10, 10, (cases, dimensions)),
    )
    d[::4] = 0
    return torch.from_numpy(x), torch.from_numpy(d), torch.from_numpy(k)


def numeric_steps(all_averages: dict[int, Averages], cases: int = 200) -> Iterator[Step]:
    """The shipped `gpna.fourier.encode` against the derived expression, its gradients, and quadrature."""
    for dimensions, averages in all_averages.items():
        derived = torch_function(averages)
        x, d, k = random_boxes(cases, dimensions)
        x.requires_grad_()
        d.requires_grad_()
        # One frequency a case: encode knows one set for all, so the cases are taken from the diagonal.
        pick = torch.arange(cases)
        waves = fourier.encode(x, d, k, dtype=torch.float64)
        shipped = torch.stack([waves[pick, pick], waves[pick, cases + pick]])
        expected = torch.stack(derived(*x.T, *d.T, *k.T))
        error = (shipped - expected).abs().max().item()
        yield Step(f"{dimensions}-D: |encode - derived| <= {TOLERANCE:g}", f"{error:.1e}", error <= TOLERANCE)
        ways = torch.linspace(0.5, 1.5, 2 * cases, dtype=torch.float64).view(2, cases)
        got = torch.autograd.grad((shipped * ways).sum(), (x, d), retain_graph=True)
        wanted = torch.autograd.grad((expected * ways).sum(), (x, d))
        error = max((a - b).abs().max().item() for a, b in zip(got, wanted, strict=True))
        yield Step(
            f"{dimensions}-D: |gradients of encode - derived|, d = 0 too, <= 1e-10", f"{error:.1e}", error <= 1e-10
        )
        few = cases if dimensions < 3 else 20
        plain = [v.detach().numpy() for v in (x, d, k)]
        expected = torch.from_numpy(np.stack([by_quadrature(*(v[i] for v in plain)) for i in range(few)], 1))
        error = (shipped.detach()[:, :few] - expected).abs().max().item()
        yield Step(f"{dimensions}-D: |encode - quadrature| <= {TOLERANCE:g}", f"{error:.1e}", error <= TOLERANCE)
        if dimensions > 2:  # 512 sub-boxes of every case against every frequency: no news, much memory
            continue
        parts = torch.tensor(list(product((np.arange(8) - 3.5) / 4, repeat=dimensions)))
        with torch.no_grad():
            inner = fourier.encode(x[:, None] + parts * d[:, None], d[:, None] / 8, k, torch.float64)
        error = (inner.mean(1) - waves).abs().max().item()
        claim = f"{dimensions}-D: |mean of encode over {len(parts)} sub-boxes - whole| <= {TOLERANCE:g}"
        yield Step(claim, f"{error:.1e}", error <= TOLERANCE)


def cancellation() -> Iterator[str]:
    """Why the sinc form is shipped: float32 errors of the raw integral and of the sinc form at x = 0.3, k = 2."""
    import sympy

    (x,), (d,), (k,) = symbols(1)
    raw = sympy.simplify(integral(sympy.sin, (x,), (d,), (k,)))
    function = sympy.lambdify((x, d, k), raw, modules=[{"sin": torch.sin, "cos": torch.cos, "pi": math.pi}])
    for half in (1e-1, 1e-3, 1e-5, 1e-7, 1e-9, 0.0):
        exact = math.sin(2 * math.pi * 0.6) * float(np.sinc(4 * half))
        values = [torch.tensor(v, dtype=torch.float32) for v in (0.3, half, 2.0)]
        from_sinc = torch.sin(2 * math.pi * values[2] * values[0]) * torch.sinc(2 * values[2] * values[1])
        yield f"d = {half:<6g} raw {abs(function(*values).item() - exact):8.1e}   sinc {abs(from_sinc.item() - exact):8.1e}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpna.derivation", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument(
        "--dimensions", type=int, choices=(1, 2, 3), default=2, help="the highest number of dimensions (default 2)"
    )
    wanted = parser.parse_args(arguments).dimensions
    all_averages = {n: derive(n) for n in range(1, wanted + 1)}
    failed = 0

    def tell(steps: Iterator[Step]) -> None:
        nonlocal failed
        for step in steps:
            failed += not step.holds
            print(
                f"{'ok  ' if step.holds else 'FAIL'} {step.claim}: {step.shown if step.holds or step.shown != 'proved' else 'not proved'}"
            )

    print("# Derived: average of sin | cos (2 pi k.t) for t in the box x +- d. sinc(z) = sin(z)/z here, as in sympy")
    tell(symbolic_steps(all_averages[1], wanted))
    print("\n# The shipped gpna.fourier.encode in float64")
    tell(numeric_steps(all_averages))
    print("\n# Why it evaluates the sinc form: error in float32 at x = 0.3, k = 2")
    for line in cancellation():
        print(f"     {line}")
    print(f"\n{f'{failed} FAILED' if failed else 'all hold'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
