import json
import math
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from husai.errors import HusaiError
from husai.sae.formats import sae_folders
from husai.sae.weights import load_sae
from husai.seeding import generator

# Four latents that read ±x1 and ±x2 (each counted from b_dec = (1, 2)) and write along the axes, the last twice as far.
READS = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
WRITES = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -2]])
BIAS, OFFSET = torch.tensor([0.0, 0.5, -0.5, 0]), torch.tensor([1.0, 2.0])
X = torch.tensor([[4.0, 4.0], [0.0, -1.0]])
SCORES = torch.tensor([[3.0, -2.5, 1.5, -2], [-1, 1.5, -3.5, 3]])  # (x − offset)·reads + bias
UNCENTRED = torch.tensor([[4.0, -3.5, 3.5, -4], [0, 0.5, -1.5, 1]])  # x·reads + bias


def sparsify(folder: Path, config: dict | None = None, **tensors: torch.Tensor | None) -> Path:
    """A folder as SparseCoder.save_to_disk writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = {"encoder.weight": READS, "encoder.bias": BIAS, "W_dec": WRITES, "b_dec": OFFSET, **tensors}
    save_file({name: value for name, value in saved.items() if value is not None}, folder / "sae.safetensors")
    stated = {
        "activation": "topk",
        "expansion_factor": 2,
        "normalize_decoder": True,
        "num_latents": 0,
        "k": 1,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": 2,
        **(config or {}),
    }
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))
    return folder


def dictionary_learning(folder: Path, kind: str, state: dict, **trainer: object) -> Path:
    """A folder as trainSAE writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(OrderedDict(state), folder / "ae.pt")
    stated = {"dict_class": kind, "activation_dim": 2, "dict_size": 4, "lm_name": "EleutherAI/pythia-70m", "layer": 3}
    (folder / "config.json").write_text(json.dumps({"trainer": stated | trainer, "buffer": {"d_submodule": 2}}))
    return folder


LINEAR = {"encoder.weight": READS, "encoder.bias": BIAS, "decoder.weight": WRITES.T.contiguous()}
MATRICES = {"W_enc": READS.T.contiguous(), "b_enc": BIAS, "W_dec": WRITES, "b_dec": OFFSET}
SELECTING = {"k": torch.tensor(2, dtype=torch.int), "threshold": torch.tensor(2.0)}
CODES = {
    "AutoEncoder": [[3, 0, 1.5, 0], [0, 1.5, 0, 6]],  # in units of unit decoder rows
    "AutoEncoderNew": [[4, 0, 3.5, 0], [0, 0.5, 0, 1]],
    "AutoEncoderTopK": [[3, 0, 1.5, 0], [0, 1.5, 0, 3]],
    "BatchTopKSAE": [[3, 0, 0, 0], [0, 0, 0, 3]],
    "MatryoshkaBatchTopKSAE": [[3, 0, 0, 0], [0, 0, 0, 3]],
    "JumpReluAutoEncoder": [[4, 0, 0, 0], [0, 0, 0, 1]],
    # scores without bias are 3, −3, 2, −2 and −1, 1, −3, 3; gates let pass what exceeds 2.5; sizes are 2·score + 1
    "GatedAutoEncoder": [[7, 0, 0, 0], [0, 0, 0, 7]],
}
STATES = {
    "AutoEncoder": {**LINEAR, "bias": OFFSET},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": OFFSET},
    "AutoEncoderTopK": {**LINEAR, "b_dec": OFFSET, **SELECTING},
    "BatchTopKSAE": {**LINEAR, "b_dec": OFFSET, **SELECTING},
    "MatryoshkaBatchTopKSAE": {**MATRICES, **SELECTING, "group_sizes": torch.tensor([1, 3])},
    "JumpReluAutoEncoder": {**MATRICES, "threshold": torch.tensor([3.5, 1, 3.5, 0.5])},
    "GatedAutoEncoder": {
        "encoder.weight": READS,
        "decoder.weight": WRITES.T.contiguous(),
        "decoder_bias": OFFSET,
        "r_mag": torch.full((4,), math.log(2)),
        "gate_bias": torch.full((4,), -2.5),
        "mag_bias": torch.ones(4),
    },
}


def close(found: torch.Tensor, expected) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32))


# --- sparsify ---


