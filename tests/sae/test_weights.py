import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from husai.config import (
    AbsTopKConfig,
    ArchetypalConfig,
    BatchTopKConfig,
    BlockTopKConfig,
    FrozenConfig,
    GatedConfig,
    ICAConfig,
    JumpReLUConfig,
    KMeansConfig,
    MatryoshkaConfig,
    NMFConfig,
    PCAConfig,
    ReLUConfig,
    SAEConfig,
    SAETrainingConfig,
    SkipSAEConfig,
    SkipTranscoderConfig,
    TopKConfig,
    TopKSkipSAEConfig,
    TopKSkipTranscoderConfig,
    TopKTranscoderConfig,
    TranscoderConfig,
)
from husai.errors import HusaiError
from husai.sae.architectures import ARCHITECTURES
from husai.sae.pairs import Pairs
from husai.sae.train import train_saes
from husai.sae.weights import load_sae, save_sae
from husai.seeding import generator

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)

D_IN, D_SAE = 8, 24
KINDS = {
    "topk unit": TopKConfig(d_sae=D_SAE, k=3),
    "topk weighted": TopKConfig(d_sae=D_SAE, k=3, decoder_norm="weighted"),
    "relu unit": ReLUConfig(d_sae=D_SAE, l1_coefficient=0.5),
    "relu weighted": ReLUConfig(d_sae=D_SAE, l1_coefficient=0.5, decoder_norm="weighted"),
    "batchtopk unit": BatchTopKConfig(d_sae=D_SAE, k=3),
    "batchtopk weighted": BatchTopKConfig(d_sae=D_SAE, k=3, decoder_norm="weighted"),
    "matryoshka unit": MatryoshkaConfig(d_sae=D_SAE, k=3),
    "matryoshka weighted": MatryoshkaConfig(d_sae=D_SAE, k=3, decoder_norm="weighted"),
    "abstopk unit": AbsTopKConfig(d_sae=D_SAE, k=3),
    "abstopk weighted": AbsTopKConfig(d_sae=D_SAE, k=3, decoder_norm="weighted"),
    "jumprelu unit": JumpReLUConfig(d_sae=D_SAE, initial_threshold=0.5),
    "jumprelu weighted": JumpReLUConfig(d_sae=D_SAE, initial_threshold=0.5, decoder_norm="weighted"),
    "gated unit": GatedConfig(d_sae=D_SAE),
    "gated weighted": GatedConfig(d_sae=D_SAE, decoder_norm="weighted"),
    "archetypal unit": ArchetypalConfig(d_sae=D_SAE, k=3),
    "archetypal weighted": ArchetypalConfig(d_sae=D_SAE, k=3, decoder_norm="weighted"),
    "frozen": FrozenConfig(d_sae=D_SAE, k=3),
    "pca": PCAConfig(d_sae=D_IN, k=3),
    "ica": ICAConfig(d_sae=6, k=3),
    "kmeans": KMeansConfig(d_sae=D_SAE),
    "blocktopk unit": BlockTopKConfig(d_sae=D_SAE, k=4, group_size=4),
    "blocktopk weighted": BlockTopKConfig(d_sae=D_SAE, k=4, group_size=4, decoder_norm="weighted"),
    "nmf": NMFConfig(d_sae=12),
    "nmf, k": NMFConfig(d_sae=12, k=3),
    "transcoder unit": TranscoderConfig(d_sae=D_SAE),
    "transcoder weighted": TranscoderConfig(d_sae=D_SAE, decoder_norm="weighted"),
    "skip_transcoder unit": SkipTranscoderConfig(d_sae=D_SAE),
    "skip_sae unit": SkipSAEConfig(d_sae=D_SAE),
    "topk_transcoder unit": TopKTranscoderConfig(d_sae=D_SAE, k=3),
    "topk_skip_transcoder weighted": TopKSkipTranscoderConfig(d_sae=D_SAE, k=3, decoder_norm="weighted"),
    "topk_skip_sae unit": TopKSkipSAEConfig(d_sae=D_SAE, k=3),
}
OURS = ("topk_", "blocktopk", "nmf")  # SAELens has none such
OPENED = {name: kind for name, kind in KINDS.items() if not name.startswith(OURS)}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module")
def x():
    """Raw activations: neither centred nor scaled."""
    return torch.randn(300, D_IN, generator=generator("test-weights")) * 4 + torch.arange(D_IN)


