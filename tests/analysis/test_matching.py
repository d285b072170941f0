from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from husai.analysis.agreement import Pair, joined
from husai.analysis.matching import cosines, match, max_cosine, pwmcc
from husai.errors import HusaiError
from husai.measure.stability import weighted
from husai.seeding import generator

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)


def random_atoms(n: int, d: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=generator("test-matching", seed)), dim=-1)


E = torch.eye(4)
A = random_atoms(12, 6, 0)
B = random_atoms(12, 6, 1)


@pytest.mark.parametrize("score", [pwmcc, max_cosine])
def test_a_dictionary_agrees_fully_with_itself(score):
    assert score(A, A) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("score", [pwmcc, max_cosine])
def test_the_order_of_atoms_does_not_matter(score):
    order = torch.randperm(12, generator=generator("test-order"))
    assert not torch.equal(order, torch.arange(12))
    assert score(A, A[order]) == pytest.approx(1, abs=1e-6)
    assert score(A, B[order]) == pytest.approx(score(A, B), abs=1e-6)


def test_orthogonal_dictionaries_do_not_agree():
    assert pwmcc(E[:2], E[2:]) == 0
    assert max_cosine(E[:2], E[2:]) == 0


def test_by_hand():
    # cosines [[.6, 0], [.8, 0]]: best pairs are (.8, 0) or (.6, 0); rows' best .6 and .8, columns' best .8 and 0
    first, second = E[:2], torch.tensor([[0.6, 0.8, 0, 0], [0, 0, 1, 0]])
    assert cosines(first, second) == pytest.approx(np.array([[0.6, 0], [0.8, 0]]))
    assert pwmcc(first, second) == pytest.approx(0.4)
    assert max_cosine(first, second) == pytest.approx((0.7 + 0.4) / 2)


def test_the_best_total_wins_over_the_best_pair():
    # greedy takes .9 and is left with 0 (mean .45); the optimum is .8 and .8
    matching = match(np.array([[0.9, 0.8], [0.8, 0.0]]))
    assert matching.rows.tolist() == [0, 1]
    assert matching.columns.tolist() == [1, 0]
    assert matching.cosines.tolist() == [0.8, 0.8]


def test_a_flipped_sign_counts_against_signed_agreement_only():
    flipped = E * torch.tensor([[-1.0], [1], [1], [1]])
    # atom 0 keeps its partner at −1 (total 3 − 1), or swaps with another (total 2 + 0 + 0)
    assert pwmcc(E, flipped) == pytest.approx(2 / 4)
    assert pwmcc(E, flipped, abs=True) == pytest.approx(1)
    assert max_cosine(E, flipped) == pytest.approx(1)


@pytest.mark.parametrize("degrees", [0, 30, 60, 90])
def test_a_plane_rotated_between_seeds(degrees):
    # two of four atoms turn by an angle within their plane, the others stay
    angle = np.radians(degrees)
    turned = E.clone()
    turned[:2, :2] = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    # of the turned pair either both keep their partner (2·cos) or they swap (sin − sin = 0)
    assert pwmcc(E, turned) == pytest.approx((2 + 2 * np.cos(angle)) / 4, abs=1e-6)
    assert pwmcc(E, turned, abs=True) == pytest.approx((2 + 2 * max(np.cos(angle), np.sin(angle))) / 4, abs=1e-6)


def test_of_unequal_widths_the_smaller_number_is_matched():
    assert pwmcc(E[:3], E) == pytest.approx(1)
    assert len(match(cosines(E[:3], E)).cosines) == 3
    assert max_cosine(E[:3], E) == pytest.approx((1 + 3 / 4) / 2)


def test_duplicates_inflate_max_cosine_but_not_pwmcc():
    duplicates = E[[0, 0, 0, 0]]
    assert pwmcc(duplicates, E) == pytest.approx(1 / 4)
    assert max_cosine(duplicates, E) == pytest.approx((1 + 1 / 4) / 2)


def weighted_pwmcc(first, second, *weights):
    matching = match(cosines(first, second))
    pair = Pair.matched(matching, matching.cosines, (len(first), len(second)))
    return weighted(joined([len(first), len(second)], {(0, 1): pair}), weights)[0, 1]


def test_weights_count_matched_pairs_by_the_sum_of_both():
    # pairs (0, 0) of cosine 1 and (1, 1) of cosine 0; weights 3 + 1 and 1 + 3 in turn, then 5 + 1 and 1 + 1
    first, second = E[[0, 1]], E[[0, 2]]
    assert weighted_pwmcc(first, second, np.array([3.0, 1]), np.array([1.0, 3])) == pytest.approx(4 / 8)
    assert weighted_pwmcc(first, second, np.array([5.0, 1]), np.array([1.0, 1])) == pytest.approx(6 / 8)