@pytest.mark.parametrize(
    ("config", "codes"),
    [
        ({"k": 1}, [[3, 0, 0, 0], [0, 0, 0, 3]]),
        ({"k": 2}, [[3, 0, 1.5, 0], [0, 1.5, 0, 3]]),
        ({"k": 2, "multi_topk": True, "normalize_decoder": False}, [[3, 0, 1.5, 0], [0, 1.5, 0, 3]]),
        ({"k": 2, "num_latents": 4, "expansion_factor": 32}, [[3, 0, 1.5, 0], [0, 1.5, 0, 3]]),
        ({"k": 2, "activation": None}, [[3, 0, 1.5, 0], [0, 1.5, 0, 3]]),  # as older versions wrote it
        ({"k": 2, "activation": "groupmax"}, [[3, 0, 1.5, 0], [0, 1.5, 0, 3]]),  # of 1, 2 and of 3, 4
        ({"k": 1, "activation": "groupmax"}, [[3, 0, 0, 0], [0, 0, 0, 3]]),
        ({"k": 4, "activation": "groupmax"}, [[3, 0, 1.5, 0], [0, 1.5, 0, 3]]),  # ReLU
    ],
)
def test_codes_of_sparsify_by_hand(tmp_path, config, codes):
    sae = load_sae(sparsify(tmp_path / "sae", config))
    close(sae.encode(X), codes)
    close(sae.decode(torch.tensor([[1.0, 0, 0, 3]])), [[2, -4]])  # (1, 0) + 3·(0, −2) + (1, 2)
    assert (sae.d_in, sae.d_out, sae.d_sae, sae.paired, sae.skip) == (2, 2, 4, False, None)
    assert sae.meta["format"] == "sparsify"
    close(sae.W_dec, WRITES)
    assert sae.W_enc is not None
    close(sae.W_enc, READS)


def test_a_transcoder_sees_x_itself_and_a_skip_connection_adds_to_what_it_makes(tmp_path):
    W_skip = torch.tensor([[0.0, 10], [100, 0]])
    sae = load_sae(sparsify(tmp_path / "sae", {"transcode": True, "skip_connection": True, "k": 1}, W_skip=W_skip))
    assert sae.paired
    close(sae.encode(X), [[4, 0, 0, 0], [0, 0, 0, 1]])
    close(sae.decode(sae.encode(X)), [[5, 2], [1, 0]])
    close(sae.reconstruct(X), [[5 + 40, 2 + 400], [1 - 10, 0 + 0]])
    plain = load_sae(sparsify(tmp_path / "plain", {"skip_connection": True, "k": 1}, W_skip=W_skip))
    assert not plain.paired
    close(plain.encode(X), [[3, 0, 0, 0], [0, 0, 0, 3]])


def test_weights_in_half_precision_are_computed_with_in_float32(tmp_path):
    halves = {"encoder.weight": READS.bfloat16(), "W_dec": WRITES.bfloat16()}
    sae = load_sae(sparsify(tmp_path / "sae", {"k": 1}, **halves))
    close(sae.encode(X), [[3, 0, 0, 0], [0, 0, 0, 3]])
    assert sae.W_dec.dtype == torch.float32


# --- dictionary_learning ---


@pytest.mark.parametrize("kind", STATES)
def test_codes_of_dictionary_learning_by_hand(tmp_path, kind):
    k = {"k": 2} if "k" in STATES[kind] else {}
    sae = load_sae(dictionary_learning(tmp_path / "sae", kind, STATES[kind], **k))
    close(sae.encode(X), CODES[kind])
    folded = torch.nn.functional.normalize(WRITES, dim=1) if kind == "AutoEncoder" else WRITES
    close(sae.W_dec, folded)
    close(sae.decode(torch.tensor([[1.0, 0, 0, 3]])), [[2, 2 + 3 * folded[3, 1]]])
    close(sae.decode(sae.encode(X))[0], OFFSET + torch.tensor(CODES[kind][0], dtype=torch.float32) @ folded)
    assert (sae.d_in, sae.d_sae, sae.paired) == (2, 4, False)
    told = {"format": "dictionary_learning", "dict_class": kind, "model_name": "EleutherAI/pythia-70m", "layer": 3}
    assert told.items() <= sae.meta.items()
    assert sae.W_enc is not None
    close(torch.nn.functional.normalize(sae.W_enc, dim=1), READS)


