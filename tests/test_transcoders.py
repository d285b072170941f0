"""Transcoders from activations to scores. A model's own MLP is one: its neurons are latents, W_out its dictionary."""

import json

import pytest
import torch
from safetensors.torch import save_file

import husai
from husai import single
from husai.analysis.recovery import decoder_overlap
from husai.cli import main
from husai.config import (
    AnalysisConfig,
    SAEConfig,
    SAETrainingConfig,
    SkipTranscoderConfig,
    TopKConfig,
    TranscoderConfig,
)
from husai.errors import HusaiError
from husai.measure import Hook, Members, measure
from husai.sae.dictionary import Dictionary, SAEEnsemble
from husai.sae.params import Params
from husai.sae.weights import load_sae, save_sae
from husai.shards import StoreWriter

pytestmark = pytest.mark.filterwarnings(
    "ignore:The 'utils' module has been deprecated:DeprecationWarning",  # sae_lens imports transformer_lens.utils
)

READS, WRITES = "blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out"
META = {"hook_name": READS, "hook_name_out": WRITES, "model_name": "add-p59-0"}


@pytest.fixture(scope="module")
def model():
    return husai.load_model("add-p59-0")


@pytest.fixture(scope="module")
def sides(model):
    return [husai.extract(model.model, model.task, hook) for hook in (READS, WRITES)]


@pytest.fixture(scope="module")
def own(model) -> SAEEnsemble:
    """The MLP of the model as a transcoder with unit decoder rows."""
    weights = {name.removeprefix("blocks.0.mlp."): value.float() for name, value in model.model.params.items()}
    W_in, W_out = weights["W_in"], weights["W_out"]
    zeros = torch.zeros(1, W_in.shape[1]), torch.zeros(1, W_out.shape[1])
    b_in, b_out = (weights.get(name, zero[0])[None] for name, zero in zip(("b_in", "b_out"), zeros, strict=True))
    norms = W_out.norm(dim=1)
    params = Params((W_in * norms)[None], b_in * norms, (W_out / norms[:, None])[None], b_out)
    return SAEEnsemble(params, TranscoderConfig(d_sae=len(norms)), (0,), (0,))


def test_the_models_own_mlp_explains_everything_and_can_stand_in_for_itself(model, own, sides, tmp_path):
    save_sae(own, 0, tmp_path / "mlp", META)
    loaded = load_sae(tmp_path / "mlp")
    assert (loaded.paired, loaded.d_in, loaded.d_out) == (True, 128, 128)
    found = husai.score(loaded, model)
    assert float(found["explained_variance"]) == pytest.approx(1, abs=1e-5)
    assert float(found["spliced_accuracy"]) == 1
    assert float(found["ce_recovered"]) == pytest.approx(1, abs=1e-3)
    assert float(found["l0"]) == pytest.approx(
        float((sides[0].x @ own.params.W_enc[0] > 0).sum(1).float().mean()), rel=0.05
    )
    truth = husai.find_truth(sides[1])
    assert float(found["decoder_overlap_unweighted"]) == pytest.approx(
        decoder_overlap(loaded.atoms[loaded.encode(sides[0].x).amax(0) > 0], truth), abs=1e-6
    )
    assert set(found["fourier_overlap"].nulls) == {"ambient", "data", "data_points"}
    assert float(husai.compute_fourier_overlap(loaded, model)) == pytest.approx(
        float(found["fourier_overlap"]), abs=1e-6
    )
    assert float(husai.compute_pwmcc(loaded, loaded, model)) == pytest.approx(1, abs=1e-5)


def test_it_is_measured_on_the_rows_that_belong_together(model, own, sides):
    """With inputs in another order the same transcoder explains nothing."""
    hook = Hook.of(sides[1], model.model)
    order = torch.randperm(len(hook.x), generator=torch.Generator().manual_seed(0))
    for source, low, high in ((sides[0].x, 0.999, 1.001), (sides[0].x[order], -5.0, 0.0)):
        where = Hook(hook.x, hook.truth, hook.shifts, hook.answers, hook.families, hook.task, source=source)
        found = measure(Members.of(own.dictionaries, where), where, AnalysisConfig(), final=False)
        assert low < found.value("explained_variance").mean < high