def test_weights_follow_their_atoms_through_the_matching():
    weights = np.array([5.0, 1, 1, 1])
    order = [2, 0, 3, 1]
    flipped = E * torch.tensor([[0.5], [1], [1], [1]])
    assert weighted_pwmcc(flipped, E[order], weights, weights[order]) == pytest.approx((10 * 0.5 + 3 * 2) / 16)


def test_weights_do_not_choose_the_matching():
    # the best total is .8 + .8, although the heavy pair would rather have .9
    first, second = E[:2], torch.tensor([[0.9, 0.8, 0, 0], [0.8, 0, 0, 0]])
    assert weighted_pwmcc(first, second, np.array([9.0, 1]), np.array([9.0, 1])) == pytest.approx(0.8)


@pytest.mark.parametrize("score", [pwmcc, max_cosine])
def test_an_empty_dictionary_is_refused(score):
    with pytest.raises(HusaiError, match="without live atoms"):
        score(A[:0], B)
    with pytest.raises(HusaiError, match="without live atoms"):
        score(A, B[:0])


@pytest.mark.parametrize("score", [pwmcc, max_cosine])
def test_dictionaries_of_different_input_width_are_refused(score):
    with pytest.raises(HusaiError, match=r"different input width \(6 and 5\)"):
        score(A, B[:, :5])


# --- properties ---

dictionaries = st.builds(
    lambda n, m, d, seed: (random_atoms(n, d, 2 * seed), random_atoms(m, d, 2 * seed + 1)),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 10_000),
)
properties = settings(deadline=None, max_examples=60, derandomize=True)


@properties
@given(dictionaries, st.booleans())
def test_pwmcc_is_the_best_over_all_one_to_one_matchings(pair, absolute):
    similarity = (pair[0].double() @ pair[1].double().T).numpy()
    similarity = np.abs(similarity) if absolute else similarity
    small = similarity if len(similarity) <= len(similarity.T) else similarity.T
    totals = [small[range(len(small)), list(p)].mean() for p in permutations(range(small.shape[1]), len(small))]
    assert pwmcc(*pair, abs=absolute) == pytest.approx(max(totals), abs=1e-6)


@properties
@given(dictionaries)
def test_scores_are_symmetric_and_bounded(pair):
    first, second = pair
    for score in (pwmcc, max_cosine, lambda a, b: pwmcc(a, b, abs=True)):
        assert score(first, second) == pytest.approx(score(second, first), abs=1e-6)
        assert -1 - 1e-6 <= score(first, second) <= 1 + 1e-6
    assert max_cosine(first, second) >= 0


@properties
@given(dictionaries)
def test_signed_below_absolute_below_many_to_one(pair):
    first, second = pair
    assert pwmcc(first, second) <= pwmcc(first, second, abs=True) + 1e-6
    n = min(len(first), len(second))  # with equal numbers every atom's best is at least its partner
    assert pwmcc(first[:n], second[:n], abs=True) <= max_cosine(first[:n], second[:n]) + 1e-6


@properties
@given(dictionaries, st.integers(0, 1000))
def test_a_common_rotation_changes_nothing(pair, seed):
    d = pair[0].shape[1]
    turn = torch.linalg.qr(torch.randn(d, d, generator=generator("test-rotation", seed))).Q
    first, second = (atoms @ turn for atoms in pair)
    assert pwmcc(first, second) == pytest.approx(pwmcc(*pair), abs=1e-5)
    assert max_cosine(first, second) == pytest.approx(max_cosine(*pair), abs=1e-5)


# --- references ---


@pytest.mark.parametrize(("n", "m", "d"), [(5, 5, 3), (40, 40, 16), (30, 50, 8), (50, 30, 8), (1, 7, 4)])
def test_absolute_pwmcc_equals_sae_lens(sae_lens, n, m, d):
    first, second = random_atoms(n, d, 100), random_atoms(m, d, 101)
    theirs = sae_lens.synthetic.mean_correlation_coefficient(first, second)
    assert pwmcc(first, second, abs=True) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize(("d", "many_to_one", "signed"), [(128, 0.299, 0.271), (10, 0.863, 0.815), (6, 0.958, 0.927)])
def test_reference_values_of_1024_random_atoms(d, many_to_one, signed):
    pairs = [(random_atoms(1024, d, 2 * r), random_atoms(1024, d, 2 * r + 1)) for r in range(2)]
    assert np.mean([max_cosine(*pair) for pair in pairs]) == pytest.approx(many_to_one, abs=0.01)
    assert np.mean([pwmcc(*pair) for pair in pairs]) == pytest.approx(signed, abs=0.01)


def test_reference_values_of_16_random_atoms_in_8_dimensions():
    pairs = [(random_atoms(16, 8, 2 * r), random_atoms(16, 8, 2 * r + 1)) for r in range(200)]
    assert np.mean([pwmcc(*pair, abs=True) for pair in pairs]) == pytest.approx(0.63, abs=0.01)
    assert np.mean([pwmcc(*pair) for pair in pairs]) == pytest.approx(0.53, abs=0.01)