def test_a_threshold_that_was_never_set_lets_all_positive_codes_pass(tmp_path):
    state = {**STATES["BatchTopKSAE"], "threshold": torch.tensor(-1.0)}
    sae = load_sae(dictionary_learning(tmp_path / "sae", "BatchTopKSAE", state, k=2))
    close(sae.encode(X), SCORES.relu())


def test_an_auto_encoder_with_a_dead_atom_keeps_it_dead(tmp_path):
    dead = torch.cat([WRITES[:3], torch.zeros(1, 2)]).T.contiguous()
    sae = load_sae(
        dictionary_learning(tmp_path / "sae", "AutoEncoder", {**STATES["AutoEncoder"], "decoder.weight": dead})
    )
    assert float(sae.W_dec[3].norm()) == 0
    assert bool(sae.encode(X).isfinite().all())


# --- folders ---


def test_folders_of_all_formats_are_found_and_those_inside_a_run_in_order(tmp_path):
    for name in ("trainer_10", "trainer_2"):
        dictionary_learning(tmp_path / "run" / name, "AutoEncoder", STATES["AutoEncoder"])
    (tmp_path / "run" / "checkpoints").mkdir()
    single = sparsify(tmp_path / "single")
    assert sae_folders([single, tmp_path / "run"]) == [
        single,
        tmp_path / "run" / "trainer_2",
        tmp_path / "run" / "trainer_10",
    ]
    with pytest.raises(HusaiError, match="is named twice"):
        sae_folders([single, tmp_path / "run" / ".." / "single"])


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(HusaiError) as caught:
        load_sae(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_says_what_it_holds_and_what_is_allowed(tmp_path):
    every = ("SAELens folder (cfg.json, sae_weights.safetensors)", "sparsify folder (cfg.json, sae.safetensors)")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", *every, "dictionary_learning folder (config.json, ae.pt)", "it is empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_text("")
    (tmp_path / "other" / "config.json").write_text("{}")
    refused(tmp_path / "other", *every, "it holds config.json, model.safetensors")


def test_weights_of_two_formats_in_one_folder_are_refused(tmp_path):
    folder = sparsify(tmp_path / "sae")
    (folder / "ae.pt").write_bytes(b"")
    refused(folder, "sae.safetensors (sparsify) and ae.pt (dictionary_learning)")


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        ({"k": None}, {}, ("cfg.json", "'k' is missing")),
        ({"k": 0}, {}, ("'k' must be a whole number of at least 1, got 0",)),
        ({"k": 5}, {}, ("'k' is 5 of 4 latents",)),
        ({"k": 3, "activation": "groupmax"}, {}, ("'k' is 3 of 4 latents", "divide")),
        ({"d_in": "2"}, {}, ("'d_in' must be a whole number", "'2'")),
        ({"activation": "relu"}, {}, ("'relu'", "topk and groupmax")),
        ({"signed": True}, {}, ("signed TopK", "topk and groupmax")),
        ({"expansion_factor": 3}, {}, ("sae.safetensors", "encoder.weight has shape (4, 2)", "(6, 2)")),
        ({"skip_connection": True}, {}, ("has no tensor 'W_skip'",)),
        ({}, {"W_dec": None}, ("has no tensor 'W_dec'", "it holds")),
        ({}, {"b_dec": torch.zeros(3)}, ("b_dec has shape (3,)", "(2,)")),
        ({}, {"W_dec": torch.full((4, 2), torch.nan)}, ("W_dec holds NaN",)),
        ({}, {"encoder.bias": torch.full((4,), torch.inf)}, ("encoder.bias holds NaN or infinity",)),
    ],
)
def test_broken_folders_of_sparsify(tmp_path, config, tensors, words):
    said = [word.replace("it holds", "holds") for word in words]
    refused(sparsify(tmp_path / "sae", config, **tensors), *said)


