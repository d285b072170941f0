import numpy as np
import pytest
import torch
import torch.nn.functional as F

from husai.analysis.planted import atom_recovery, firing_recovery, match_true
from husai.config import PlantedConfig
from husai.seeding import generator
from husai.truth.synthetic import plant

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)
N, D = 24, 16


@pytest.fixture(scope="module")
def planted():
    return plant(PlantedConfig(d_model=D, n_atoms=N, k=3, samples=2000))


def firing(planted, atoms, fires):
    return firing_recovery(fires, planted.codes > 0, match_true(atoms, planted.atoms))


def shuffled(n, seed=0):
    return torch.randperm(n, generator=generator("test-planted", seed))


# --- the truth itself, and what must not matter ---


def test_the_true_dictionary_recovers_everything(planted):
    assert atom_recovery(planted.atoms, planted.atoms) == pytest.approx((1, 1, 1), abs=1e-5)
    found = firing(planted, planted.atoms, planted.codes > 0)
    assert (found.firing_precision, found.firing_recall, found.firing_f1) == (1, 1, 1)
    assert found.f1.tolist() == [1] * N


def test_order_and_sign_of_atoms_do_not_matter(planted):
    order = shuffled(N)
    signs = torch.where(torch.arange(N) % 2 == 0, 1.0, -1.0)[:, None]
    assert atom_recovery(signs * planted.atoms[order], planted.atoms) == pytest.approx((1, 1, 1), abs=1e-5)
    assert firing(planted, signs * planted.atoms[order], planted.codes[:, order] > 0).firing_f1 == 1


def test_order_of_samples_does_not_matter_but_must_be_the_same(planted):
    order, fires = shuffled(2000), planted.codes > 0
    matching = match_true(planted.atoms, planted.atoms)
    assert firing_recovery(fires[order], fires[order], matching).firing_f1 == 1
    assert firing_recovery(fires[order], fires, matching).firing_f1 == pytest.approx(3 / N, abs=0.02)


def test_a_common_rotation_does_not_matter(planted, directions):
    atoms = directions(N, D, seed=1)
    turn = torch.linalg.qr(torch.randn(D, D, generator=generator("test-rotation"))).Q
    assert atom_recovery(atoms @ turn, planted.atoms @ turn) == pytest.approx(
        atom_recovery(atoms, planted.atoms), abs=1e-5
    )


# --- what must count ---


def test_a_missed_atom_counts_0_and_costs_no_precision(planted):
    kept = shuffled(N)[:18]
    found = atom_recovery(planted.atoms[kept], planted.atoms)
    assert found == pytest.approx((18 / N, 1, 1), abs=1e-5)
    fires = firing(planted, planted.atoms[kept], planted.codes[:, kept] > 0)
    assert (fires.firing_precision, fires.firing_recall, fires.firing_f1) == (18 / N, 18 / N, 18 / N)
    missed = set(range(N)) - set(kept.tolist())
    assert {i for i, f1 in enumerate(fires.f1) if f1 == 0} == missed


def test_a_superfluous_atom_costs_precision_alone(planted, directions):
    more = torch.cat([directions(8, D, seed=2), planted.atoms])
    assert atom_recovery(more, planted.atoms) == pytest.approx((1, N / (N + 8), 1), abs=1e-5)
    fires = torch.cat([torch.ones(2000, 8, dtype=torch.bool), planted.codes > 0], 1)
    assert firing(planted, more, fires).firing_f1 == 1


def test_duplicates_are_matched_once(planted):
    twice = planted.atoms[:12].repeat(2, 1)
    assert atom_recovery(twice, planted.atoms).gt_mcc < 0.85
    assert atom_recovery(torch.cat([planted.atoms, planted.atoms]), planted.atoms) == pytest.approx(
        (1, 0.5, 1), abs=1e-5
    )


def test_an_atom_off_by_an_angle_counts_its_cosine():
    true = torch.eye(3)
    atoms = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    # the first atom goes to the true one it is closer to, and nobody is left for the other
    assert atom_recovery(atoms, true) == pytest.approx((1.8 / 3, 0.9, 0.9))
    assert match_true(atoms, true).rows.tolist() == [1, 2]


def test_firing_by_hand():
    """Latent 0 fires on samples 0-2 and its atom on 1-4: two hits, so precision 2/3, recall 2/4, F1 4/7."""
    fires = torch.zeros(6, 2, dtype=torch.bool)
    fires[:3, 0], fires[5, 1] = True, True
    active = torch.zeros(6, 3, dtype=torch.bool)
    active[1:5, 0], active[5, 1], active[0, 2] = True, True, True
    found = firing_recovery(fires, active, match_true(torch.eye(3)[:2], torch.eye(3)))
    assert found.f1 == pytest.approx([4 / 7, 1, 0])
    assert found[:3] == pytest.approx(((2 / 3 + 1) / 3, (1 / 2 + 1) / 3, (4 / 7 + 1) / 3))


# --- controls that must fail ---


def test_codes_of_the_wrong_atoms_have_a_low_f1_whatever_the_directions(planted):
    order = torch.arange(N).roll(1)
    found = firing(planted, planted.atoms, planted.codes[:, order] > 0)
    assert found.firing_f1 == pytest.approx(2 / 23, abs=0.01)  # two of the others' 23 are active with an atom
    assert atom_recovery(planted.atoms, planted.atoms).gt_mcc == pytest.approx(1, abs=1e-5)


def test_random_atoms_are_far_below_and_alike(planted, directions):
    values = [atom_recovery(directions(N, D, seed=s), planted.atoms).gt_mcc for s in range(10, 20)]
    assert max(values) < 0.62
    assert np.std(values) < 0.02


def test_more_random_atoms_recover_more(planted, directions):
    few, many = (atom_recovery(directions(n, D, seed=3), planted.atoms) for n in (N, 20 * N))
    assert many.gt_mcc > few.gt_mcc + 0.1, "which is why nulls have as many atoms as the dictionary"
    assert many.gt_precision < 0.1


@pytest.mark.parametrize("n", [5, N, 40])
def test_the_matched_mean_is_that_of_sae_lens(sae_lens, planted, directions, n):
    atoms = F.normalize(directions(n, D, seed=4) + 0.5 * planted.atoms[torch.arange(n) % N], dim=1)
    theirs = sae_lens.synthetic.mean_correlation_coefficient(planted.atoms, atoms)
    assert atom_recovery(atoms, planted.atoms).gt_mcc_matched == pytest.approx(theirs, abs=1e-5)
