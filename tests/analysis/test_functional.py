from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from husai.activations import extract
from husai.analysis import functional as module
from husai.analysis.functional import functional
from husai.analysis.ideal import signed_axes
from husai.analysis.matching import Matching
from husai.analysis.site import Site
from husai.analysis.stability import stability
from husai.config import CompiledConfig, TaskConfig
from husai.errors import HusaiError
from husai.measure import Hook
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.compiled import compile_model

E = torch.eye(4)
READOUT = torch.tensor([[1.0, 0, 0], [0, 1, 0], [2, 2, 2], [0, 0, 0]])  # e3 moves all answers alike, e4 none
SIGNALS = torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 1]]).T  # two independent codes of four samples


def by_hand(samples: int = 4) -> Site:
    x = torch.randn(samples, 4, generator=generator("test-functional"))
    return Site(x, x @ READOUT, torch.arange(samples), READOUT, lambda changed, _: changed @ READOUT)


def nonlinear(site: Site) -> Site:
    """The same, with the rest of the model run."""
    return replace(site, readout=None)


def score(codes: list[Tensor], atoms: list[Tensor], site: Site):
    return functional(stability(atoms).pwmcc.matched, codes, atoms, site)


both = pytest.mark.parametrize("ran", [lambda site: site, nonlinear], ids=["linear", "run"])

# --- by hand ---


@both
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (E[0], E[0], 1),
        (E[0], -E[0], -1),
        (E[0], E[1], -0.5),  # centred readouts (2, −1, −1)/3 and (−1, 2, −1)/3
        (E[0], 0.6 * E[0] + 0.8 * E[3], 1),  # what the readout is blind to
        (E[0], 0.6 * E[0] + 0.8 * E[2], 1),  # what moves all answers alike
        (E[0], E[2], 0),
        (E[2], E[2], 0),  # nothing changes
        (E[3], E[3], 0),
    ],
)
def test_what_atoms_write_counts_as_far_as_the_answers_tell_it(ran, first, second, expected):
    codes = [SIGNALS[:, :1]] * 2
    found = score(codes, [first[None], second[None]], ran(by_hand()))
    assert found.matrix[0, 1] == pytest.approx(expected, abs=1e-6)
    assert found.atoms[0].tolist() == pytest.approx([expected], abs=1e-6)


@both
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1], 1),
        ([0, 0, 1, 1], [5, 5, 8, 8], 1),  # neither size nor what is always there counts
        ([0, 0, 1, 1], [0, 1, 0, 1], 0),  # independent
        ([0, 0, 1, 1], [1, 1, 0, 0], -1),
        ([1, 0, 0, 0], [0, 0, 0, 1], -1 / 3),  # never together: −r/(1 − r) at firing rate r
        ([1, 0, 0, 0], [2, 2, 2, 2], 0),  # a code that never varies
        ([0, 0, 0, 0], [0, 0, 0, 0], 0),
    ],
)
def test_codes_count_by_their_variation(ran, first, second, expected):
    codes = [torch.tensor(own, dtype=torch.float32)[:, None] for own in (first, second)]
    assert score(codes, [E[:1], E[:1]], ran(by_hand())).matrix[0, 1] == pytest.approx(expected, abs=1e-6)


@both
def test_an_atom_and_its_negative_do_the_same_if_codes_change_sign_too(ran):
    codes = [SIGNALS[:, :1], -SIGNALS[:, :1]]
    assert score(codes, [E[:1], -E[:1]], ran(by_hand())).matrix[0, 1] == pytest.approx(1)


@both
def test_the_decoder_matching_is_kept_and_decides_who_is_compared(ran):
    site = ran(by_hand())
    atoms, codes = [E[:2], E[[1, 0]]], [SIGNALS, SIGNALS[:, [1, 0]]]
    assert score(codes, atoms, site).matrix[0, 1] == pytest.approx(1)
    swapped = score([SIGNALS, SIGNALS], atoms, site)  # the decoders find each other, the codes say something else
    assert swapped.matrix[0, 1] == pytest.approx(0, abs=1e-6)
    assert swapped.matched[0, 1].columns.tolist() == [1, 0]
    alone = functional({(0, 1): Matching(np.array([0]), np.array([1]), np.ones(1))}, codes, atoms, site)
    assert alone.matrix[0, 1] == pytest.approx(1)
    assert np.isnan(alone.atoms[0]).tolist() == [False, True]
    assert np.isnan(alone.atoms[1]).tolist() == [True, False]


# --- dictionaries of models ---


@pytest.fixture(scope="module")
def clock() -> Hook:
    config = CompiledConfig(kind="clock", task=TaskConfig(op="add", p=29), keys=(1, 8, 12))
    model = compile_model(config).to(torch.float32)
    return Hook.of(extract(model, Task("add", 29), "mlp_out"), model)


