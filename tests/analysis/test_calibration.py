import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from husai.analysis.calibration import auc, calibration, reliability, stratified_auc


def rows(n, d, seed):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_auc_by_hand_and_against_scikit_learn():
    scores, labels = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert auc(scores, labels) == 0.75
    assert auc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert np.isnan(auc(scores, np.ones(4, bool)))
    generator = np.random.default_rng(0)
    drawn, kinds = generator.integers(0, 10, 200).astype(float), generator.random(200) < 0.3
    assert auc(drawn, kinds) == pytest.approx(roc_auc_score(kinds, drawn))


def test_atoms_are_compared_with_those_that_fire_as_often():
    """Frequent atoms are all true and score high; within each group scores are reversed."""
    rates = np.array([0.1, 0.1, 0.9, 0.9])
    scores, labels = np.array([0.2, 0.1, 0.8, 0.7]), np.array([False, True, False, True])
    assert auc(scores, labels) == 0.25
    assert stratified_auc(scores, labels, rates, strata=2) == 0.0


def test_reliability_by_hand():
    scores, labels = np.array([0.9, 0.1, 0.8, 0.2]), np.array([True, False, False, False])
    assert reliability(scores, labels, bins=2) == ((2, pytest.approx(0.15), 0.0), (2, pytest.approx(0.85), 0.5))


def planted(seeds=5, shared=30, own=30):
    """Every seed has the same true atoms, slightly noisy, in an order of its own, among others of its own."""
    truth, atoms, true, rates = rows(shared, 24, 0), [], [], []
    for seed in range(seeds):
        noisy = F.normalize(truth + 0.05 * rows(shared, 24, 100 + seed), dim=1)
        order = torch.randperm(shared + own, generator=torch.Generator().manual_seed(seed))
        atoms.append(torch.cat([noisy, rows(own, 24, 200 + seed)])[order])
        true.append((torch.arange(shared + own) < shared)[order].numpy())
        rates.append(np.random.default_rng(seed).random(shared + own))
    return atoms, true, rates


def test_agreement_on_what_is_true_is_found():
    atoms, true, rates = planted()
    found = calibration(atoms, true, rates)
    assert found.auc.mean > 0.99
    assert found.bins[0].true < 0.05
    assert found.bins[-1].true > 0.95


def test_labels_that_have_nothing_to_do_with_agreement_give_a_half():
    atoms, true, rates = planted()
    shuffled = [np.random.default_rng(10 + i).permutation(flags) for i, flags in enumerate(true)]
    found = calibration(atoms, shuffled, rates)
    assert found.auc.low < 0.5 < found.auc.high
    assert found.auc.mean == pytest.approx(0.5, abs=0.1)


def test_true_atoms_may_agree_less_than_others():
    """True atoms anywhere on a circle, beside untrue ones that all seeds share."""
    atoms, true, rates = [], [], []
    for seed in range(5):
        turn = 2 * np.pi * torch.rand(20, generator=torch.Generator().manual_seed(seed))
        circle = torch.zeros(20, 24)
        circle[:, 0], circle[:, 1] = turn.cos(), turn.sin()
        junk = torch.eye(24)[2:22]
        atoms.append(torch.cat([circle, junk]))
        true.append(np.arange(40) < 20)
        rates.append(np.ones(40))
    assert calibration(atoms, true, rates).auc.mean < 0.05


def test_one_atoms_own_noise_cannot_make_both():
    """Truth is said by chance for every atom, but an atom said to be true is also moved towards the others' partners.

    Were truth asked of the atom itself, its score would predict it; asked of partners elsewhere, it does not.
    """
    base, atoms, true = rows(40, 24, 0), [], []
    for seed in range(5):
        flags = np.random.default_rng(seed).random(40) < 0.5
        noise = torch.where(torch.from_numpy(flags)[:, None], 0.1, 1.5) * rows(40, 24, 50 + seed)
        atoms.append(F.normalize(base + noise, dim=1))
        true.append(flags)
    rates = [np.ones(40)] * 5
    naive = [auc((atoms[0] @ base.T).diagonal().numpy(), true[0])]
    assert naive[0] > 0.9
    assert calibration(atoms, true, rates).auc.mean == pytest.approx(0.5, abs=0.12)


def test_too_few_seeds_and_one_kind_of_atom():
    atoms, true, rates = planted(seeds=3)
    with pytest.raises(ValueError, match="at least 3"):
        calibration(atoms[:2], true[:2], rates[:2])
    nothing = calibration(atoms, [np.zeros(60, bool)] * 3, rates)
    assert np.isnan(nothing.auc.mean)
    assert nothing.bins[0].true == 0
