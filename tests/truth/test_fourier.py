import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from husai.errors import HusaiError
from husai.truth.fourier import characters, frequency_norms, get_fourier_basis, n_frequencies

ORDERS = st.integers(2, 40)


@pytest.mark.parametrize("n", [2, 3, 5, 112, 113])
def test_basis_is_orthonormal(n):
    basis = get_fourier_basis(n)
    assert basis.dtype == torch.float64
    assert float((basis @ basis.T - torch.eye(n, dtype=torch.float64)).abs().max()) < 1e-12


def test_basis_of_four_by_hand():
    half, root = 0.5, math.sqrt(0.5)
    expected = [[half] * 4, [root, 0, -root, 0], [0, root, 0, -root], [half, -half, half, -half]]
    torch.testing.assert_close(get_fourier_basis(4), torch.tensor(expected, dtype=torch.float64), atol=1e-15, rtol=0)


def test_basis_of_five_lists_each_frequency_once_cosine_before_sine():
    basis, t = get_fourier_basis(5), torch.arange(5, dtype=torch.float64)
    for k in (1, 2):
        angle = 2 * math.pi * k * t / 5
        torch.testing.assert_close(basis[2 * k - 1], math.sqrt(2 / 5) * angle.cos())
        torch.testing.assert_close(basis[2 * k], math.sqrt(2 / 5) * angle.sin())


def test_frequency_counts_by_hand():
    assert {n: n_frequencies(n) for n in (2, 5, 112, 113)} == {2: 1, 5: 2, 112: 56, 113: 56}


@pytest.mark.parametrize("modulus", [1, 0, -5, 5.0, "113"])
def test_bad_modulus_is_refused(modulus):
    with pytest.raises(HusaiError, match=f"modulus: {modulus} is not allowed"):
        get_fourier_basis(modulus)


def test_nyquist_character_is_a_lone_alternating_sign():
    assert characters(56, torch.arange(112), 112).shape == (112, 1)
    torch.testing.assert_close(characters(3, torch.arange(6), 6)[:, 0], torch.tensor([1.0, -1, 1, -1, 1, -1]).double())
    assert characters(55, torch.arange(112), 112).shape == (112, 2)


@pytest.mark.parametrize(("n", "k", "norm"), [(113, 14, 3 * math.sqrt(113 / 2)), (112, 56, 3 * math.sqrt(112))])
def test_frequency_norms_of_a_pure_cosine(n, k, norm):
    wave = 3 * torch.cos(2 * math.pi * k * torch.arange(n, dtype=torch.float64) / n + (0.7 if n == 113 else 0))
    norms = frequency_norms(wave[None])
    assert len(norms) == 56
    assert float(norms[k - 1]) == pytest.approx(norm)
    assert float(norms.sum() - norms[k - 1]) < 1e-10


def test_frequency_norms_add_over_rows_in_squares():
    t = torch.arange(7, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * 2 * t / 7)
    assert float(frequency_norms(torch.stack([3 * wave, 4 * wave]))[1]) == pytest.approx(5 * math.sqrt(7 / 2))


def test_constant_has_no_frequency():
    assert float(frequency_norms(torch.full((3, 11), 4.2)).max()) < 1e-6


@given(ORDERS, st.integers(0, 2**31))
def test_power_is_conserved(n, seed):
    x = torch.randn(3, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    centred = x - x.mean(1, keepdim=True)
    assert float(frequency_norms(x).pow(2).sum()) == pytest.approx(float(centred.pow(2).sum()))


@given(ORDERS, st.integers(0, 60), st.integers(0, 2**31))
def test_norms_do_not_see_shifts(n, shift, seed):
    x = torch.randn(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(frequency_norms(x.roll(shift, dims=1)), frequency_norms(x), atol=1e-9, rtol=0)


@given(ORDERS, st.data())
def test_characters_of_a_sum_obey_the_addition_theorem(n, data):
    k = data.draw(st.integers(1, n // 2))
    x, y = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    cosine, *sine = characters(k, torch.tensor([(x + y) % n]), n)[0].tolist()
    (cx, *sx), (cy, *sy) = (characters(k, torch.tensor([v]), n)[0].tolist() for v in (x, y))
    if 2 * k == n:
        assert (cosine, sine) == (pytest.approx(cx * cy), [])
    else:
        assert cosine == pytest.approx(cx * cy - sx[0] * sy[0], abs=1e-12)
        assert sine[0] == pytest.approx(sx[0] * cy + cx * sy[0], abs=1e-12)


@given(ORDERS)
def test_large_coordinates_lose_no_precision(n):
    k, far = n // 2, 10**9
    torch.testing.assert_close(
        characters(k, torch.tensor([1 + n * far]), n), characters(k, torch.tensor([1]), n), atol=1e-12, rtol=0
    )