@pytest.mark.parametrize(
    ("kind", "changes", "trainer", "words"),
    [
        ("IdentityDict", {}, {}, ("'IdentityDict'", "AutoEncoderTopK", "GatedAutoEncoder")),
        ("AutoEncoderTopK", {}, {"k": 3}, ("'k' is 3, but 2 in ae.pt",)),
        ("AutoEncoder", {}, {"dict_size": 5}, ("says 5 latents of 2 dimensions", "holds 4 of 2")),
        ("AutoEncoder", {"bias": None}, {}, ("has no tensor 'bias'",)),
        ("AutoEncoder", {"decoder.weight": WRITES}, {}, ("decoder.weight has shape (4, 2)", "(2, 4)")),
        ("AutoEncoder", {"encoder.weight": torch.zeros(4)}, {}, ("ae.pt holds 0 of 0",)),
        ("JumpReluAutoEncoder", {"threshold": torch.zeros(3)}, {}, ("threshold has shape (3,)", "(4,)")),
        ("GatedAutoEncoder", {"r_mag": torch.full((4,), torch.nan)}, {}, ("r_mag holds NaN",)),
    ],
)
def test_broken_folders_of_dictionary_learning(tmp_path, kind, changes, trainer, words):
    state = {**STATES.get(kind, STATES["AutoEncoder"]), **changes}
    state = {name: value for name, value in state.items() if value is not None}
    refused(dictionary_learning(tmp_path / "sae", kind, state, **trainer), *words)


@pytest.mark.parametrize("weights", ["sae.safetensors", "ae.pt"])
def test_truncated_and_missing_weights_and_configs(tmp_path, weights):
    if weights == "ae.pt":
        folder, config = dictionary_learning(tmp_path / "sae", "AutoEncoder", STATES["AutoEncoder"]), "config.json"
    else:
        folder, config = sparsify(tmp_path / "sae"), "cfg.json"
    whole = (folder / weights).read_bytes()
    for size in (0, 20, len(whole) // 2, len(whole) - 40):
        (folder / weights).write_bytes(whole[:size])
        refused(folder, weights)
    (folder / weights).unlink()
    refused(folder, f"has no {weights}")
    (folder / weights).write_bytes(whole)
    (folder / config).write_text("{")
    refused(folder, config, "not valid JSON")
    (folder / config).write_text("[1]")
    refused(folder, config, "must be a mapping")
    (folder / config).unlink()
    refused(folder, f"has no {config}")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_no_pickled_code_is_run(tmp_path):
    folder = dictionary_learning(tmp_path / "sae", "AutoEncoder", STATES["AutoEncoder"])
    torch.save({**STATES["AutoEncoder"], "bias": Bomb(tmp_path / "boom")}, folder / "ae.pt")
    refused(folder, "ae.pt", "would run code")
    assert not (tmp_path / "boom").exists()


# --- against the libraries themselves, where they are installed ---


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
@pytest.mark.parametrize("transcode", [False, True])
def test_sparsify_computes_the_same(tmp_path, activation, transcode):
    library = pytest.importorskip("sparsify")
    g = generator("test-foreign")
    config = library.SparseCoderConfig(
        activation=activation, num_latents=24, k=4, transcode=transcode, skip_connection=True
    )
    coder = library.SparseCoder(8, config)
    with torch.no_grad():
        for value in coder.parameters():
            value.copy_(torch.randn(value.shape, generator=g) * 0.5)
        coder.save_to_disk(tmp_path / "sae")
        x = torch.randn(50, 8, generator=g) * 2 + 1
        found, ours = coder.encode(x), load_sae(tmp_path / "sae")
        codes = torch.zeros(50, 24).scatter(1, found.top_indices, found.top_acts)
        torch.testing.assert_close(ours.encode(x), codes)
        torch.testing.assert_close(ours.reconstruct(x), coder(x).sae_out)


@pytest.mark.parametrize("kind", ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"])
def test_dictionary_learning_computes_the_same(tmp_path, kind):
    library = pytest.importorskip("dictionary_learning.dictionary")
    g = generator("test-foreign")
    made = getattr(library, kind)(8, 24)
    with torch.no_grad():
        for value in made.parameters():
            value.copy_(torch.randn(value.shape, generator=g) * 0.5)
        sizes = {"dict_size": 24, "activation_dim": 8}
        folder = dictionary_learning(tmp_path / "sae", kind, made.state_dict(), **sizes)
        x = torch.randn(50, 8, generator=g) * 2 + 1
        theirs, ours = type(made).from_pretrained(folder / "ae.pt"), load_sae(folder)
        torch.testing.assert_close(ours.encode(x), theirs.encode(x))
        torch.testing.assert_close(ours.reconstruct(x), theirs.decode(theirs.encode(x)))