@pytest.fixture(scope="module")
def trained(x):
    """Ensembles of two seeds by config, each trained once."""
    ensembles = {}

    def ensemble_of(kind):
        if kind not in ensembles:
            training = SAETrainingConfig(steps=40, batch_size=64, lr=1e-2, warmup_steps=5)
            config = SAEConfig(sae=kind, training=training, init_seeds=(3, 4), data_seeds=(5, 6))
            given = Pairs(x, x[:, :-2].abs().sqrt()) if kind.paired else x
            ensembles[kind] = train_saes(given, config).ensemble
        return ensembles[kind]

    return ensemble_of


@pytest.fixture
def saved(trained, tmp_path) -> Path:
    """A folder of a TopK SAE to break."""
    save_sae(trained(KINDS["topk unit"]), 0, tmp_path / "sae", {"hook_name": "blocks.0.hook_resid_post"})
    return tmp_path / "sae"


def equal_outputs(ours, theirs, x, atol=1e-5):
    """Codes and reconstructions agree, and the codes are neither all zero nor all positive."""
    with torch.no_grad():
        codes = theirs.encode(x)
        assert 0.02 < (codes != 0).double().mean() < 0.98
        torch.testing.assert_close(ours.encode(x), codes, rtol=1e-5, atol=atol)
        torch.testing.assert_close(ours.decode(codes), theirs.decode(codes), rtol=1e-5, atol=atol)
        torch.testing.assert_close(ours.reconstruct(x), theirs(x), rtol=1e-5, atol=atol)


# --- our folders ---


@pytest.mark.parametrize("kind", OPENED.values(), ids=OPENED)
def test_sae_lens_opens_our_folder_and_computes_the_same(sae_lens, trained, x, tmp_path, kind):
    ensemble = trained(kind)
    for index in range(2):
        save_sae(ensemble, index, tmp_path / str(index), {})
        theirs = sae_lens.SAE.load_from_disk(tmp_path / str(index))
        equal_outputs(ensemble.member(index), theirs, x)
        names = {"relu": "standard", "skip_sae": "skip_transcoder", "pca": "abstopk", "ica": "abstopk"}
        names |= dict.fromkeys(("batchtopk", "matryoshka"), "jumprelu")
        names |= dict.fromkeys(("archetypal", "frozen", "kmeans"), "topk")
        assert theirs.cfg.architecture() == names.get(kind.architecture, kind.architecture)


@pytest.mark.parametrize("normalise", ["feature", "constant_norm", "none"])
@pytest.mark.parametrize("name", ["topk weighted", "relu unit"])
def test_folders_say_how_training_normalised_its_input(sae_lens, x, tmp_path, name, normalise):
    training = SAETrainingConfig(steps=40, batch_size=64, lr=1e-2, warmup_steps=5, normalise=normalise)
    ensemble = train_saes(x, SAEConfig(sae=KINDS[name], training=training)).ensemble
    save_sae(ensemble, 0, tmp_path, {})
    stated = json.loads((tmp_path / "cfg.json").read_text())["normalize_activations"]
    assert stated == ("constant_norm_rescale" if normalise == "constant_norm" else "none")
    ours, loaded = ensemble.member(0), load_sae(tmp_path)
    equal_outputs(ours, sae_lens.SAE.load_from_disk(tmp_path), x, atol=1e-4)
    codes = ours.encode(x)
    assert torch.equal(loaded.encode(x), codes)
    assert torch.equal(loaded.decode(codes), ours.decode(codes))
    zero = loaded.decode(loaded.encode(torch.zeros(1, D_IN)))
    assert bool(zero.isfinite().all())
    if normalise == "constant_norm":
        assert float(zero.norm()) < 1e-4


