import numpy as np
import pytest
import torch
import torch.nn.functional as F

from husai.analysis import assignment
from husai.analysis.assignment import certified_match
from husai.analysis.matching import cosines, match
from husai.errors import HusaiError


def rows(n, d, seed=0, rank=None):
    g = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n, rank or d, generator=g)
    return F.normalize(drawn if rank is None else drawn @ torch.randn(rank, d, generator=g), dim=-1)


def exact(A, B, abs=False):
    similarity = cosines(A, B)
    return float(match(np.abs(similarity) if abs else similarity).cosines.mean())


def test_a_matching_that_can_be_checked_by_hand():
    """Greedy would pair the first rows (.8) and leave −.6; the best total is .6 + 0 + 1."""
    A = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    B = torch.tensor([[0.8, 0.6, 0], [0.6, -0.8, 0], [0, 0, 1.0]])
    found = certified_match(A, B)
    assert found.matching.columns.tolist() == [1, 0, 2]
    np.testing.assert_allclose(found.matching.cosines, [0.6, 0.6, 1.0], atol=1e-6)
    assert found.gap < 1e-6


@pytest.mark.parametrize("abs", [False, True])
@pytest.mark.parametrize(("n", "m"), [(150, 150), (90, 200), (200, 90), (1, 50)])
@pytest.mark.parametrize("rank", [None, 2, 5])
def test_it_agrees_with_the_exact_matching(n, m, rank, abs):
    A, B = rows(n, 16, 1, rank), rows(m, 16, 2, rank)
    found, best = certified_match(A, B, abs=abs), exact(A, B, abs)
    assert found.gap <= assignment.TOLERANCE
    assert best - found.gap - 1e-6 <= found.mean <= best + 1e-6 <= found.bound + 2e-6
    at = cosines(A, B)[found.matching.rows, found.matching.columns]
    np.testing.assert_allclose(found.matching.cosines, np.abs(at) if abs else at, atol=1e-6)
    assert len(set(found.matching.rows)) == len(set(found.matching.columns)) == min(n, m)


def clustered(n, d, seed, spread):
    """Around 12 centres, which all seeds share."""
    g = torch.Generator().manual_seed(seed)
    centres = rows(12, d, 99)[torch.randint(12, (n,), generator=g)]
    return F.normalize(centres + spread * torch.randn(n, d, generator=g), dim=-1)


KINDS = {
    "clusters": lambda n, seed: clustered(n, 16, seed, 0.1),
    "tight clusters": lambda n, seed: clustered(n, 16, seed, 0.003),
    "duplicates": lambda n, seed: clustered(n, 16, seed, 0),
    "half duplicates": lambda n, seed: torch.cat([clustered(n // 2, 16, seed, 0), rows(n - n // 2, 16, seed)]),
    "opposites": lambda n, seed: clustered(n, 16, seed, 0.05) * torch.tensor([1, -1]).repeat(n)[:n, None],
}


@pytest.mark.parametrize("abs", [False, True])
@pytest.mark.parametrize(("n", "m"), [(240, 240), (120, 300), (300, 120)])
@pytest.mark.parametrize("kind", KINDS)
def test_where_many_atoms_are_alike_the_exact_matching_lies_within_the_gap(kind, n, m, abs):
    A, B = KINDS[kind](n, 1), KINDS[kind](m, 2)
    found, best = certified_match(A, B, abs=abs), exact(A, B, abs)
    assert found.gap <= assignment.TOLERANCE
    assert found.mean <= best + 1e-6
    assert best <= found.bound + 1e-6
    assert len(set(found.matching.rows)) == len(set(found.matching.columns)) == min(n, m)


def test_duplicates_that_all_want_the_same_partner():
    """300 copies of one atom against one copy and others: the candidates of all rows are the same at first."""
    A = rows(1, 24).repeat(300, 1)
    B = rows(300, 24, 3)
    B[0] = A[0]
    found = certified_match(A, B)
    assert found.mean == pytest.approx(exact(A, B), abs=1e-5 + found.gap)
    assert found.gap < 1e-5


def test_identical_dictionaries_in_another_order_match_themselves():
    A = rows(500, 32)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(4))
    found = certified_match(A, A[order])
    assert torch.equal(order[found.matching.columns], torch.arange(500))
    assert found.mean == pytest.approx(1, abs=1e-6)


def test_a_matching_that_was_cut_short_says_by_how_much_it_may_miss(monkeypatch):
    monkeypatch.setattr(assignment, "CANDIDATES", 2)
    monkeypatch.setattr(assignment, "MORE", 1)
    A, B = rows(400, 16, 1, 3), rows(400, 16, 2, 3)
    short, best = certified_match(A, B, passes=3), exact(A, B)
    assert short.passes == 3
    assert short.mean < best - 1e-4, "or the test shows nothing"
    assert short.bound >= best
    assert certified_match(A, B).gap <= assignment.TOLERANCE


def test_prices_bound_every_matching_however_bad_they_are(monkeypatch):
    """The bound needs no optimal prices: with prices of 0 it is the mean best cosine."""
    monkeypatch.setattr(assignment, "_prices", lambda graph, columns, values, m: np.zeros(m, np.float32))
    A, B = rows(100, 16, 1), rows(100, 16, 2)
    found = certified_match(A, B, passes=3)
    assert found.bound == pytest.approx(float(cosines(A, B).max(1).mean()), abs=1e-6)
    assert found.bound > exact(A, B) + 0.01


def test_no_more_than_a_block_of_cosines_is_held(monkeypatch):
    A, B, largest = rows(300, 16, 1), rows(250, 16, 2), []
    whole = certified_match(A, B)
    mm = torch.mm

    def watched(first, second, **more):
        made = mm(first, second, **more)
        largest.append(made.numel())
        return made

    monkeypatch.setattr(assignment, "BLOCK", 1000)
    monkeypatch.setattr(torch, "mm", watched)
    parts = certified_match(A, B)
    assert max(largest) <= 1000
    assert np.array_equal(parts.matching.columns, whole.matching.columns)
    assert parts.bound == pytest.approx(whole.bound, abs=1e-7)


def test_dictionaries_that_cannot_be_compared():
    with pytest.raises(HusaiError, match="width"):
        certified_match(rows(3, 4), rows(3, 5))
    with pytest.raises(HusaiError, match="without live atoms"):
        certified_match(rows(3, 4), torch.empty(0, 4))
