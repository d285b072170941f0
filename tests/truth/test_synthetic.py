import math

import numpy as np
import pytest
import torch

from husai.config import CirclesConfig, PlantedConfig
from husai.errors import HusaiError
from husai.seeding import generator
from husai.truth.planes import answer_families, truth_among
from husai.truth.synthetic import draw_circles, fresh_samples, pick, plant


def planted(**changes):
    return plant(PlantedConfig(**{"d_model": 16, "n_atoms": 24, "k": 3, "samples": 6000} | changes))


def active(**changes):
    return planted(**changes).codes > 0


def rate_error(rate, samples=6000):
    """Four standard errors of a frequency: one in 16 000 exceeds it by chance."""
    return 4 * math.sqrt(rate * (1 - rate) / samples)


# --- picking ---


def test_every_sample_picks_exactly_as_many_groups_as_the_rates_sum_to():
    rates = torch.tensor([1.0, 0.7, 0.6, 0.4, 0.2, 0.1], dtype=torch.float64)
    picked = pick(rates, 20000, generator=generator("test-pick"))
    assert picked.sum(1).unique().tolist() == [3]
    assert picked[:, 0].all(), "a rate of 1 is always"
    for rate, found in zip(rates, picked.double().mean(0), strict=True):
        assert found == pytest.approx(float(rate), abs=rate_error(float(rate), 20000))


def test_equal_rates_pick_every_subset_equally_often():
    picked = pick(torch.full((5,), 0.4, dtype=torch.float64), 30000, generator=generator("test-pick"))
    together = (picked.double().T @ picked.double() / 30000)[~torch.eye(5, dtype=torch.bool)]
    assert together.numpy() == pytest.approx(np.full(20, 1 / 10), abs=rate_error(0.1, 30000))


# --- planted atoms ---


def test_samples_are_sums_of_unit_atoms():
    found = planted()
    assert found.x.shape == (6000, 16)
    assert found.x.dtype == torch.float32
    torch.testing.assert_close(found.atoms.norm(dim=1), torch.ones(24))
    torch.testing.assert_close(found.x, found.codes @ found.atoms)


def test_atoms_by_themselves_fire_exactly_k_at_a_time_and_equally_often():
    fires = active()
    assert fires.sum(1).unique().tolist() == [3]
    assert planted().l0 == 3
    assert fires.double().mean(0).numpy() == pytest.approx(np.full(24, 3 / 24), abs=rate_error(3 / 24))


def test_magnitudes_are_uniform_between_their_ends():
    codes = planted(magnitudes=(2.0, 5.0)).codes
    values = codes[codes > 0]
    assert 2.0 <= float(values.min()) < 2.01
    assert 4.99 < float(values.max()) <= 5.0
    quarters = torch.histc(values, 4, 2.0, 5.0) / len(values)
    assert quarters.numpy() == pytest.approx(np.full(4, 0.25), abs=rate_error(0.25, len(values)))
    assert (planted(magnitudes=(1.0, 1.0)).codes.unique() == torch.tensor([0.0, 1.0])).all()


def test_zipf_is_the_slope_of_log_rate_against_log_rank():
    rates = active(zipf=0.7, k=2, samples=40000).double().mean(0).numpy()
    slope, _ = np.polyfit(np.log(np.arange(1, 25)), np.log(rates), 1)
    assert slope == pytest.approx(-0.7, abs=0.03)
    assert active(zipf=0.7, k=2).sum(1).unique().tolist() == [2]


@pytest.mark.parametrize("coherence", [0.0, 0.3, 0.8])
def test_coherence_is_about_the_mean_cosine_of_two_atoms(coherence):
    atoms = planted(coherence=coherence, d_model=64, n_atoms=100, k=4).atoms
    cosines = (atoms @ atoms.T)[~torch.eye(100, dtype=torch.bool)]
    assert float(cosines.mean()) == pytest.approx(coherence, abs=0.02)
    torch.testing.assert_close(atoms.norm(dim=1), torch.ones(100))