def test_the_folders_metadata_say_what_it_is(sae_lens, saved):
    metadata = sae_lens.SAE.load_from_disk(saved).cfg.metadata
    assert metadata.sae_lens_version == sae_lens.__version__
    assert metadata.hook_name == "blocks.0.hook_resid_post"
    assert (metadata.init_seed, metadata.data_seed) == (3, 5)


@each_kind
def test_our_folder_reads_back(trained, x, tmp_path, kind):
    member = trained(kind).member(1)
    save_sae(trained(kind), 1, tmp_path / "sae", {"model_name": "add-p113-0"})
    back = load_sae(tmp_path / "sae")
    assert (back.d_in, back.d_sae, back.d_out) == (D_IN, kind.d_sae, D_IN - 2 if kind.paired else D_IN)
    assert back.paired == kind.paired
    assert (back.W_dec - member.W_dec).abs().max() < 1e-6
    assert (back.encode(x) - member.encode(x)).abs().max() < 1e-6
    codes = member.encode(x)
    assert (back.decode(codes) - member.decode(codes)).abs().max() < 1e-6
    assert (back.reconstruct(x) - member.reconstruct(x)).abs().max() < 1e-6
    assert (back.skip is not None) == kind.skip
    assert back.meta["model_name"] == "add-p113-0"
    assert (back.meta["init_seed"], back.meta["data_seed"]) == (4, 6)
    dial, value = kind.sparsity
    assert back.meta[dial] == value
    assert back.signed_codes == member.signed_codes == bool((codes < 0).any())


def test_every_architecture_is_saved_here():
    assert {kind.architecture for kind in KINDS.values()} == set(ARCHITECTURES)


def test_a_matryoshka_folder_is_read_without_its_training_config_too(sae_lens, trained, x, tmp_path):
    save_sae(trained(KINDS["matryoshka weighted"]), 0, tmp_path / "sae", {})
    before = load_sae(tmp_path / "sae").encode(x)
    edit_config(tmp_path / "sae", metadata={})
    torch.testing.assert_close(load_sae(tmp_path / "sae").encode(x), before)


def test_thresholds_of_a_batchtopk_folder_count_one_by_one(sae_lens, trained, x, tmp_path):
    save_sae(trained(KINDS["batchtopk unit"]), 0, tmp_path / "sae", {})
    tensors = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    assert tensors["threshold"].shape == (D_SAE,)
    tensors["threshold"][::2] *= 2
    save_file(tensors, tmp_path / "sae" / "sae_weights.safetensors")
    equal_outputs(load_sae(tmp_path / "sae"), sae_lens.SAE.load_from_disk(tmp_path / "sae"), x)


# --- folders that SAELens wrote ---


def sae_lens_config(sae_lens, architecture: str, **settings):
    training, config = {
        "topk": (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig),
        "standard": (sae_lens.StandardTrainingSAE, sae_lens.StandardTrainingSAEConfig),
        "jumprelu": (sae_lens.JumpReLUTrainingSAE, sae_lens.JumpReLUTrainingSAEConfig),
        "batchtopk": (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig),
        "matryoshka": (sae_lens.MatryoshkaBatchTopKTrainingSAE, sae_lens.MatryoshkaBatchTopKTrainingSAEConfig),
        "gated": (sae_lens.GatedTrainingSAE, sae_lens.GatedTrainingSAEConfig),
        "abstopk": (sae_lens.AbsTopKTrainingSAE, sae_lens.AbsTopKTrainingSAEConfig),
    }[architecture]
    return training, config(d_in=D_IN, d_sae=D_SAE, **settings)


