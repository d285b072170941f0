import math

import pytest
import torch

from husai.activations import Normaliser, extract, rescale
from husai.errors import HusaiError
from husai.tasks import Task
from husai.transformer.model import hook_names
from husai.transformer.weights import to_transformer_lens

BY_QUERY = ("attn_scores", "pattern")  # (batch, head, query, key)


@pytest.mark.parametrize("layout", ["abe", "husai"])
def test_every_hook_equals_transformer_lens_at_the_read_position(fresh, layout):
    model, task = fresh(layout), Task("add", 11)
    tokens = task.tokens(layout)
    with torch.no_grad():
        _, cache = to_transformer_lens(model).run_with_cache(tokens)
    for short, full in hook_names(model.params).items():
        got = extract(model, task, short, batch=50)
        theirs = cache[full][:, :, -1] if full.endswith(BY_QUERY) else cache[full][:, -1]
        torch.testing.assert_close(got.x, theirs.flatten(1), atol=1e-5, rtol=1e-4)
        assert (got.hook, got.x.dtype, len(got.x)) == (full, torch.float32, 121)


def test_widths_by_hand(fresh):
    # d_model 16, two heads of 8, 24 neurons, three positions.
    widths = {"resid_pre": 16, "q": 16, "z": 16, "pattern": 6, "mlp_post": 24, "mlp_out": 16}
    model, task = fresh("abe"), Task("add", 11)
    assert {hook: extract(model, task, hook).x.shape[1] for hook in widths} == widths


def test_positions_count_from_either_end(fresh):
    model, task = fresh("abe"), Task("add", 11)
    last, third, second = (extract(model, task, "resid_post", position=i).x for i in (-1, 2, 1))
    assert torch.equal(last, third)
    assert not torch.allclose(last, second, atol=1e-3)
    first = extract(model, task, "resid_post", position=0).x
    assert len(first.unique(dim=0)) == 11  # it sees a alone


def test_layer_picks_the_layer(fresh):
    model, task = fresh("husai"), Task("add", 11)
    assert extract(model, task, "mlp_out", layer=0).hook == "blocks.0.hook_mlp_out"
    assert extract(model, task, "mlp_out").hook == "blocks.1.hook_mlp_out"
    assert not torch.equal(extract(model, task, "mlp_out", layer=0).x, extract(model, task, "mlp_out").x)


def test_record_names_the_model_and_its_verdict(fresh):
    got = extract(fresh("abe"), Task("mul", 11), "mlp_out")
    assert (got.model, got.verified, got.task) == ("fresh", None, Task("mul", 11))


@pytest.mark.parametrize("batch", [1, 120, 121, 4096])
def test_batches_leave_no_trace(fresh, batch):
    model, task = fresh("abe"), Task("add", 11)
    torch.testing.assert_close(extract(model, task, "mlp_out", batch=batch).x, extract(model, task, "mlp_out").x)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"hook": "resid_pots"}, "hook: 'resid_pots' does not exist in this model"),
        ({"hook": "mlp_out", "layer": 1}, "layer: 1 does not exist; the model has layers 0 to 0"),
        ({"hook": "mlp_out", "position": 3}, "position: 3 does not exist; the input has positions 0 to 2"),
        ({"hook": "mlp_out", "position": -4}, "position: -4 does not exist"),
        ({"hook": "attn_scores", "position": 0}, "position 0 holds masked entries"),
    ],
)
def test_bad_request_is_refused(fresh, kwargs, message):
    with pytest.raises(HusaiError, match=message):
        extract(fresh("abe"), Task("add", 11), **kwargs)


def test_task_of_another_modulus_is_refused(fresh):
    with pytest.raises(HusaiError, match="model fresh: its modulus is 11, the task's is 13"):
        extract(fresh("abe"), Task("add", 13), "mlp_out")


def test_normaliser_by_hand():
    # Rows at distance 5 from their mean (1, 1) in two dimensions: scaled to √2.
    normalise = Normaliser.fit(torch.tensor([[4.0, 5.0], [-2.0, -3.0]]))
    assert normalise.mean.tolist() == [1, 1]
    assert normalise.scale == pytest.approx(math.sqrt(2) / 5)
    assert normalise(torch.tensor([[4.0, 5.0]]))[0].tolist() == pytest.approx(
        [3 * math.sqrt(2) / 5, 4 * math.sqrt(2) / 5]
    )


def test_normalised_activations_are_centred_with_mean_squared_norm_d(reference):
    model, task = reference("add-p59-0")
    x = extract(model, task, "resid_post").x
    y = Normaliser.fit(x)(x)
    assert float(y.pow(2).sum(1).mean()) == pytest.approx(128, rel=1e-5)
    assert float(y.mean(0).norm()) < 1e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_named(bad):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    x[4, 1] = x[5, 2] = bad
    with pytest.raises(HusaiError, match=r"some file: row 4 holds NaN or infinity \(2 such rows\)"):
        Normaliser.fit(x, "some file")


@pytest.mark.parametrize("x", [torch.zeros(5, 3), torch.full((5, 3), 0.1), torch.tensor([[1e6, 2e6]]).repeat(9, 1)])
def test_constant_activations_are_refused(x):
    with pytest.raises(HusaiError, match="activations: do not vary over the samples"):
        Normaliser.fit(x)


def test_a_single_sample_is_refused():
    with pytest.raises(HusaiError, match="do not vary"):
        Normaliser.fit(torch.randn(1, 3))


def test_every_coordinate_gets_variance_1():
    # deviations 3 and 4 about the mean (1, 1); a constant coordinate stays 0
    normalise = Normaliser.fit(torch.tensor([[4.0, 5.0, 7.0], [-2.0, -3.0, 7.0]]), how="feature")
    assert normalise(torch.tensor([[4.0, 5.0, 7.0], [1.0, -7.0, 7.0]])).tolist() == [[1, 1, 0], [0, -2, 0]]


def test_every_sample_gets_norm_sqrt_d_and_a_zero_vector_stays_one():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-9]])
    normalise = Normaliser.fit(x, how="constant_norm")
    root = math.sqrt(2)
    scaled = normalise(x)
    torch.testing.assert_close(scaled, torch.tensor([[0.6 * root, 0.8 * root], [0.0, 0.0], [0.0, 1e-3 * root]]))
    torch.testing.assert_close(scaled * rescale(x).size, x)
    assert torch.equal(normalise(x[None])[0], scaled)


def test_nothing_is_changed_if_asked_so():
    x = torch.tensor([[3.0, 4.0], [0.0, 7.0]])
    assert torch.equal(Normaliser.fit(x, how="none")(x), x)
    for how in ("feature", "constant_norm", "none"):
        with pytest.raises(HusaiError, match="do not vary"):
            Normaliser.fit(torch.ones(3, 2), how=how)


def test_small_variation_on_a_large_mean_is_kept():
    x = torch.tensor([[1000.0, 0.0], [1001.0, 0.0]])
    assert Normaliser.fit(x).scale == pytest.approx(math.sqrt(2) / 0.5)
