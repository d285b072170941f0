"""Orthonormal Fourier bases of Z_n. They act on token, answer or grid axes of length n, never on the model's width."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from husai.errors import HusaiError


def get_fourier_basis(modulus: int = 113) -> Float[Tensor, "n n"]:
    """Orthonormal rows: 1/√n, then √(2/n)·cos(2πkt/n) and √(2/n)·sin(2πkt/n) for k = 1, 2, …

    k and n − k are the same frequency and appear once. For even n the last row is the Nyquist character (−1)^t/√n,
    which has no sine. Float64. Raises HusaiError unless n ≥ 2. (docs/method.md §Fourier basis)
    """
    if not isinstance(modulus, int) or modulus < 2:
        raise HusaiError(f"modulus: {modulus} is not allowed; a Fourier basis needs a whole number of at least 2")
    t = torch.arange(modulus)
    constant = torch.full((1, modulus), 1 / math.sqrt(modulus), dtype=torch.float64)
    rows = [characters(k, t, modulus).T * math.sqrt(2 / modulus) for k in range(1, (modulus - 1) // 2 + 1)]
    if modulus % 2 == 0:
        rows.append(characters(modulus // 2, t, modulus).T / math.sqrt(modulus))
    return torch.cat([constant, *rows])


def n_frequencies(n: int) -> int:
    """Distinct nonzero frequencies of Z_n, the Nyquist one included."""
    return n // 2


def characters(k: int, coordinate: Int[Tensor, "rows"], n: int) -> Float[Tensor, "rows dim"]:
    """Columns cos(2πk·x/n) and sin(2πk·x/n); the cosine alone at the Nyquist frequency, where the sine vanishes."""
    angle = (coordinate * k % n).double() * (2 * math.pi / n)
    return angle.cos()[:, None] if 2 * k == n else torch.stack([angle.cos(), angle.sin()], dim=1)


def frequency_norms(matrix: Float[Tensor, "rows n"]) -> Float[Tensor, "frequencies"]:
    """Per frequency k ≥ 1 (entry k − 1), the norm of the matrix's DFT columns at k along its last axis."""
    n = matrix.shape[-1]
    power = (matrix.double() @ get_fourier_basis(n).T).pow(2).sum(0)[1:]
    if n % 2 == 0:
        power = torch.cat([power, power.new_zeros(1)])
    return power.reshape(-1, 2).sum(1).sqrt()
