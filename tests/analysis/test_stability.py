import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from husai.analysis import stability as module
from husai.analysis.matching import Matching, max_cosine, pwmcc
from husai.analysis.stability import SAME, activation_matching, best_match, nearest, shared, stability
from husai.analysis.stats import pair_interval
from husai.errors import HusaiError
from husai.seeding import generator

AXES = torch.eye(4)
TURNED = F.normalize(torch.tensor([[1.0, 1.0, 0, 0], [-1.0, 1.0, 0, 0]]), dim=1)  # 45° from e1, e2: cosine .707


def angled(*degrees):
    """Unit atoms in the plane of e1 and e2."""
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a)), 0.0, 0.0] for a in degrees])


# --- shared_fraction ---


def matching(pairs):
    rows, columns, cosines = zip(*pairs, strict=True)
    return Matching(np.array(rows), np.array(columns), np.array(cosines))


@pytest.mark.parametrize(
    ("encoders", "expected"),
    [
        ([(0, 1, 0.9), (1, 0, 0.9), (2, 2, 0.9), (3, 3, 0.9)], 0.75),  # the last is not alike enough by its decoder
        ([(0, 1, 0.69), (1, 0, 0.9), (2, 2, 0.9), (3, 3, 0.9)], 0.5),  # one encoder falls short
        ([(0, 0, 0.9), (1, 1, 0.9), (2, 2, 0.9), (3, 3, 0.9)], 0.25),  # two encoders find other partners
        ([(0, 1, 0.7), (1, 0, 0.7), (2, 2, 0.7), (3, 3, 0.7)], 0.75),  # .7 counts
        ([(4, 1, 0.9), (5, 0, 0.9), (6, 2, 0.9), (7, 3, 0.9)], 0.0),  # encoders of other atoms
    ],
)
def test_an_atom_is_shared_if_decoder_and_encoder_find_the_same_partner_and_both_are_alike(encoders, expected):
    decoders = matching([(0, 1, 0.8), (1, 0, 0.7), (2, 2, 1.0), (3, 3, 0.6)])
    assert shared(decoders, matching(encoders)).mean() == expected


def test_a_shared_dictionary_in_another_order_is_shared_wholly_and_with_random_encoders_not_at_all(directions):
    order = torch.tensor([2, 0, 3, 1])
    A, B = directions(4, 64, seed=1), directions(4, 64, seed=2)
    found = stability([AXES, AXES[order]], [A, A[order]])
    assert found.shared_fraction is not None
    assert found.shared_fraction.matrix[0, 1] == 1.0
    crossed = stability([AXES, AXES[order]], [A, B])
    assert crossed.shared_fraction is not None
    assert crossed.shared_fraction.matrix[0, 1] == 0.0
    assert crossed.pwmcc.matrix[0, 1] == pytest.approx(1.0)
    assert stability([AXES, AXES]).shared_fraction is None


# --- reappearance ---


def test_reappearance_is_many_to_one_and_goes_one_way():
    found = stability([angled(0, 10, 20), angled(10, 90)])
    assert found.reappearance.matrix.tolist() == [[1, 1], [0.5, 1]]  # all three lie near 10°; nothing lies near 90°
    assert [count.tolist() for count in found.counts] == [[1, 1, 1], [1, 0]]


def test_the_limit_lies_between_45_and_46_degrees():
    assert stability([angled(0), angled(45)]).reappearance.matrix[0, 1] == 1  # cosine .7071
    assert stability([angled(0), angled(46)]).reappearance.matrix[0, 1] == 0  # cosine .6947


def test_a_mirrored_atom_does_not_reappear_unless_signs_mean_nothing():
    pair = [AXES[:1], -AXES[:1]]
    assert stability(pair).reappearance.matrix[0, 1] == 0
    assert stability(pair).pwmcc.matrix[0, 1] == -1
    assert stability(pair, abs=True).reappearance.matrix[0, 1] == 1
    assert stability(pair, abs=True).pwmcc.matrix[0, 1] == 1


def test_counts_over_seeds_tell_common_atoms_from_private_ones():
    """e1 is in all four, e2 in two, the third atom of each in one."""
    others = torch.eye(8)
    members = [others[[0, 1, 4]], others[[0, 1, 5]], others[[0, 2, 6]], others[[0, 3, 7]]]
    found = stability(members)
    assert [count.tolist() for count in found.counts] == [[3, 1, 0], [3, 1, 0], [3, 0, 0], [3, 0, 0]]
    assert found.everywhere.tolist() == pytest.approx([1 / 3] * 4)
    assert found.pwmcc.matrix[0, 1] == pytest.approx(2 / 3)
    assert found.pwmcc.matrix[0, 2] == pytest.approx(1 / 3)


def test_random_atoms_in_many_dimensions_share_and_repeat_nothing(directions):
    seeds = [directions(32, 256, seed=s) for s in range(3)]
    found = stability(seeds, seeds)
    assert found.shared_fraction is not None
    off = ~np.eye(3, dtype=bool)
    assert found.reappearance.matrix[off].max() == 0
    assert found.shared_fraction.matrix[off].max() == 0
    assert max(count.max() for count in found.counts) == 0


