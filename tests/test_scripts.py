import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from husai import pipeline, single
from husai.config import SAEConfig, TransformerConfig
from husai.errors import HusaiError
from husai.measure import Measurement, Row
from husai.runs import load_model
from husai.sae.dictionary import Dictionary
from husai.sae.health import ADVICE
from husai.seeding import generator
from husai.single import report
from husai.transformer.model import Transformer, init_params
from husai.transformer.weights import save_weights

SCRIPTS = Path(__file__).parents[1] / "scripts"
QUICK = {
    "sae": {"architecture": "topk", "d_sae": 32, "k": 8, "k_aux": 8, "dead_steps": 10},
    "training": {"steps": 150, "batch_size": 512, "lr": 3e-3, "resample_every": 20},
}


def run(script, *arguments, cwd):
    command = [sys.executable, SCRIPTS / script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def config():
    return SAEConfig.parse(QUICK)


def failed_stages(output):
    """Numbers of the stages that say FAILED."""
    blocks = output.split("[")[1:]
    return [int(block[0]) for block in blocks if "FAILED" in block]


def test_all_five_stages_pass_on_a_reference(config, capsys):
    assert pipeline.run_pipeline("add-p59-0", config, "resid_post") == 0
    output = capsys.readouterr().out
    assert "Tests passed: 5/5" in output
    assert "Tests failed: 0/5" in output


def test_stage_1_fails_alone_when_the_answers_are_scrambled(config, tmp_path, capsys):
    model = load_model("add-p59-0").model
    scrambled = {**model.params, "unembed.W_U": model.params["unembed.W_U"].roll(1, 1)}
    save_weights(replace(model, params=scrambled), tmp_path / "scrambled.safetensors")
    assert pipeline.run_pipeline(str(tmp_path / "scrambled.safetensors"), config, "resid_post") == 1
    assert failed_stages(capsys.readouterr().out) == [1]


def test_stage_2_fails_alone_when_activations_cannot_be_repeated(config, monkeypatch, capsys):
    real = pipeline.extract

    def unsteady(*arguments, batch=4096, **options):
        found = real(*arguments, **options)
        return found if batch == 4096 else replace(found, x=found.x + 1)

    monkeypatch.setattr(pipeline, "extract", unsteady)
    assert pipeline.run_pipeline("add-p59-0", config, "resid_post") == 1
    assert failed_stages(capsys.readouterr().out) == [2]


def test_stage_3_fails_alone_when_latents_die(config, capsys):
    dying = SAEConfig.parse(
        {**QUICK, "sae": {"architecture": "topk", "d_sae": 128, "k": 2, "k_aux": 2, "dead_steps": 10}}
    )
    assert pipeline.run_pipeline("add-p59-0", dying, "resid_post") == 1
    output = capsys.readouterr().out
    assert failed_stages(output) == [3]
    assert "of latents are dead" in output


def test_stage_4_fails_alone_at_a_hook_without_truth(config, monkeypatch, capsys):
    def nothing(activations):
        raise pipeline.HusaiError(f"hook {activations.hook}: no truth")

    monkeypatch.setattr(pipeline, "find_truth", nothing)
    assert pipeline.run_pipeline("add-p59-0", config, "resid_post") == 1
    assert failed_stages(capsys.readouterr().out) == [4]


def test_stage_5_fails_alone_when_the_saved_weights_differ(config, monkeypatch, capsys):
    real = pipeline.load_sae

    def altered(folder):
        loaded = real(folder)
        return replace(loaded, decode=lambda codes: loaded.decode(codes) * 1.001)

    monkeypatch.setattr(pipeline, "load_sae", altered)
    assert pipeline.run_pipeline("add-p59-0", config, "resid_post") == 1
    assert failed_stages(capsys.readouterr().out) == [5]


def test_the_pipeline_script_fails_on_random_weights(tmp_path):
    params = init_params(TransformerConfig(), 23, generator=generator("test", 1))
    save_weights(Transformer(params, "abe", 23), tmp_path / "random.safetensors")
    small = ["sae.d_sae=64", "training.steps=20", "training.batch_size=256"]
    done = run("test_sae_pipeline.py", "--transformer-checkpoint", "random.safetensors", *small, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert 1 in failed_stages(done.stdout)
    assert run("test_sae_pipeline.py", "--transformer-checkpoint", "nowhere", cwd=tmp_path).returncode == 2


def test_train_sae_reports_and_saves(tmp_path):
    flags = ["--transformer-checkpoint", "add-p59-0", "--hook", "resid_post", "--seed", 3, "--epochs", 5, "--no-wandb"]
    settings = ["--batch-size", 512, "--learning-rate", 0.002, "--save-dir", "run", "sae.d_sae=128"]
    done = run("train_sae.py", *flags, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / "report.md").read_text()
    for heading in (
        "Date:",
        "Architecture:",
        "Layer:",
        "Seed:",
        "Training Metrics",
        "Fourier Validation",
        "Observations",
        "Next Steps",
    ):
        assert heading in text
    assert "not converged" in text, "5 epochs are 34 steps"
    assert "Steps: 34" in text
    assert any(verdict in text for verdict in ("**GOOD**", "**MODERATE**", "**POOR**"))
    for null in ("ambient", "untrained", "data", "data_points"):
        assert null in text
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["l0"] == pytest.approx(32, abs=1)
    assert (tmp_path / "run" / "sae_weights.safetensors").is_file()
    history = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert {"loss", "l0", "explained_variance", "dead"} <= set(history[0].split(","))


def test_train_sae_takes_a_store_in_place_of_a_model(tmp_path):
    import torch

    (tmp_path / "shards").mkdir()
    for part in range(3):
        g = torch.Generator().manual_seed(part)
        torch.save(torch.randn(20, 30, 16, generator=g), tmp_path / "shards" / f"{part}.pt")
    flags = ["--shard-dir", "shards", "--no-wandb", "--batch-size", 100, "--epochs", 2, "--save-dir", "run"]
    settings = ["--checkpoint-interval", 10, "--deterministic", "sae.d_sae=32", "sae.k=4"]
    asked = run("train_sae.py", *flags, *settings, "--dry-run", cwd=tmp_path)
    assert "36 steps of" in asked.stdout, asked.stderr
    assert not (tmp_path / "run").exists()
    done = run("train_sae.py", *flags, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Trained on: shards (1800 rows in 3 shards)" in (tmp_path / "run" / "report.md").read_text()
    neither = run("train_sae.py", "--no-wandb", cwd=tmp_path)
    assert neither.returncode == 2
    assert "needs a MODEL, a store of activations (--shard-dir), or both" in neither.stderr


def test_train_sae_runs_without_wandb_and_says_so_once(tmp_path):
    flags = [
        "--transformer-checkpoint",
        "add-p59-0",
        "--epochs",
        1,
        "--batch-size",
        512,
        "--save-dir",
        "run",
        "--quiet",
    ]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, SCRIPTS / "train_sae.py", *map(str, flags), "sae.d_sae=64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("W&B is not set up") == 1
    assert done.stdout == ""


def test_train_transformer_and_its_other_name(tmp_path):
    tiny = ["task.p=11", "transformer.d_model=16", "transformer.n_heads=2", "transformer.d_mlp=32", "training.steps=10"]
    for script, folder in (("train_transformer.py", "a"), ("train_baseline.py", "b")):
        done = run(script, *tiny, "--attempts", 1, "--save-dir", folder, "--seed", 4, cwd=tmp_path)
        assert done.returncode == 1, "ten steps pass no gate"
        assert (tmp_path / folder / "transformer_best.safetensors").is_file()
    first, second = ((tmp_path / f / "metrics.json").read_text() for f in "ab")
    assert json.loads(first)["train_loss"] == json.loads(second)["train_loss"]


def test_sweep_and_figure_scripts_are_the_commands(tmp_path):
    assert "missing" in run("run_sweep.py", "default", "--dry-run", cwd=tmp_path).stdout
    assert run("make_figures.py", "nowhere", cwd=tmp_path).returncode == 2


def test_the_example_configs_are_those_of_the_documents():
    from husai.resources import find_config

    for name, d_sae in (("topk_8x", 1024), ("topk_16x", 2048), ("relu_8x", 1024), ("relu_16x", 2048)):
        assert SAEConfig.load(find_config(name, "examples")).sae.d_sae == d_sae
    assert SAEConfig.load(find_config("batchtopk_32x", "examples")).sae.d_sae == 4096
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("auxk", "resample", "advice"),
    [(0.0, None, "Switch AuxK on"), (1.0, None, "Resample dead latents"), (1.0, 50, "more often")],
)
def test_advice_against_dead_latents_names_what_is_left_to_try(auxk, resample, advice):
    sae, training = {**QUICK["sae"], "auxk_coefficient": auxk}, {**QUICK["training"], "resample_every": resample}
    config = SAEConfig.parse({"sae": sae, "training": training})
    metrics = {"l0": 8.0, "explained_variance": 0.9, "dead": 0.5, "converged": True}
    (missed,) = [check for check in report.checks(config, metrics) if check.verdict == "missed"]
    assert advice in ADVICE[missed.advice]


@pytest.mark.parametrize(
    ("points", "words"),
    [(0.9, ("**not beyond chance**", "no more than the")), (0.7, ("**beyond chance**", "which is more than"))],
)
def test_a_good_overlap_below_data_points_is_not_praised(points, words):
    levels = {"ambient": 0.05, "untrained": 0.1, "data": 0.7, "data_points": points}
    metrics = {"fourier_overlap": 0.8, **{f"fourier_overlap_{name}": level for name, level in levels.items()}}
    rows = [Row("fourier_overlap", "", 0.95), Row("fourier_overlap_unweighted", "", 0.8)]  # nulls know no weights
    text = report._overlap_lines(metrics, Measurement(rows))
    assert "**GOOD** by the bands" in text
    assert all(part in text for part in words)


def test_a_taken_folder_is_refused_before_anything_is_loaded(config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    request = single.Request("nowhere", "resid_post", None, -1, None, config, tmp_path, False, "cpu", True)
    with pytest.raises(HusaiError, match="exists and is not an empty folder"):
        single.train_single(request)


def test_the_troubleshooting_page_gives_the_advice_that_reports_print():
    page = (SCRIPTS.parent / "docs" / "troubleshooting.md").read_text()
    for advice in ADVICE.values():
        assert advice in page


@pytest.mark.parametrize(
    ("trained", "untrained", "message"), [(0.2, 0.1, "not above 0.3"), (0.4, 0.5, "not above the untrained")]
)
def test_the_overlap_stage_asks_for_more_than_a_band_and_more_than_chance(trained, untrained, message, monkeypatch):
    def fake(share):
        atoms = torch.tensor([[share**0.5, (1 - share) ** 0.5]])
        return Dictionary(atoms, lambda x: x[:, :1].abs() + 1, lambda codes: codes @ atoms)

    class Truth:
        union = torch.tensor([[1.0], [0.0]])

    class Ensemble:
        def member(self, _index):
            return fake(untrained)

    class Result:
        ensemble = type("E", (), {"member": lambda _self, _index: fake(trained)})()

    monkeypatch.setattr(pipeline, "find_truth", lambda _activations: Truth)
    activations = type("A", (), {"x": torch.randn(8, 2, generator=torch.Generator().manual_seed(0))})
    with pytest.raises(pipeline.StageFailed, match=message):
        pipeline.check_overlap(activations, pipeline.Trained(Result, Ensemble()))


def test_a_single_run_ends_where_it_has_converged(tmp_path, monkeypatch):
    training = {"steps": 160, "batch_size": 256, "stop": "converged"}
    config = SAEConfig.parse({"sae": {"architecture": "topk", "d_sae": 32, "k": 4, "k_aux": 4}, "training": training})
    looked = []

    def flat(curve, step):
        looked.append((step, sorted(curve)))
        return step == 40

    monkeypatch.setattr("husai.single.run.is_flat", flat)
    request = single.Request("add-p59-0", "resid_post", None, -1, None, config, tmp_path / "run", False, "cpu", True)
    metrics = single.train_single(request)
    assert looked == [(0, [0]), (10, [0, 10]), (20, [0, 10, 20]), (40, [0, 10, 20, 40])]
    assert metrics["steps"] == 40
    assert "fourier_overlap_untrained" in metrics
    text = (tmp_path / "run" / "report.md").read_text()
    assert "- Steps: 40" in text
    assert f"**{metrics['health']}**" in text
    assert json.loads((tmp_path / "run" / "cfg.json").read_text())["metadata"]["steps"] == 40


def test_shares_that_differ_by_rounding_are_equal():
    levels = {"ambient": 0.05, "untrained": 0.1, "data": 1.0, "data_points": 1.000000003}
    metrics = {"fourier_overlap": 1.0, **{f"fourier_overlap_{name}": level for name, level in levels.items()}}
    rows = [Row("fourier_overlap", "", 1.0), Row("fourier_overlap_unweighted", "", 1.00000005)]
    assert "**not beyond chance**" in report._overlap_lines(metrics, Measurement(rows))


def test_a_report_of_several_seeds_says_what_they_share(tmp_path):
    several = {**QUICK, "init_seeds": [0, 1, 2], "data_seeds": [0, 1, 2]}
    for name, given in (("three", several), ("one", QUICK)):
        config = SAEConfig.parse(given)
        request = single.Request("add-p59-0", "resid_post", None, -1, None, config, tmp_path / name, True, "cpu", True)
        single.train_single(request)
    text = (tmp_path / "three" / "report.md").read_text()
    assert "## Agreement\n\npwmcc 0." in text
    assert "data_points" in text[text.index("## Agreement") :]
    assert "One SAE cannot agree with itself" in (tmp_path / "one" / "report.md").read_text()
