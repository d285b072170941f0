import pytest
import torch

from husai.activations import Activations
from husai.config import ControlConfig
from husai.errors import HusaiError
from husai.seeding import generator
from husai.tasks import Task
from husai.truth.controls import permuted, stand_in, surrogate
from husai.truth.planes import families, find_truth

TASK = Task("add", 23)
KINDS = ("surrogate", "permuted")


@pytest.fixture(scope="module")
def x():
    """A circle of the answer at frequency 3 and a smaller one at 5, in random planes of 8 dimensions, off the origin."""
    plane = torch.linalg.qr(torch.randn(8, 8, generator=generator("test-plane"))).Q
    angle = 2 * torch.pi * TASK.labels / 23
    waves = torch.stack([(3 * angle).cos(), (3 * angle).sin(), 0.5 * (5 * angle).cos(), 0.5 * (5 * angle).sin()], 1)
    return waves @ plane[:, :4].T + torch.arange(8.0)


def drawn(x, kind, seed=0):
    return stand_in(x, ControlConfig(kind=kind, seed=seed))


def covariance(x):
    centred = x.double() - x.double().mean(0)
    return centred.T @ centred / len(x)


def kurtosis(values):
    centred = values - values.mean()
    return float((centred**4).mean() / (centred**2).mean() ** 2)


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_covariance_are_kept(x, kind):
    there = drawn(x, kind)
    assert there.shape == x.shape
    assert there.dtype == torch.float32
    torch.testing.assert_close(there.mean(0), x.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(covariance(there), covariance(x), atol=0.06, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_grid_is_left(x, kind):
    assert find_truth(Activations(x, TASK, "test", "test")).subspaces[0].label == "sum k=3"
    family = families(TASK)
    shares = family.energy(family.coefficients(drawn(x, kind))).sum(1) / covariance(drawn(x, kind)).trace() / len(x)
    assert float(shares.max()) < 0.02, "of 529 dimensions a family holds 2, so it has .004 by chance"


def test_large_samples_have_no_truth():
    task = Task("add", 59)
    angle = 2 * torch.pi * task.labels / 59
    x = torch.stack([angle.cos(), angle.sin()], 1)
    for kind in KINDS:
        with pytest.raises(HusaiError, match="no Fourier family holds 1%"):
            find_truth(Activations(drawn(x, kind), task, "test", "test"))


def test_a_surrogate_is_gaussian_and_its_source_is_not(x):
    for direction in torch.eye(8):
        assert kurtosis(drawn(x, "surrogate") @ direction) == pytest.approx(3, abs=0.6)
    circle = x[:, 0] - x[:, 0].mean()
    assert kurtosis(circle) < 2.4, "a cosine has 1.5"


def test_a_surrogate_stays_in_the_span_of_its_source(x):
    outside = torch.linalg.svd(x - x.mean(0)).Vh[4:]
    assert float((drawn(x, "surrogate") - x.mean(0)).matmul(outside.T).abs().max()) < 1e-4


def test_permuting_keeps_every_principal_coordinate_and_breaks_their_bond(x):
    there = drawn(x, "permuted")
    axes = torch.linalg.svd(x.double() - x.double().mean(0), full_matrices=False).Vh[:4]
    before, after = ((y.double() - x.double().mean(0)) @ axes.T for y in (x, there))
    torch.testing.assert_close(before.sort(0).values, after.sort(0).values, atol=1e-5, rtol=0)
    radius = [(y[:, :2] ** 2).sum(1).std() for y in (before, after)]
    assert radius[0] < 0.01, "on a circle the squares of the two coordinates sum to a constant"
    assert radius[1] > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_means_one_sample_and_another_seed_another(x, kind):
    assert torch.equal(drawn(x, kind, 3), drawn(x, kind, 3))
    assert not torch.equal(drawn(x, kind, 3), drawn(x, kind, 4))


def test_the_stream_is_the_callers():
    x = torch.randn(50, 3, generator=generator("test"))
    for draw in (surrogate, permuted):
        assert torch.equal(draw(x, generator=generator("one")), draw(x, generator=generator("one")))
        assert not torch.equal(draw(x, generator=generator("one")), draw(x, generator=generator("two")))
