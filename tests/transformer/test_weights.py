import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from husai.errors import HusaiError
from husai.tasks import Task
from husai.transformer.weights import (
    from_state_dict,
    load_weights,
    save_weights,
    to_transformer_lens,
    weights_hash,
)
from husai.truth.circuit import verify


class RunsCode:
    """Unpickling this creates a folder."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return Path.mkdir, (self.place,)


def refusal(call, *args) -> str:
    with pytest.raises(HusaiError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["abe", "husai"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_round_trip(fresh, tmp_path, layout, suffix):
    model, path = fresh(layout), tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_weights(model, path)
    else:
        torch.save(model.params, path)
    again, ignored = load_weights(path)
    assert ignored == ()
    assert (again.layout, again.p, again.n_layers) == (layout, 11, model.n_layers)
    assert again.params.keys() == model.params.keys()
    assert all(torch.equal(again.params[name], model.params[name]) for name in model.params)
    assert weights_hash(again) == weights_hash(model)


def test_the_activation_function_is_part_of_the_file_and_of_the_hash(fresh, tmp_path):
    relu, path = fresh(), tmp_path / "model.safetensors"
    squared = replace(relu, act="relu2")
    save_weights(squared, path)
    again, _ = load_weights(path)
    assert again.act == "relu2"
    assert weights_hash(again) == weights_hash(squared) != weights_hash(relu)
    assert to_transformer_lens(again).cfg.act_fn == "relu2"
    assert not torch.allclose(again.logits(Task("add", 11)), relu.logits(Task("add", 11)), atol=1e-3)
    for foreign in ("foreign.safetensors", "foreign.pt"):
        (save_file if foreign.endswith("tensors") else torch.save)(dict(squared.params), tmp_path / foreign)
        assert load_weights(tmp_path / foreign)[0].act == "relu"


def test_an_unknown_activation_function_is_refused(fresh, tmp_path):
    save_file(fresh().params, tmp_path / "model.safetensors", metadata={"act": "gelu"})
    message = refusal(load_weights, tmp_path / "model.safetensors")
    assert message == f"{tmp_path}/model.safetensors: its header names act 'gelu'; allowed are relu, relu2"


def test_hashes_of_the_references_have_not_changed(reference):
    # Committed records call their model by this hash.
    assert weights_hash(reference("add-p59-0")[0]) == "d2bbc588dfe1"


def test_hash_follows_the_weights_and_not_the_name(fresh):
    model = fresh("abe")
    assert weights_hash(replace(model, name="other")) == weights_hash(model)
    touched = {name: value.clone() for name, value in model.params.items()}
    touched["unembed.W_U"][0, 0] += 1e-3
    assert weights_hash(replace(model, params=touched)) != weights_hash(model)


def test_saved_transformer_lens_state_dict_gets_the_same_verdict(reference, tmp_path):
    model, task = reference("add-p59-0")
    torch.save(to_transformer_lens(model).state_dict(), tmp_path / "hooked.pt")
    foreign, ignored = load_weights(tmp_path / "hooked.pt")
    assert ignored == ()
    ours, theirs = verify(model, task), verify(foreign, task)
    assert ours.passed
    assert theirs.passed
    assert theirs.key_frequencies == ours.key_frequencies
    for name in ("accuracy", "key_share", "fve", "base_loss", "restricted_loss", "excluded_loss", "neuron_purity"):
        assert getattr(theirs, name) == pytest.approx(getattr(ours, name), rel=1e-9), name


def test_foreign_model_of_another_width_and_with_biases_is_read(tmp_path):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    # Nanda's shape of model: d_vocab = p + 1 in and out, any number of heads, biases everywhere.
    config = HookedTransformerConfig(
        n_layers=1,
        d_model=12,
        d_head=5,
        n_heads=3,
        d_mlp=20,
        n_ctx=3,
        d_vocab=14,
        act_fn="relu",
        normalization_type=None,
        seed=0,
        device="cpu",
    )
    hooked = HookedTransformer(config)
    for name, value in hooked.named_parameters():
        if ".b_" in name:
            torch.nn.init.normal_(value)
    torch.save(hooked.state_dict(), tmp_path / "foreign.pt")
    model, ignored = load_weights(tmp_path / "foreign.pt")
    assert ignored == ()
    assert (model.p, model.layout) == (13, "abe")
    task = Task("add", 13)
    with torch.no_grad():
        expected = hooked(task.tokens("abe"))[:, -1, :13]
    torch.testing.assert_close(model.logits(task), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_read_as_float32(fresh, tmp_path, dtype):
    torch.save({name: value.to(dtype) for name, value in fresh().params.items()}, tmp_path / "model.pt")
    model, _ = load_weights(tmp_path / "model.pt")
    assert {value.dtype for value in model.params.values()} == {torch.float32}


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "model_state_dict"])
def test_nested_state_dict_is_unwrapped(fresh, tmp_path, wrapper):
    torch.save({wrapper: fresh().params, "epoch": 7}, tmp_path / "checkpoint.pt")
    model, _ = load_weights(tmp_path / "checkpoint.pt")
    assert weights_hash(model) == weights_hash(fresh())


def test_extra_keys_are_ignored_and_reported(fresh, tmp_path):
    extra = {"blocks.0.attn.mask": torch.ones(3, 3), "probe.w": torch.ones(2), "adapter.w": torch.ones(2)}
    torch.save(fresh().params | extra, tmp_path / "model.pt")
    model, ignored = load_weights(tmp_path / "model.pt")
    assert ignored == ("adapter.w", "probe.w")  # TransformerLens' own buffers are no news
    assert weights_hash(model) == weights_hash(fresh())


@pytest.mark.parametrize("dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_pickled_code_is_refused_and_does_not_run(fresh, tmp_path, dump):
    marker, path = tmp_path / "code-ran", tmp_path / "model.pt"
    pickle.loads(pickle.dumps(RunsCode(marker)))
    assert marker.is_dir()  # the trap works
    marker.rmdir()
    dump(fresh().params | {"extra": RunsCode(marker)}, path)
    assert refusal(load_weights, path).startswith(f"{path}: is damaged, or a pickle that would run code when loaded")
    assert not marker.exists()


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_file_is_refused(fresh, tmp_path, suffix, keep):
    path = tmp_path / f"model{suffix}"
    save_weights(fresh(), path) if suffix == ".safetensors" else torch.save(fresh().params, path)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    message = refusal(load_weights, path)
    assert str(path) in message
    assert "truncated" in message


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_text_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_text("these are not the weights you are looking for")
    assert str(path) in refusal(load_weights, path)


def test_missing_file_and_unknown_suffix(tmp_path):
    assert "absent.pt: no such file" in refusal(load_weights, tmp_path / "absent.pt")
    (tmp_path / "model.npz").write_bytes(b"x")
    assert "weights must be a .safetensors, .pt or .pth file" in refusal(load_weights, tmp_path / "model.npz")


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"a": 1}, {"embed.W_E": [1.0]}, {3: torch.zeros(2)}])
def test_anything_but_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    assert "must hold a state dict of tensors" in refusal(load_weights, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blocks.0.mlp.W_in", (17, 24), (16, 24)),
        ("blocks.0.mlp.W_out", (24, 15), (24, 16)),
        ("blocks.0.attn.W_K", (2, 16, 9), (2, 16, 8)),
        ("blocks.0.attn.W_O", (2, 16, 8), (2, 8, 16)),
        ("pos_embed.W_pos", (3, 15), (3, 16)),
        ("unembed.W_U", (15, 11), (16, 11)),
    ],
)
def test_wrong_shape_is_named(fresh, name, shape, expected):
    message = refusal(from_state_dict, fresh().params | {name: torch.zeros(shape)}, "here")
    assert message == f"here: '{name}' has shape {shape}; expected {expected}"


@pytest.mark.parametrize("shape", [(), (16,), (1, 12, 16)])
@pytest.mark.parametrize(
    "name", ["embed.W_E", "pos_embed.W_pos", "unembed.W_U", "blocks.0.attn.W_Q", "blocks.0.mlp.W_in"]
)
def test_wrong_number_of_dimensions_is_refused(fresh, name, shape):
    if len(fresh().params[name].shape) == len(shape):
        shape = (*shape, 2)
    assert f"'{name}'" in refusal(from_state_dict, fresh().params | {name: torch.zeros(shape)}, "here")


def test_too_few_positions_are_refused(fresh):
    message = refusal(from_state_dict, fresh().params | {"pos_embed.W_pos": torch.zeros(2, 16)}, "here")
    assert message == "here: pos_embed.W_pos has 2 rows; layout abe has 3 input tokens"
    shortest, _ = from_state_dict(fresh("husai").params | {"pos_embed.W_pos": torch.zeros(5, 16)}, "here")
    assert shortest.logits(Task("add", 11)).shape == (121, 11)


def test_biases_of_a_wrong_shape_are_named(fresh):
    message = refusal(from_state_dict, fresh("husai").params | {"blocks.1.mlp.b_in": torch.zeros(23)}, "here")
    assert message == "here: 'blocks.1.mlp.b_in' has shape (23,); expected (24,)"


@pytest.mark.parametrize("name", ["embed.W_E", "unembed.W_U", "blocks.0.attn.W_V", "blocks.0.mlp.W_in"])
def test_missing_tensor_is_named(fresh, name):
    state = {key: value for key, value in fresh().params.items() if key != name}
    assert f"here: has no '{name}'" in refusal(from_state_dict, state, "here")


def test_another_layout_is_refused(fresh):
    one, two = fresh("abe").params, fresh("husai").params
    third = {name.replace("blocks.1", "blocks.2"): value for name, value in two.items() if "blocks.1" in name}
    assert "here: has 3 layers; layout husai has 2" in refusal(from_state_dict, two | third, "here")
    normed = one | {"ln_final.w": torch.ones(16), "ln_final.b": torch.zeros(16)}
    assert "here: has no 'blocks.1.attn.W_Q'" in refusal(from_state_dict, normed, "here")
    attention_only = {name: value for name, value in one.items() if "mlp" not in name}
    assert "here: has no 'blocks.0.mlp.W_in'" in refusal(from_state_dict, attention_only, "here")


@pytest.mark.parametrize(("layout", "rows", "p"), [("abe", 10, 9), ("abe", 4, 3), ("husai", 14, 10), ("abe", 1, 0)])
def test_vocabulary_without_a_prime_is_refused(fresh, layout, rows, p):
    message = refusal(from_state_dict, fresh(layout).params | {"embed.W_E": torch.zeros(rows, 16)}, "here")
    assert f"embed.W_E has {rows} rows, so p would be {p} in layout {layout}" in message


def test_too_few_logits_are_refused(fresh):
    message = refusal(from_state_dict, fresh().params | {"unembed.W_U": torch.zeros(16, 10)}, "here")
    assert "unembed.W_U has 10 columns; at least p = 11 are needed" in message


def test_safetensors_of_another_kind_is_refused(tmp_path):
    save_file({"W_dec": torch.zeros(4, 4)}, tmp_path / "sae.safetensors")
    assert "has no 'embed.W_E'; expected a TransformerLens state dict" in refusal(
        load_weights, tmp_path / "sae.safetensors"
    )