def randomise(module):
    """Give every parameter generic values; thresholds stay where they were put."""
    g = generator("test-foreign")
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "threshold" not in name:
                value.copy_(torch.randn(value.shape, generator=g) * (0.3 if value.dim() == 1 else 0.6))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("topk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
        ("topk", {"k": 4, "rescale_acts_by_decoder_norm": False}),
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("jumprelu", {"jumprelu_init_threshold": 0.5}),
        ("jumprelu", {"jumprelu_init_threshold": 0.5, "apply_b_dec_to_input": False}),
        ("batchtopk", {"k": 4}),
        ("matryoshka", {"k": 4, "matryoshka_widths": [6, 24]}),
        ("gated", {}),
        ("gated", {"apply_b_dec_to_input": False}),
        ("abstopk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
        ("abstopk", {"k": 4, "rescale_acts_by_decoder_norm": False}),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(f"{k}={v}" for k, v in value.items()),
)
def test_folders_saved_by_sae_lens_compute_the_same(monkeypatch, sae_lens, x, tmp_path, architecture, settings):
    kind, config = sae_lens_config(sae_lens, architecture, **settings)
    theirs = kind(config)
    randomise(theirs)
    theirs.save_inference_model(tmp_path / "sae")
    saved = sae_lens.SAE.load_from_disk(tmp_path / "sae")
    with monkeypatch.context() as patched:
        plain = settings.get("apply_b_dec_to_input", True) and not settings.get("rescale_acts_by_decoder_norm")
        if plain:  # read without SAELens
            patched.setattr("husai.sae.weights._through_sae_lens", None)
        equal_outputs(load_sae(tmp_path / "sae"), saved, x, atol=1e-4)
    assert load_sae(tmp_path / "sae").meta["architecture"] == saved.cfg.architecture()


@pytest.mark.parametrize("name", ["Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"])
def test_transcoders_saved_by_sae_lens_compute_the_same(monkeypatch, sae_lens, x, tmp_path, name):
    config = getattr(sae_lens, f"{name}Config")(d_in=D_IN, d_sae=D_SAE, d_out=5, apply_b_dec_to_input=False)
    theirs = getattr(sae_lens, name)(config)
    randomise(theirs)
    theirs.save_model(tmp_path / "sae")
    with monkeypatch.context() as patched:
        if "JumpReLU" not in name:  # read without SAELens
            patched.setattr("husai.sae.weights._through_sae_lens", None)
        ours = load_sae(tmp_path / "sae")
    equal_outputs(ours, theirs, x, atol=1e-4)
    assert (ours.d_in, ours.d_out, ours.paired) == (D_IN, 5, True)
    assert (ours.skip is not None) == ("Skip" in name)


def test_a_transcoder_folder_must_say_how_wide_its_target_is(trained, tmp_path):
    save_sae(trained(KINDS["transcoder unit"]), 0, tmp_path / "sae", {})
    for value, message in (
        (None, "key 'd_out' is missing"),
        (0, "'d_out' must be a whole number of at least 1, got 0"),
    ):
        edit_config(tmp_path / "sae", d_out=value)
        with pytest.raises(HusaiError, match=message):
            load_sae(tmp_path / "sae")
    edit_config(tmp_path / "sae", d_out=D_IN)
    with pytest.raises(HusaiError, match=r"W_dec has shape \(24, 6\); cfg.json says \(24, 8\)"):
        load_sae(tmp_path / "sae")


@pytest.mark.parametrize("norms", [True, False], ids=["rescaled", "plain"])
def test_an_unfolded_topk_folder_with_free_norms_computes_the_same(sae_lens, x, tmp_path, norms):
    theirs = sae_lens.TopKSAE(sae_lens.TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4, rescale_acts_by_decoder_norm=norms))
    randomise(theirs)
    assert theirs.W_dec.norm(dim=1).std() > 0.1
    theirs.save_model(tmp_path / "sae")
    ours = load_sae(tmp_path / "sae")
    equal_outputs(ours, theirs, x, atol=1e-4)
    torch.testing.assert_close(ours.atoms.norm(dim=1), torch.ones(D_SAE))


def test_more_rows_than_one_chunk_are_encoded_whole(saved, x):
    many = x.repeat(30, 1)  # 9,000 rows; chunks hold 8,192
    torch.testing.assert_close(load_sae(saved).encode(many), load_sae(saved).encode(x).repeat(30, 1))