def test_noise_is_isotropic_with_its_standard_deviation_in_each_dimension():
    found = planted(noise=0.2)
    rest = found.x - found.codes @ found.atoms
    assert rest.std(0).numpy() == pytest.approx(np.full(16, 0.2), rel=0.05)
    assert float(rest.mean()) == pytest.approx(0, abs=0.003)


def test_groups_fire_as_a_whole_with_the_given_probability():
    members = active(group_size=3, together=0.6).view(-1, 8, 3)
    picked = members.any(2)
    assert picked.sum(1).unique().tolist() == [3]
    sizes = members.sum(2)[picked]
    assert set(sizes.tolist()) == {1, 3}
    assert float((sizes == 3).double().mean()) == pytest.approx(0.6, abs=rate_error(0.6, len(sizes)))
    alone = members[members.sum(2) == 1].double().mean(0)
    assert alone.numpy() == pytest.approx(np.full(3, 1 / 3), abs=rate_error(1 / 3, int((sizes == 1).sum())))
    assert planted(group_size=3, together=0.6).l0 == pytest.approx(3 * (1 + 0.6 * 2), abs=0.1)


def test_firing_correlates_within_groups_and_not_between():
    correlation = np.corrcoef(active(group_size=2, together=0.8).double().T.numpy())
    pairs = correlation.reshape(12, 2, 12, 2)
    within = [pairs[g, 0, g, 1] for g in range(12)]
    between = [pairs[g, i, h, j] for g in range(12) for h in range(12) if g != h for i in (0, 1) for j in (0, 1)]
    # a pair fires with P(both) = .2 and P(one of them) = .225 for a pick rate of 1/4
    assert within == pytest.approx([(0.2 - 0.225**2) / (0.225 * 0.775)] * 12, abs=0.06)
    assert np.abs(between).max() < 0.12, "exactly three groups a sample makes others a little rarer, no more"


def test_children_fire_only_with_their_parent_and_one_at_a_time():
    found = planted(group_size=4, together=0.7, hierarchy=True)
    members = (found.codes > 0).view(-1, 6, 4)
    parent, children = members[..., 0], members[..., 1:]
    assert parent.sum(1).unique().tolist() == [3], "a picked group always fires its parent"
    assert not children[~parent].any()
    brought = children[parent]
    assert brought.sum(1).unique().tolist() == [0, 1]
    assert float(brought.any(1).double().mean()) == pytest.approx(0.7, abs=rate_error(0.7, len(brought)))
    assert brought.double().mean(0).numpy() == pytest.approx(np.full(3, 0.7 / 3), abs=rate_error(0.7 / 3, len(brought)))
    assert found.l0 == pytest.approx(3 * 1.7, abs=0.05)


# --- one seed ---


