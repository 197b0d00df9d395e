"""Operators of our own for training on a CPU: layer norm with its residual sum, GELU, attention of short sequences,
products by matrices of weights.

`kernels.cpp` is compiled for the processor at hand when it is first needed (`build.py`); `operators.py` makes PyTorch operators of
it. Where there is no compiler, no AVX-512, or another device, the modules that call them take PyTorch's own.
"""