def drawn(x: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit atoms near data points, and sparse codes."""
    stream = generator("test-functional", seed)
    points = (x - x.mean(0))[torch.randperm(len(x), generator=stream)[:n]]
    atoms = F.normalize(F.normalize(points, dim=1) + 0.05 * torch.randn(points.shape, generator=stream), dim=1)
    projections = (x - x.mean(0)) @ atoms.T
    return atoms, (projections - projections.quantile(0.8, dim=0)).relu()


def test_a_dictionary_in_another_order_does_the_same(clock):
    axes = signed_axes([subspace.basis for subspace in clock.truth.subspaces], clock.x.mean(0))
    codes, order = axes.encode(clock.x), torch.randperm(12, generator=generator("test-functional"))
    found = score([codes, codes[:, order]], [axes.atoms, axes.atoms[order]], clock.site)
    assert found.matrix[0, 1] == pytest.approx(1, abs=1e-5)  # codes are float32
    assert found.atoms[0] == pytest.approx(np.ones(12), abs=1e-5)


def test_running_the_model_agrees_with_the_closed_form(clock, monkeypatch):
    atoms, codes = zip(*(drawn(clock.x, 20, seed) for seed in range(3)), strict=True)
    matched = stability(atoms).pwmcc.matched
    exact = functional(matched, codes, atoms, clock.site)
    assert 0.05 < exact.interval.mean < 0.95
    monkeypatch.setattr(module, "ROWS", 29**2)
    ran = functional(matched, codes, atoms, nonlinear(clock.site))
    assert ran.matrix == pytest.approx(exact.matrix, abs=1e-4)
    for own, other in zip(ran.atoms, exact.atoms, strict=True):
        assert own == pytest.approx(other, abs=1e-4)
    monkeypatch.setattr(module, "HELD", 1)  # room for no more than two atoms' changes
    assert np.array_equal(functional(matched, codes, atoms, nonlinear(clock.site)).matrix, ran.matrix)


def test_where_the_model_is_run_the_loudest_pairs_are_asked(clock, monkeypatch):
    monkeypatch.setattr(module, "PAIRS", 5)
    monkeypatch.setattr(module, "ROWS", 200)
    atoms, codes = drawn(clock.x, 20, 0)
    loud = torch.ones(20)
    loud[[3, 4, 7, 11, 19]] = 10
    runs: list[int] = []

    def run(changed: Tensor, rows: Tensor) -> Tensor:
        runs.append(len(rows))
        return clock.site.run(changed, rows)

    site = replace(nonlinear(clock.site), run=run)
    found = score([codes * loud] * 3, [atoms] * 3, site)
    assert found.matrix == pytest.approx(np.ones((3, 3)), abs=1e-5)
    assert np.nonzero(~np.isnan(found.atoms[0]))[0].tolist() == [3, 4, 7, 11, 19]
    assert sorted(found.matched[0, 2].rows.tolist()) == [3, 4, 7, 11, 19]
    assert runs == [200] * 15  # once an atom, on no more samples than allowed


def test_before_the_mlp_of_a_trained_model_what_the_answers_cannot_tell_does_not_count(reference):
    model, task = reference("add-p113-0")
    site = Site.of(extract(model, task, "resid_mid"), model)
    assert site.readout is None
    atoms, codes = drawn(site.x, 12, 0)
    others, theirs = drawn(site.x, 12, 1)
    silent = torch.zeros(len(codes), 1)  # removing what is not there must be rounding
    first = torch.cat([atoms, F.normalize(torch.ones(1, 128), dim=1)])
    same = score([torch.cat([codes, silent], 1)] * 2, [first, first], site)
    assert same.atoms[0] == pytest.approx(np.r_[np.ones(12), 0], abs=1e-5)
    other = score([codes, theirs], [atoms, others], site)
    assert -0.5 < other.matrix[0, 1] < 0.9


def test_after_the_mlp_of_a_trained_model(reference):
    model, task = reference("add-p113-0")
    site = Site.of(extract(model, task, "mlp_out"), model)
    assert site.readout is not None
    atoms, codes = drawn(site.x, 30, 0)
    unread = torch.linalg.svd(site.readout - site.readout.mean(1, keepdim=True)).U[:, -1]  # 128 dimensions, 113 answers
    mixed = F.normalize(atoms + unread, dim=1)
    pair = [atoms, mixed]
    assert stability(pair).pwmcc.matrix[0, 1] < 0.9
    assert score([codes, codes], pair, site).matrix[0, 1] > 0.999
    shuffled = codes[torch.randperm(len(codes), generator=generator("test-functional"))]
    assert abs(score([codes, shuffled], [atoms, atoms], site).matrix[0, 1]) < 0.05


# --- bad input ---


def test_bad_input_is_refused():
    site, codes, atoms = by_hand(), [SIGNALS, SIGNALS], [E[:2], E[:2]]
    with pytest.raises(HusaiError, match="do not fit 4 samples of width 4"):
        functional({}, [SIGNALS[:3], SIGNALS], atoms, site)
    with pytest.raises(HusaiError, match="do not fit"):
        functional({}, codes, [E[:2, :3], E[:2]], site)
    with pytest.raises(HusaiError, match=r"\(0, 1\) are not matched"):
        functional({}, codes, atoms, site)