def test_hooks_that_are_not_the_transcoders_are_refused(model, own, tmp_path):
    save_sae(own, 0, tmp_path / "mlp", META)
    with pytest.raises(HusaiError, match=f"hook embed: the SAEs were trained on {WRITES}; compare them there"):
        husai.score(load_sae(tmp_path / "mlp"), model, "embed")
    save_sae(own, 0, tmp_path / "mute", {"hook_name_out": WRITES})
    with pytest.raises(HusaiError, match="does not say at which hook it reads; its metadata need a hook_name"):
        husai.score(load_sae(tmp_path / "mute"), model)
    save_sae(own, 0, tmp_path / "other", META | {"hook_name": "blocks.0.mlp.hook_post"})
    with pytest.raises(HusaiError, match=r"mlp.hook_post: has 512 dimensions, but the transcoder reads 128"):
        husai.score(load_sae(tmp_path / "other"), model)


def test_the_command_says_from_where_to_where_it_scores(own, tmp_path, capsys):
    save_sae(own, 0, tmp_path / "mlp", META)
    with pytest.raises(SystemExit, match="0"):
        main(["sae", "score", str(tmp_path / "mlp"), "--model", "add-p59-0"])
    assert f"transcoder, 512 latents, on add-p59-0 at {READS} to {WRITES}" in capsys.readouterr().out.replace("\n", " ")


def of_sparsify(folder, own):
    """The model's own MLP as sparsify saves a transcoder with all its latents active: it names no hook."""
    folder.mkdir()
    weights = {name: value[0].contiguous() for name, value in own.params.items()}
    tensors = {"encoder.weight": weights["W_enc"].T.contiguous(), "encoder.bias": weights["b_enc"]}
    save_file(tensors | {name: weights[name] for name in ("W_dec", "b_dec")}, folder / "sae.safetensors")
    n = len(weights["b_enc"])
    stated = {"activation": "topk", "k": n, "num_latents": n, "d_in": 128, "transcode": True}
    (folder / "cfg.json").write_text(json.dumps(stated))
    return folder


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, " ".join(printed.err.split())


def test_a_transcoder_that_names_no_hooks_is_told_them(model, own, tmp_path, capsys):
    mlp = of_sparsify(tmp_path / "mlp", own)
    found = husai.score(load_sae(mlp), model, "mlp_out", source_hook="resid_mid")
    assert float(found["explained_variance"]) == pytest.approx(1, abs=1e-5)
    code, out, _ = run(
        capsys, "sae", "score", mlp, "--model", "add-p59-0", "--hook", "mlp_out", "--source-hook", "resid_mid"
    )
    assert code == 0
    assert "at resid_mid to mlp_out" in out.replace("\n", " ")
    other = of_sparsify(tmp_path / "other", own)
    where = ("--model", "add-p59-0", "--hook", "mlp_out", "--source-hook", "resid_mid")
    code, out, _ = run(capsys, "compare", mlp, other, *where, "--draws", 1, "--json")
    assert code == 0
    assert json.loads(out)["mean_pwmcc"] == pytest.approx(1, abs=1e-5)
    with pytest.raises(HusaiError, match=r"at which hook it reads; .* or name it \(--source-hook\)"):
        husai.score(load_sae(mlp), model, "mlp_out")
    with pytest.raises(HusaiError, match="does not say which hook it reconstructs"):
        husai.score(load_sae(mlp), model, source_hook="resid_mid")
    save_sae(own, 0, tmp_path / "named", META)
    with pytest.raises(HusaiError, match=f"source hook embed: the transcoder reads {READS}"):
        husai.score(load_sae(tmp_path / "named"), model, source_hook="embed")
    plain = Dictionary(torch.eye(128), lambda x: x, lambda codes: codes)
    with pytest.raises(HusaiError, match="source hook embed: only transcoders have one"):
        husai.score(plain, model, "resid_post", source_hook="embed")


def test_a_transcoder_is_scored_on_stores_whose_rows_are_pairs(own, sides, tmp_path, capsys):
    mlp = of_sparsify(tmp_path / "mlp", own)
    into, out_of = store(tmp_path / "in", sides[0], READS), store(tmp_path / "out", sides[1], WRITES)
    pair = ("--shard-dir", into, "--target-shard-dir", out_of)
    code, out, _ = run(capsys, "sae", "score", mlp, *pair, "--json")
    assert code == 0
    assert json.loads(out)["explained_variance"]["value"] == pytest.approx(1, abs=1e-5)
    save_sae(own, 0, tmp_path / "named", META | {"hook_name_out": READS})
    fewer = store(tmp_path / "fewer", sides[1], WRITES, rows=600)
    for arguments, message in (
        ((mlp, "--shard-dir", into), "needs that of its targets (--target-shard-dir), or a model"),
        ((tmp_path / "named", *pair), f"reconstructs hook {READS}, but the activations are of hook {WRITES}"),
        ((mlp, "--shard-dir", into, "--target-shard-dir", fewer), "rows must be pairs, shard by shard"),
        ((mlp, "--model", "add-p59-0", "--target-shard-dir", out_of), "stands beside --shard-dir"),
        ((mlp, *pair, "--source-hook", "resid_mid"), "say how a model is read"),
    ):
        code, _, said = run(capsys, "sae", "score", *arguments)
        assert code == 2
        assert message in said