def test_the_same_config_gives_the_same_bits_and_the_global_state_is_left_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = planted(noise=0.1, group_size=2, together=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = planted(noise=0.1, group_size=2, together=0.5)
    for name in ("x", "atoms", "codes"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_another_seed_changes_atoms_codes_and_noise():
    first, second = planted(noise=0.1), planted(noise=0.1, seed=1)
    for name in ("atoms", "codes"):
        assert not torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.codes > 0, second.codes > 0)
    noises = [(found.x - found.codes @ found.atoms).flatten() for found in (first, second)]
    assert abs(float(torch.corrcoef(torch.stack(noises))[0, 1])) < 0.02


def test_each_dial_leaves_the_streams_of_the_others_alone():
    plain = planted()
    noisy, larger, coherent = planted(noise=0.3), planted(magnitudes=(2.0, 3.0)), planted(coherence=0.5)
    assert torch.equal(noisy.atoms, plain.atoms)
    assert torch.equal(noisy.codes, plain.codes)
    assert torch.equal(larger.codes > 0, plain.codes > 0)
    assert torch.equal(coherent.codes, plain.codes)


# --- what is refused ---


def test_an_atom_that_is_never_active_is_refused():
    with pytest.raises(HusaiError, match=r"planted: atom \d+ is active in none of the 20 samples \(\d+ such atoms\)"):
        planted(samples=20, zipf=1.0, k=2)
    with pytest.raises(HusaiError, match="raise samples or together"):
        planted(group_size=2, hierarchy=True)


def test_what_is_planted_is_described_in_numbers():
    told = planted().describe()
    assert (told["atoms"], told["dim"], told["l0"]) == (24, 16, 3.0)
    atoms = planted().atoms.tolist()
    pairs = [(a, b) for i, a in enumerate(atoms) for b in atoms[:i]]
    largest = max(abs(sum(x * y for x, y in zip(a, b, strict=True))) for a, b in pairs)
    assert told["largest_cosine"] == pytest.approx(largest, abs=1e-5)
    most, least = told["firing_rates"]
    assert most > 3 / 24 > least


# --- circles ---

CIRCLES = CirclesConfig(d_model=12, p=23, frequencies=(2, 5, 9), radii=(1.5, 3.0, 2.0), repeats=4)


def test_samples_lie_on_their_circles():
    circles = draw_circles(CIRCLES)
    assert circles.x.shape == (23 * 4, 12)
    assert circles.answers.bincount().tolist() == [4] * 23
    radii = dict(zip(CIRCLES.frequencies, CIRCLES.radii, strict=True))
    for plane in circles.truth.subspaces:
        angle = 2 * math.pi * plane.k * circles.answers / 23
        expected = radii[plane.k] * torch.stack([angle.cos(), angle.sin()], 1)
        torch.testing.assert_close(circles.x @ plane.basis.float(), expected, atol=1e-5, rtol=0)
    outside = circles.x - circles.x @ (circles.truth.union @ circles.truth.union.T).float()
    assert float(outside.abs().max()) < 1e-5


def test_true_planes_are_orthonormal_and_sorted_by_share():
    truth = draw_circles(CIRCLES).truth
    assert [s.label for s in truth.subspaces] == ["sum k=5", "sum k=9", "sum k=2"]
    assert [s.share for s in truth.subspaces] == pytest.approx([9 / 15.25, 4 / 15.25, 2.25 / 15.25])
    assert truth.unexplained == 0
    bases = torch.cat([s.basis for s in truth.subspaces], 1)
    torch.testing.assert_close(bases.T @ bases, torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_general_truth_finder_recovers_the_planes_and_shares(noise):
    circles = draw_circles(CIRCLES.model_copy(update={"noise": noise, "repeats": 60}))
    found = truth_among(answer_families(circles.answers, circles.p), circles.x, "circles")
    assert [s.label for s in found.subspaces] == [s.label for s in circles.truth.subspaces]
    for mine, true in zip(found.subspaces, circles.truth.subspaces, strict=True):
        assert float(torch.linalg.svdvals(mine.basis.T @ true.basis).min()) > 0.999
        assert mine.share == pytest.approx(true.share, abs=0.01)
    assert circles.truth.unexplained == pytest.approx(12 * noise**2 / (15.25 + 12 * noise**2))
    assert found.unexplained == pytest.approx(circles.truth.unexplained, abs=0.002)


def test_circles_come_from_one_seed():
    config = CIRCLES.model_copy(update={"noise": 0.1})
    assert torch.equal(draw_circles(config).x, draw_circles(config).x)
    other = draw_circles(config.model_copy(update={"seed": 1}))
    assert not torch.allclose(other.x, draw_circles(config).x)
    assert not torch.allclose(other.truth.union, draw_circles(config).truth.union)
    assert torch.equal(draw_circles(CIRCLES).truth.union, draw_circles(config).truth.union)


# --- bad configs ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 25}, "k 25 exceeds the 24 groups of atoms; allowed is 1 to 24"),
        ({"k": 9, "group_size": 3, "together": 0.5}, "k 9 exceeds the 8 groups of atoms; allowed is 1 to 8"),
        ({"group_size": 5}, "group_size 5 does not divide n_atoms 24"),
        ({"magnitudes": [1.5, 0.5]}, "magnitudes 1.5 to 0.5 run backwards; the lower end comes first"),
        ({"magnitudes": [0, 1]}, "'magnitudes.0': must be greater than 0, got 0"),
        ({"magnitudes": [1, float("inf")]}, "'magnitudes.1': must be a finite number"),
        ({"together": 0.5}, "together and hierarchy need groups of at least 2 atoms (group_size)"),
        ({"hierarchy": True}, "together and hierarchy need groups of at least 2 atoms (group_size)"),
        (
            {"zipf": 2.0},
            "zipf 2 would pick the commonest group 1.87 times a sample; lower zipf or k until that is at most 1",
        ),
        ({"coherence": 1.0}, "'coherence': must be less than 1, got 1.0"),
        ({"noise": -0.1}, "'noise': must be greater than or equal to 0, got -0.1"),
        ({"d_model": 1}, "'d_model': must be greater than or equal to 2, got 1"),
        ({"atoms": 3}, "unknown key 'atoms', did you mean 'n_atoms'?"),
    ],
)
def test_a_planted_config_that_cannot_be_is_refused_in_one_sentence(change, message):
    with pytest.raises(HusaiError) as caught:
        PlantedConfig.parse({"d_model": 16, "n_atoms": 24, "k": 3} | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_commonest_group_may_be_picked_every_time():
    assert PlantedConfig(n_atoms=4, k=4).rates == [1.0] * 4
    assert (active(n_atoms=4, k=4, d_model=3)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"frequencies": [2, 12, 9]},
            "frequency 12 is not from 1 to 11, the distinct ones mod 23; k and p - k are the same",
        ),
        ({"frequencies": list(range(1, 13)), "radii": [1] * 12, "d_model": 64}, "frequency 12 is not from 1 to 11"),
        ({"frequencies": [2, 5, 2]}, "frequencies [2, 5, 2] name one twice; each has one circle"),
        ({"frequencies": [0, 5, 2]}, "'frequencies.0': must be greater than or equal to 1, got 0"),
        ({"radii": [1.0]}, "1 radii for 3 frequencies; there must be one each"),
        ({"radii": [1, 0, 1]}, "'radii.1': must be greater than 0, got 0"),
        ({"d_model": 5}, "d_model 5 has no room for 3 orthogonal planes; they take 2 each"),
        ({"frequencies": [], "radii": []}, "'frequencies': tuple should have at least 1 item"),
    ],
)
def test_circles_that_cannot_be_are_refused_in_one_sentence(change, message):
    assert CirclesConfig.parse(CIRCLES.model_dump()) == CIRCLES
    with pytest.raises(HusaiError) as caught:
        CirclesConfig.parse(CIRCLES.model_dump() | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- fresh samples ---


def test_fresh_samples_have_the_same_atoms_and_firing_and_are_others():
    config = PlantedConfig(d_model=16, n_atoms=12, k=3, samples=4000, group_size=2, together=0.5, noise=0.01)
    truth, draw = plant(config), fresh_samples(config)
    first, second = (draw(4000, generator("test-fresh", seed)) for seed in (0, 1))
    assert torch.equal(first, draw(4000, generator("test-fresh", 0)))
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.T @ first / 4000, truth.x.T @ truth.x / 4000, atol=0.05, rtol=0)
    # with atoms in general position, samples lie on their span's sparse part: least squares gives the codes back
    codes = first @ torch.linalg.pinv(truth.atoms)
    assert (codes > 0.25).sum(1).double().mean() == pytest.approx(truth.l0, abs=0.1)
