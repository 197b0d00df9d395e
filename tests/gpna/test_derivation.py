"""The program that derives the encodings: it proves what it says, agrees with the shipped code, and fails where that is wrong."""

import re
import subprocess
import sys

import pytest
import sympy
import torch

from gpna import derivation, fourier
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def one() -> derivation.Averages:
    return derivation.derive(1)


def test_program_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert derivation.main(["--dimensions", "2"]) == 0
    said = capsys.readouterr().out
    assert "all hold" in said and "FAIL" not in said
    for claim in (
        "sinc form: sin(2*pi*k*x)*sinc(2*pi*d*k)",
        "limit of the integral for d -> 0 (Eq. 1): sin(2*pi*k*x)",
        "sinc form at k d = 1/2: 0",
        "mean over 3 equal parts - whole = 0: proved",
        "in 2-D, sinc form",
        "d = 0      raw      nan",
    ):
        assert claim in said, claim
    assert said.count("ok   ") == 32


@pytest.mark.slow
def test_program_holds_in_three_dimensions(capsys: pytest.CaptureFixture[str]) -> None:
    assert derivation.main(["--dimensions", "3"]) == 0
    assert "integral of cos over a box in 3-D" in capsys.readouterr().out


def wrong_by_a_factor_of_two(x, half, frequencies, dtype=torch.float32):
    return ENCODE(x, torch.as_tensor(half) / 2, frequencies, dtype)


def wrong_by_1e_11(x, half, frequencies, dtype=torch.float32):
    return ENCODE(x, half, frequencies, dtype) + 1e-11


def segment_instead_of_box(x, half, frequencies, dtype=torch.float32):
    attenuation = torch.sinc(2 * (half @ frequencies.T))
    return ENCODE(x, 0.0, frequencies, dtype) * torch.cat([attenuation, attenuation], -1)


ENCODE = fourier.encode


@pytest.mark.parametrize(
    ("wrong", "dimensions"), [(wrong_by_a_factor_of_two, 1), (wrong_by_1e_11, 1), (segment_instead_of_box, 2)]
)
def test_wrong_code_is_found(monkeypatch: pytest.MonkeyPatch, wrong, dimensions: int) -> None:
    averages = {dimensions: derivation.derive(dimensions)}
    assert all(step.holds for step in derivation.numeric_steps(averages))
    monkeypatch.setattr(fourier, "encode", wrong)
    failed = [step.claim for step in derivation.numeric_steps(averages) if not step.holds]
    assert any("derived" in claim for claim in failed) and any("quadrature" in claim for claim in failed)


def test_program_fails_where_the_shipped_code_is_wrong(monkeypatch, capsys) -> None:
    monkeypatch.setattr(fourier, "encode", wrong_by_a_factor_of_two)
    monkeypatch.setattr(derivation, "symbolic_steps", lambda one, dimensions: iter(()))
    assert derivation.main(["--dimensions", "1"]) == 1
    assert "FAIL 1-D: |encode - derived|" in capsys.readouterr().out


def test_a_wrong_formula_is_not_proved(one: derivation.Averages) -> None:
    (x,), (d,), (k,) = one.x, one.d, one.k
    raw = derivation.integral(sympy.sin, one.x, one.d, one.k)
    assert derivation.is_zero(raw - one.sin)
    for wrong in (
        sympy.sin(2 * sympy.pi * k * x) * sympy.sinc(2 * k * d),
        one.cos,
        one.sin * sympy.sinc(d),
        one.sin + d,
    ):
        assert not derivation.is_zero(raw - wrong)


def test_lambdified_derivation_in_torch(one: derivation.Averages) -> None:
    """At d = 0 the raw integral and sympy's own torch printer give NaN; these plain names give value and gradient."""
    derived = derivation.torch_function(one)
    x, k = torch.tensor(0.3, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    d = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    sine, cosine = derived(x, d, k)
    assert sine.item() == pytest.approx(-0.587785252292473, abs=1e-15)
    (gradient,) = torch.autograd.grad(sine + cosine, d)
    assert gradient.item() == 0


def test_only_the_derivation_imports_sympy() -> None:
    """In a fresh process: the encodings do not read it, nor does importing the program."""
    code = (
        "import torch, sys; before = 'sympy' in sys.modules; import gpna.fourier, gpna.derivation;"
        "gpna.fourier.place_features(1.0, 2.0, 3.0, 8); gpna.fourier.position_features(2, 2, 8, 'first'); sys.exit(not before and 'sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    reads = re.compile(r"^\s*(import|from) sympy", re.MULTILINE)
    users = [p.name for p in (ROOT / "gpna").rglob("*.py") if reads.search(p.read_text())]
    assert users == ["derivation.py"]
