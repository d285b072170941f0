from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from husai.config import TransformerConfig
from husai.errors import HusaiError
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.model import (
    Transformer,
    forward,
    hook_names,
    init_params,
    last_logits,
    resolve_hook,
)
from husai.transformer.weights import to_transformer_lens

LAYOUTS = ("abe", "husai")


def recorded(model, tokens):
    values = {}

    def keep(name, value):
        assert name not in values
        values[name] = value
        return value

    return forward(model.params, tokens, keep), values


def default_model(layout: str) -> Transformer:
    params = init_params(TransformerConfig(layout=layout), 113, generator=generator("test", 0))
    return Transformer(params, layout, 113)


def test_parameter_counts_at_p_113():
    assert default_model("husai").n_parameters == 427_765
    # W_E, W_pos, four attention matrices, two MLP matrices, W_U; no biases.
    assert default_model("abe").n_parameters == 114 * 128 + 3 * 128 + 4 * 128**2 + 2 * 128 * 512 + 128 * 113


def test_layers_and_logit_widths_of_the_layouts():
    abe, husai = default_model("abe"), default_model("husai")
    assert (abe.n_layers, abe.params["unembed.W_U"].shape[1]) == (1, 113)
    assert (husai.n_layers, husai.params["unembed.W_U"].shape[1]) == (2, 117)
    assert husai.logits(Task("add", 113)).shape == (113**2, 113)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_last_logits_are_the_last_logits_of_forward(fresh, layout):
    tokens = Task("add", 11).tokens(layout)
    for model in (fresh(layout), Transformer(default_params(layout), layout, 11)):
        whole = forward(model.params, tokens)[:, -1]
        assert float(whole.std()) > 0.1
        torch.testing.assert_close(last_logits(model.params, tokens), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_paths_and_transformer_lens_agree_on_squared_relu(fresh, layout):
    model, tokens = replace(fresh(layout), act="relu2").to(torch.float64), Task("add", 11).tokens(layout)
    whole = model.run(tokens, lambda _name, value: value)
    torch.testing.assert_close(model.logits(Task("add", 11)), whole[:, -1, :11], atol=1e-10, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(whole, to_transformer_lens(model)(tokens), atol=1e-10, rtol=0)
    assert float((whole - forward(model.params, tokens)).abs().max()) > 0.1


def default_params(layout: str):
    return init_params(TransformerConfig(layout=layout), 11, generator=generator("test", 1))


def gradients(logits, labels, params):
    return torch.autograd.grad(F.cross_entropy(logits, labels), list(params.values()))


def test_last_logits_and_gradients_agree_on_a_reference_model_in_float64(reference):
    model, task = reference("add-p59-0")
    params = {name: value.double().requires_grad_() for name, value in model.params.items()}
    tokens = task.tokens("abe")
    fast, whole = last_logits(params, tokens), forward(params, tokens)[:, -1]
    torch.testing.assert_close(fast, whole, atol=1e-9, rtol=0)
    for ours, theirs in zip(gradients(fast, task.labels, params), gradients(whole, task.labels, params), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_both_paths_agree(fresh, layout):
    task = Task("mul", 11)
    params = {name: value.double().requires_grad_() for name, value in fresh(layout).params.items()}
    tokens = task.tokens(layout)
    fast = gradients(last_logits(params, tokens), task.labels, params)
    whole = gradients(forward(params, tokens)[:, -1], task.labels, params)
    for ours, theirs in zip(fast, whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_hook_has_the_name_and_value_of_transformer_lens(fresh, layout):
    tokens = Task("add", 11).tokens(layout)
    model = fresh(layout).to(torch.float64)
    logits, ours = recorded(model, tokens)
    hooked = to_transformer_lens(model)
    with torch.no_grad():
        their_logits, theirs = hooked.run_with_cache(tokens)
    torch.testing.assert_close(logits, their_logits, atol=1e-10, rtol=0)
    assert set(ours) == {name for name in theirs if not name.startswith("unembed.")}
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], atol=1e-10, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_hook_values_of_a_reference_model_equal_transformer_lens(reference):
    model, task = reference("add-p59-0")
    tokens = task.tokens("abe")[::37]
    _, ours = recorded(model, tokens)
    with torch.no_grad():
        _, theirs = to_transformer_lens(model).run_with_cache(tokens)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_named_hook_is_offered_and_short_names_mean_the_last_layer(fresh, layout):
    model = fresh(layout)
    names = hook_names(model.params)
    _, values = recorded(model, Task("add", 11).tokens(layout)[:2])
    assert set(names.values()) <= set(values)
    assert {name for name in values if not name.endswith("hook_scale")} == set(names.values())
    assert names["resid_post"] == f"blocks.{model.n_layers - 1}.hook_resid_post"
    assert names["q.0"] == "blocks.0.attn.hook_q"


def test_zero_ablating_mlp_out_leaves_the_direct_path(fresh):
    model, tokens = fresh("abe"), Task("add", 11).tokens("abe")
    intact, values = recorded(model, tokens)

    def ablate(name, value):
        return torch.zeros_like(value) if name == "blocks.0.hook_mlp_out" else value

    ablated = forward(model.params, tokens, ablate)
    torch.testing.assert_close(ablated, values["blocks.0.hook_resid_mid"] @ model.params["unembed.W_U"])
    assert float((ablated - intact).abs().max()) > 0.1


def test_every_hook_may_replace_its_value(fresh):
    model, tokens = fresh("husai"), Task("add", 11).tokens("husai")
    intact, values = recorded(model, tokens)
    for chosen in values:

        def tilt(name, value, chosen=chosen):
            return value * torch.linspace(0.5, 1.5, value.shape[-1]) if name == chosen else value

        assert not torch.allclose(forward(model.params, tokens, tilt), intact, atol=1e-3), chosen


def test_nothing_before_the_read_position_sees_what_comes_after(fresh):
    model, tokens = fresh("abe"), torch.tensor([[3, 4, 11], [3, 7, 11]])
    _, values = recorded(model, tokens)
    post = values["blocks.0.hook_resid_post"]
    torch.testing.assert_close(post[0, 0], post[1, 0])  # the same a, another b
    assert not torch.allclose(post[0, 1], post[1, 1], atol=1e-3)


@pytest.mark.parametrize(
    ("hook", "layer", "full"),
    [
        ("resid_post", None, "blocks.1.hook_resid_post"),
        ("resid_post", 0, "blocks.0.hook_resid_post"),
        ("resid_post.0", None, "blocks.0.hook_resid_post"),
        ("blocks.0.hook_resid_post", None, "blocks.0.hook_resid_post"),
        ("mlp_post", None, "blocks.1.mlp.hook_post"),
        ("ln1", 0, "blocks.0.ln1.hook_normalized"),
        ("ln_final", None, "ln_final.hook_normalized"),
        ("embed", None, "hook_embed"),
    ],
)
def test_resolve_hook(fresh, hook, layer, full):
    assert resolve_hook(fresh("husai").params, hook, layer) == full


@pytest.mark.parametrize("hook", ["resid_pots", "blocks.1.hook_resid_post", "resid_post.1", "ln1", ""])
def test_unknown_hook_lists_what_there_is(fresh, hook):
    with pytest.raises(HusaiError) as caught:
        resolve_hook(fresh("abe").params, hook)
    assert f"hook: '{hook}' does not exist" in str(caught.value)
    assert "mlp_out, mlp_post, mlp_pre" in str(caught.value)


@pytest.mark.parametrize("layer", [1, -1])
def test_unknown_layer_says_which_there_are(fresh, layer):
    with pytest.raises(HusaiError, match=f"layer: {layer} does not exist; the model has layers 0 to 0"):
        resolve_hook(fresh("abe").params, "resid_post", layer)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_depend_on_the_seed_alone(layout):
    shape = TransformerConfig(layout=layout, d_model=16, n_heads=2, d_mlp=24)
    first, again, other = (init_params(shape, 11, generator=generator("test", seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if ".W_" in name)


def test_matrices_start_with_variance_one_over_d_model():
    params = default_model("husai").params
    for name, value in params.items():
        if ".W_" in name and value.numel() > 10_000:
            assert float(value.std()) * 128**0.5 == pytest.approx(1, abs=0.03), name
    assert float(params["blocks.1.ln2.w"].min()) == float(params["blocks.1.ln2.w"].max()) == 1
    assert not params["unembed.b_U"].any()
