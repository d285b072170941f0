from collections.abc import Callable

import pytest
import torch

from husai.activations import extract
from husai.analysis.site import Site
from husai.models import logits
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.model import hook_names

HOOKS = {
    "abe": [
        "embed",
        "q",
        "pattern",
        "attn_scores",
        "z",
        "attn_out",
        "resid_mid",
        "mlp_pre",
        "mlp_post",
        "mlp_out",
        "resid_post",
    ],
    "husai": ["resid_pre", "z", "resid_mid", "mlp_post", "resid_post", "ln_final", "resid_post.0", "mlp_out.0"],
}


def cases() -> list[tuple[str, str]]:
    return [(layout, hook) for layout, hooks in HOOKS.items() for hook in hooks]


def replaced_by_hand(model, task: Task, hook: str, position: int, x: torch.Tensor) -> torch.Tensor:
    """The whole forward pass with the hook's value at one position overwritten."""
    full = hook_names(model.params)[hook]

    def put(name, value):
        if name == full:
            value = value.clone()
            here = value[:, :, position] if name.endswith(("scores", "pattern")) else value[:, position]
            here[:] = x.view_as(here)
        return value

    with torch.no_grad():
        return model.run(task.tokens(model.layout), put)[:, -1, : task.p]


@pytest.mark.parametrize(("layout", "hook"), cases())
def test_untouched_activations_give_the_models_logits(fresh, layout, hook):
    model, task = fresh(layout), Task("add", 11)
    site = Site.of(extract(model, task, hook), model)
    torch.testing.assert_close(site.logits, logits(model, task), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layout", "hook"), cases())
def test_changed_activations_do_what_the_whole_model_does(fresh, layout, hook):
    model, task = fresh(layout), Task("add", 11)
    activations = extract(model, task, hook)
    site = Site.of(activations, model)
    noise = generator("test-site")
    amounts, directions = torch.randn(121, 3, generator=noise), torch.randn(3, activations.x.shape[1], generator=noise)
    expected = replaced_by_hand(model, task, hook, -1, activations.x + amounts @ directions)
    assert hook in ("embed", "resid_pre") or (expected - site.logits).abs().max() > 0.01
    torch.testing.assert_close(site.after(amounts, directions), expected, atol=1e-4, rtol=1e-4)
    some = torch.tensor([5, 120, 7])
    torch.testing.assert_close(site.among(some).after(amounts[some], directions), expected[some], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(site.among(some).logits, site.logits[some])


def test_other_positions_are_the_ones_changed(fresh):
    model, task = fresh(), Task("add", 11)
    activations = extract(model, task, "embed", position=0)
    site = Site.of(activations, model)
    others = activations.x.roll(11, 0)  # the embedding of a − 1
    shifted = site.after(others - activations.x, torch.eye(16))
    torch.testing.assert_close(shifted, site.logits.roll(11, 0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("hook", "linear"), [("resid_mid", False), ("mlp_post", True), ("mlp_out", True), ("resid_post", True)]
)
def test_logits_are_linear_after_the_last_nonlinearity(fresh, hook, linear):
    model, task = fresh(), Task("add", 11)
    assert (Site.of(extract(model, task, hook), model).readout is not None) == linear
    assert Site.of(extract(fresh("husai"), task, "resid_post"), fresh("husai")).readout is None


def test_a_recurrent_state_is_read_by_its_readout(rotating: Callable):
    model = rotating(p=11, keys=(1, 3))
    site = Site.of(extract(model, model.walks, "hidden"), model)
    torch.testing.assert_close(site.logits, logits(model.to(torch.float32), model.walks), atol=1e-3, rtol=1e-3)
    assert site.readout is not None
    some = site.among(torch.tensor([3, 4]))
    torch.testing.assert_close(
        some.after(torch.ones(2, 1), site.x[:1]), site.logits[[3, 4]] + site.logits[0], atol=1e-2, rtol=1e-3
    )