# --- broken folders ---


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    for key, value in changes.items():
        if value is None:
            config.pop(key)
        else:
            config[key] = value
    (folder / "cfg.json").write_text(json.dumps(config))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(HusaiError) as caught:
        load_sae(folder)
    for word in (str(folder), *words):
        assert word in str(caught.value)


def test_missing_folder(tmp_path):
    refused(tmp_path / "nowhere", "is not a SAELens folder", "cfg.json")


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is not a SAELens folder")


def test_missing_weights(saved):
    (saved / "sae_weights.safetensors").unlink()
    refused(saved, "sae_weights.safetensors")


@pytest.mark.parametrize("keep", [0, 20, 0.5, 0.99])
def test_truncated_weights(saved, keep):
    weights = saved / "sae_weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refused(saved, "sae_weights.safetensors", "truncated")


def test_weights_of_another_shape(saved):
    weights = saved / "sae_weights.safetensors"
    save_file({**load_file(weights), "W_enc": torch.zeros(D_IN, D_SAE - 1)}, weights)
    refused(saved, "sae_weights.safetensors", "W_enc has shape (8, 23)", "(8, 24)")


def test_missing_tensor(saved):
    weights = saved / "sae_weights.safetensors"
    tensors = load_file(weights)
    del tensors["b_dec"]
    save_file(tensors, weights)
    refused(saved, "sae_weights.safetensors", "has no tensor 'b_dec'")


@pytest.mark.parametrize("text", ["", "{", "not json", "\x00"])
def test_broken_json(saved, text):
    (saved / "cfg.json").write_text(text)
    refused(saved, "cfg.json", "not valid JSON")


def test_json_that_is_not_a_mapping(saved):
    (saved / "cfg.json").write_text("[1, 2]")
    refused(saved, "cfg.json")


@pytest.mark.parametrize("key", ["architecture", "d_in", "d_sae"])
def test_missing_key(saved, key):
    edit_config(saved, **{key: None})
    refused(saved, "cfg.json", f"'{key}' is missing")


def test_topk_without_k(saved):
    edit_config(saved, k=None, metadata={})
    refused(saved, "cfg.json", "'k' is missing")


@pytest.mark.parametrize("changes", [{"d_in": "8"}, {"d_sae": 0}, {"k": 25}, {"k": "three"}, {"metadata": [1]}])
def test_a_wrong_value(saved, changes):
    edit_config(saved, **changes)
    refused(saved, "cfg.json", *changes)


def test_unknown_architecture(saved):
    edit_config(saved, architecture="nonsense")
    refused(saved, "nonsense")


def test_a_foreign_architecture_without_weights(sae_lens, tmp_path):
    kind, config = sae_lens_config(sae_lens, "jumprelu", apply_b_dec_to_input=False)  # read by SAELens
    kind(config).save_inference_model(tmp_path / "sae")
    (tmp_path / "sae" / "sae_weights.safetensors").unlink()
    refused(tmp_path / "sae", "SAELens cannot open it")


def test_k_of_the_config_file_decides_as_it_does_in_sae_lens(sae_lens, saved, x):
    edit_config(saved, k=5)
    equal_outputs(load_sae(saved), sae_lens.SAE.load_from_disk(saved), x)
    assert int((load_sae(saved).encode(x) > 0).sum(1).max()) == 5


def test_metadata_may_be_absent(saved, x):
    before = load_sae(saved).encode(x)
    edit_config(saved, metadata=None)
    assert torch.equal(load_sae(saved).encode(x), before)


def test_a_copied_folder_is_the_same_sae(saved, x, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    assert torch.equal(load_sae(tmp_path / "copy").encode(x), load_sae(saved).encode(x))


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(saved, name, value):
    tensors = load_file(saved / "sae_weights.safetensors")
    tensors[name].view(-1)[3] = value
    save_file(tensors, saved / "sae_weights.safetensors")
    with pytest.raises(HusaiError, match=f"{name} holds NaN or infinity"):
        load_sae(saved)
