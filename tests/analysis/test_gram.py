import math

import pytest
import torch

from husai.analysis import gram as module
from husai.analysis.gram import gram


def test_the_off_diagonal_by_hand():
    # |cos|: .6 (rows 0, 1), .8 (1, 2, of opposite sense), 0 (0, 2); the largest of each row: .6, .8, .8
    atoms = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    found = gram(atoms)
    assert found.gram_mean == pytest.approx((0.6 + 0.8) / 3)
    assert found.gram_max == pytest.approx((0.6 + 0.8 + 0.8) / 3)


def test_orthogonal_atoms_have_none_and_equal_ones_all():
    assert gram(torch.eye(4)) == pytest.approx((0.0, 0.0))
    assert gram(torch.eye(4)[:1].expand(5, 4)) == pytest.approx((1.0, 1.0))


def test_random_atoms_are_as_alike_as_the_formula_says():
    """E|cos| of isotropic directions in d dimensions: Γ(d/2) / (√π·Γ((d+1)/2)); its maximum lies above."""
    d = 24
    atoms = torch.nn.functional.normalize(torch.randn(2000, d, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)
    assert gram(atoms).gram_mean == pytest.approx(expected, rel=0.005)
    assert gram(atoms).gram_max > 3 * expected


def test_the_parts_of_a_large_matrix_make_the_whole(monkeypatch):
    atoms = torch.nn.functional.normalize(torch.randn(70, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    whole = gram(atoms)
    monkeypatch.setattr(module, "PART", 16)
    assert gram(atoms) == pytest.approx(whole)


def test_one_atom_has_no_other():
    assert all(math.isnan(value) for value in gram(torch.eye(2)[:1]))