@pytest.mark.parametrize(("n", "d", "low", "high"), [(1024, 10, 0.99, 1), (128, 10, 0.63, 0.67), (1024, 32, 0, 0.01)])
def test_how_often_random_atoms_reappear_is_a_matter_of_numbers_and_dimensions(directions, n, d, low, high):
    """The figures of docs/method.md §Stability."""
    pairs = max(1, 6400 // n)
    shares = [
        np.mean(nearest(directions(n, d, seed=s), directions(n, d, seed=s + 1)).rows >= SAME) for s in range(pairs)
    ]
    assert low <= np.mean(shares) <= high


# --- against the definitions for small dictionaries, and for large ones ---


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_numbers_are_those_of_the_small_definitions_whatever_the_block(monkeypatch, directions, block):
    monkeypatch.setattr(module, "BLOCK", block)
    A, B = directions(20, 6, seed=1), directions(13, 6, seed=2)
    found, similarity = nearest(A, B), (A @ B.T).numpy()
    np.testing.assert_allclose(found.rows, similarity.max(1), atol=1e-6)
    np.testing.assert_allclose(found.columns, similarity.max(0), atol=1e-6)
    np.testing.assert_allclose(found.rows_abs, np.abs(similarity).max(1), atol=1e-6)
    np.testing.assert_allclose(found.columns_abs, np.abs(similarity).max(0), atol=1e-6)
    both = stability([A, B])
    assert both.pwmcc.matrix[0, 1] == pytest.approx(pwmcc(A, B))
    assert both.max_cosine.matrix[1, 0] == pytest.approx(max_cosine(A, B))


def test_large_dictionaries_are_matched_with_a_certificate(monkeypatch, directions):
    A, B = directions(60, 8, seed=1), directions(70, 8, seed=2)
    exact = best_match(A, B)
    assert exact.gap == 0
    monkeypatch.setattr(module, "EXACT", 50)
    certified = best_match(A, B)
    assert certified.matching.cosines.mean() <= exact.matching.cosines.mean() + 1e-6
    assert certified.matching.cosines.mean() + certified.gap >= exact.matching.cosines.mean() - 1e-6
    assert stability([A, B]).pwmcc.gap[0, 1] == certified.gap


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([torch.eye(4), torch.eye(3)], "different input width \\(4 and 3\\)"),
        ([torch.eye(4), torch.zeros(0, 4)], "without live atoms"),
    ],
)
def test_what_cannot_be_compared_is_refused(members, message):
    with pytest.raises(HusaiError, match=message):
        stability(members)


# --- one result for all measures ---


def test_an_atom_brings_its_mean_over_the_partners_it_has_and_nan_without_any():
    """e2 of the second has no partner in the first; both have one in the third, turned by 60°."""
    found = stability([angled(0), angled(0, 90), angled(60, 150)]).pwmcc
    assert found.matrix[0, 1] == pytest.approx(1)
    assert found.matrix[0, 2] == pytest.approx(0.5)
    assert found.matrix[1, 2] == pytest.approx(0.5)
    assert found.atoms[0].tolist() == pytest.approx([0.75])
    assert found.atoms[1].tolist() == pytest.approx([0.75, 0.5])
    assert np.isnan(stability([angled(0), angled(0, 90)]).pwmcc.atoms[1]).tolist() == [False, True]
    assert found.matched[1, 2].columns.tolist() == [0, 1]
    assert stability([AXES, AXES]).max_cosine.matched == {}


def test_the_interval_of_a_measure_that_asks_one_way_is_of_both_ways():
    found = stability([angled(0, 10, 20), angled(10, 90), angled(10, 90)]).reappearance
    assert found.matrix[0].tolist() == [1, 1, 1]
    assert found.matrix[1].tolist() == [0.5, 1, 1]
    assert found.both[0, 1] == 0.75
    assert found.interval == pair_interval(found.both)


# --- activation_matching ---


def test_correlations_of_codes_by_hand():
    """A's latents count up and alternate; B's are 1 − 2·(counting up), and alternating plus a constant."""
    up, alternating = torch.tensor([0.0, 1, 2, 3]), torch.tensor([1.0, -1, -1, 1])  # correlation 0
    members = [torch.stack([up, alternating], 1), torch.stack([1 - 2 * up, 5 + alternating], 1)]
    found = activation_matching(members)
    assert found.matrix[0, 1] == pytest.approx((-1 + 1) / 2, abs=1e-6)  # −1 + 1 and 0 + 0 are equally good
    by_magnitude = activation_matching(members, abs=True)
    assert by_magnitude.matrix[0, 1] == pytest.approx(1)


def test_codes_in_other_units_and_order_agree_wholly_and_shuffled_samples_hardly():
    g = generator("test-activation-matching")
    codes = torch.randn(2000, 6, generator=g).relu()
    same = activation_matching([codes, codes[:, [3, 1, 0, 5, 4, 2]] * 3 + 1])
    assert same.interval.mean == pytest.approx(1, abs=1e-5)
    assert same.matched[0, 1].columns.tolist() == [2, 1, 5, 0, 4, 3]
    shuffled = codes[torch.randperm(2000, generator=g)]
    assert abs(activation_matching([codes, shuffled]).interval.mean) < 0.1


def test_a_latent_that_never_changes_correlates_with_nothing():
    codes = torch.tensor([[0.1, 0.0], [0.1, 1.0], [0.1, 2.0]])
    assert activation_matching([codes, codes]).interval.mean == pytest.approx(0.5)