# --- husai sae train ---


def request(tmp_path, kind, **changes):
    training = SAETrainingConfig(steps=30, batch_size=256, warmup_steps=5)
    config = SAEConfig(sae=kind, training=training, init_seeds=(0, 1), data_seeds=(0, 1))
    fields = {"model": "add-p59-0", "hook": None, "layer": None, "position": -1, "op": None, "config": config}
    fields |= {"out": tmp_path / "run", "allow_unverified": False, "device": "cpu", "quiet": True}
    return single.Request(**(fields | changes))


def test_a_transcoder_is_trained_by_default_from_what_the_mlp_reads_to_what_it_writes(tmp_path, model, sides):
    import sae_lens

    kind = SkipTranscoderConfig(d_sae=64, l1_coefficient=0.3, l1_warmup_steps=5)
    metrics = single.train_single(request(tmp_path, kind))
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"Layer: {READS} to {WRITES}" in report
    assert "The skip connection alone explains" in report
    for name in ("pwmcc", "pwmcc_data_points", "pwmcc_untrained", "fourier_overlap_untrained", "explained_by_skip"):
        assert name in metrics
    folder = tmp_path / "run" / "seed-1-1"
    stated = json.loads((folder / "cfg.json").read_text())
    assert {key: stated["metadata"][key] for key in META} == META
    assert (stated["architecture"], stated["d_out"], stated["apply_b_dec_to_input"]) == ("skip_transcoder", 128, False)
    theirs, ours = sae_lens.SAE.load_from_disk(folder), load_sae(folder)
    assert theirs.cfg.metadata.hook_name_out == WRITES
    with torch.no_grad():
        torch.testing.assert_close(theirs(sides[0].x), ours.reconstruct(sides[0].x), rtol=1e-4, atol=1e-4)
    scored = husai.score(ours, model)
    rest = (ours.reconstruct(sides[0].x) - sides[1].x).pow(2).sum() / (sides[1].x - sides[1].x.mean(0)).pow(2).sum()
    assert float(scored["explained_variance"]) == pytest.approx(1 - float(rest), abs=1e-4)


def store(folder, activations, hook, rows=700):
    with StoreWriter(folder, {"model_name": "add-p59-0", "hook_name": hook}, rows_per_shard=rows) as writer:
        writer.append(activations.x)
    return folder


def test_stores_of_inputs_and_targets_are_streamed_with_and_without_their_model(tmp_path, sides):
    stores = {
        "shard_dir": store(tmp_path / "in", sides[0], READS),
        "target_shard_dir": store(tmp_path / "out", sides[1], WRITES),
    }
    kind = TranscoderConfig(d_sae=64, l1_coefficient=0.3, l1_warmup_steps=5)
    alone = single.train_single(request(tmp_path, kind, **stores, model=None, out=tmp_path / "alone"))
    assert "fourier_overlap" not in alone
    both = single.train_single(request(tmp_path, kind, **stores))
    assert both["explained_variance"] == pytest.approx(alone["explained_variance"], abs=0.02)
    assert "fourier_overlap" in both
    report = (tmp_path / "run" / "report.md").read_text()
    assert f"Trained on: {tmp_path / 'in'} (3481 rows in 5 shards)" in report
    assert single.estimate_single(request(tmp_path, kind, **stores)).seeds == 2


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            TopKConfig(),
            {"target_hook": "mlp_out"},
            "topk: reconstructs its input; leave out the target, or train a transcoder",
        ),
        (TopKConfig(), {"target_shard_dir": "s"}, "topk: reconstructs its input"),
        (
            TranscoderConfig(),
            {"shard_dir": "s"},
            r"needs stores of inputs and of targets \(--shard-dir, --target-shard-dir\)",
        ),
        (TranscoderConfig(), {"target_shard_dir": "s"}, "transcoder: needs stores of inputs and of targets"),
        (TranscoderConfig(), {"target_hook": "mlp"}, "hook: 'mlp' does not exist in this model"),
        (
            TranscoderConfig(),
            {"model": "gru-p101-0"},
            "has no MLP whose input and output are pairs; name hook and target",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused_in_a_sentence(tmp_path, kind, changes, message):
    with pytest.raises(HusaiError, match=message):
        single.train_single(request(tmp_path, kind, **changes))
