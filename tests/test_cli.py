import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from husai.config import SAEConfig
from husai.resources import reference_dir

HUSAI = [sys.executable, "-m", "husai.cli"]
TINY = ["task.p=11", "transformer.d_model=16", "transformer.n_heads=2", "transformer.d_mlp=32", "training.steps=20"]


def husai(*arguments, cwd, timeout=300):
    return subprocess.run([*HUSAI, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=timeout)


def sentence(done, code=2):
    """The one line a failing command prints; no traceback."""
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr


def test_help_and_version(tmp_path):
    assert "smoke" in husai("--help", cwd=tmp_path).stdout
    assert husai("--version", cwd=tmp_path).stdout.startswith("husai ")


def test_verify_passes_a_reference_from_any_folder_and_prints_json(tmp_path):
    done = husai("model", "verify", "add-p59-0", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 0
    wanted = "accuracy key_frequencies key_share fve base_loss restricted_loss excluded_loss neuron_purity variant"
    assert {*wanted.split(), "passed", "failed_conditions"} <= set(report)
    assert report["passed"]
    assert report["failed_conditions"] == []


def test_verify_exits_1_when_the_gate_fails_and_names_the_condition(tmp_path):
    from husai.config import TransformerConfig
    from husai.seeding import generator
    from husai.transformer.model import Transformer, init_params
    from husai.transformer.weights import save_weights

    params = init_params(TransformerConfig(), 13, generator=generator("test", 0))
    save_weights(Transformer(params, "abe", 13), tmp_path / "random.safetensors")
    done = husai("model", "verify", "random.safetensors", cwd=tmp_path)
    assert done.returncode == 1
    assert "FAILED  accuracy" in done.stdout
    assert "misses by" in done.stdout


def test_compile_writes_a_run_folder_that_verify_takes(tmp_path):
    made = husai(
        "model", "compile", "pizza", "--op", "sub", "--p", 29, "--keys", "8,9,12", "--out", "run", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    assert "variant pizza, with fve 1; the plain fve is 0.666667" in made.stdout
    assert "Run folder: run" in made.stdout
    again = husai("model", "verify", "run", "--json", cwd=tmp_path)
    report = json.loads(again.stdout)
    assert again.returncode == 0
    assert (report["op"], report["variant"], report["key_frequencies"]) == ("sub", "pizza", [8, 9, 12])
    assert report["fve"] == pytest.approx(2 / 3, abs=1e-6)
    plain = husai("model", "verify", "run", "--variant", "plain", cwd=tmp_path)
    assert plain.returncode == 1
    assert "FAILED  fve 0.666667" in plain.stdout
    described = json.loads(husai("activations", "extract", "run", "--hook", "attn_out", "--json", cwd=tmp_path).stdout)
    assert {subspace["label"] for subspace in described["subspaces"]} == {"a/b k=8", "a/b k=9", "a/b k=12"}
    noisy = ["--p", 29, "--keys", "8,9,12", "--noise", 3, "--no-rotate", "--seed", 1, "--out", "noisy"]
    failed = husai("model", "compile", "clock", *noisy, cwd=tmp_path)
    assert failed.returncode == 1
    assert "FAILED  accuracy" in failed.stdout


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_bad_checkpoints_end_in_one_sentence_and_run_no_code(tmp_path):
    assert "no such file" in sentence(husai("model", "verify", "nowhere.safetensors", cwd=tmp_path))
    torch.save({"embed.W_E": Bomb(tmp_path / "boom")}, tmp_path / "bomb.pt")
    assert "would run code" in sentence(husai("model", "verify", "bomb.pt", cwd=tmp_path))
    assert not (tmp_path / "boom").exists()
    whole = (reference_dir() / "add-p59-0" / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in sentence(husai("model", "verify", "cut.safetensors", cwd=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "train", "task.p=12"], "p: 12 is not allowed"),
        (["model", "train", "task.p=3"], "p: 3 is not allowed"),
        (["model", "train", "task.op=pow"], "op: 'pow' is unknown"),
        (["model", "train", "training.stepz=5"], "unknown key 'training.stepz'"),
        (["model", "train", "--config", "nonsense"], "no shipped config of that name"),
        (["model", "compile", "clock", "--keys", "14,99"], "keys: 99 is not a frequency of Z_113"),
        (["model", "compile", "clock", "--keys", "14;35"], "model compile: 'keys.0': must be a valid integer"),
        (["model", "compile", "pizza", "--op", "mul", "--keys", "3,5"], "op: a pizza cannot compute mul"),
        (["activations", "extract", "add-p59-0", "--hook", "resid_pots"], "hook: 'resid_pots' does not exist"),
        (["activations", "extract", "add-p59-0", "--layer", "7"], "layer: 7 does not exist"),
        (["sae", "train", "add-p59-0", "sae.k=2000", "sae.d_sae=64"], "k 2000 exceeds d_sae 64"),
        (["sae", "train", "add-p59-0", "sae.architecture=magic"], "sae"),
        (
            ["sae", "train", "add-p59-0", "--architecture", "magic"],
            "architecture 'magic': must be one of topk, relu, batch",
        ),
        (["sae", "train", "add-p59-0", "--device", "cuda:99"], "--device cuda:99: not available"),
        (["activations", "extract", "add-p59-0", "--out", "a.txt"], "a.txt: activations are written as .safetensors"),
        (["sae", "train", "sae.k=4", "--shard-dir", "nowhere"], "nowhere: no such folder of activations"),
        (["sae", "train"], "needs a MODEL, a store of activations (--shard-dir), or both"),
        (["sae", "train", "add-p59-0", "--resume-from", "nowhere"], "nowhere: holds no checkpoint"),
        (
            ["sae", "train", "add-p59-0", "--dtype", "bf16", "--lower-dtype", "fp16"],
            "bf16/fp16 is not supported; allowed are fp32/fp32, fp32/bf16, fp32/fp16, fp16/fp16, bf16/bf16",
        ),
        (["sae", "train", "add-p59-0", "--lower-dtype", "fp16"], "fp32/fp16 needs scaled gradients"),
        (["sae", "train", "add-p59-0", "--sparsity-coeff", "5000"], "sparsity coefficient 5000: "),
        (["sae", "train", "add-p59-0", "--log-every", "0", "training.stop=hopeless"], "which log_every 0 leaves out"),
        (["activations", "verify", "nowhere"], "nowhere: no such folder of activations"),
        (
            ["activations", "capture", "--model", "add-p59-0", "--hook", "resid_pots", "--out", "s"],
            "hook: 'resid_pots' does not exist",
        ),
        (["sweep", "nonsense"], "no shipped config of that name"),
        (["report", "nowhere"], "is not a suite's results folder"),
    ],
)
def test_bad_input_is_one_sentence_with_exit_code_2(arguments, message, tmp_path):
    done = husai(*arguments, cwd=tmp_path)
    assert message in sentence(done)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing half-written remains"


def test_training_writes_a_run_folder_that_other_commands_take(tmp_path):
    done = husai(
        "model", "train", *TINY, "training.checkpoint_epochs=10", "--attempts", 2, "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 1, "a model trained for 20 steps passes no gate"
    assert "no attempt of 2 passed" in done.stderr
    assert done.stdout.count("the gate failed: accuracy") == 2
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "transformer_best.safetensors",
        "transformer_final.safetensors",
        "transformer_epoch_10.safetensors",
    } <= files
    assert {"config.yaml", "gate.json", "metrics.json", "history.csv", "provenance.json", "DONE"} <= files
    again = husai("model", "train", *TINY, "--out", "run", cwd=tmp_path)
    assert "already holds a finished run" in sentence(again)
    stopped = husai("sae", "train", "run", "sae.d_sae=16", "sae.k=2", cwd=tmp_path)
    assert "is not ground truth: accuracy" in sentence(stopped, code=1)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    done = husai("model", "train", *TINY, "--out", "file/run", cwd=tmp_path)
    assert "file/run: cannot be written" in sentence(done)


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    script = (
        "import errno, husai.workflow as w\n"
        "def full(model, path): open(path, 'wb').write(b'x'); raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "w.save_weights = full\n"
        "from husai.cli import main\n"
        f"main(['model', 'train', '--attempts', '1', '--out', 'run', *{TINY!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert "run: cannot be written (No space left on device)" in sentence(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_is_a_sentence_and_leaves_nothing(number, code, tmp_path):
    arguments = ["model", "train", *TINY[:-1], "training.steps=1000000", "training.log_every=1", "--out", "run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    process = subprocess.Popen(
        [*HUSAI, *arguments], cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **pipes
    )
    try:
        assert process.stdout is not None
        while "step" not in process.stdout.readline():  # the run is under way once it reports a step
            assert process.poll() is None
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert "half-written" in stderr
    assert list(tmp_path.iterdir()) == []


def test_extract_writes_the_grid_with_its_labels(tmp_path):
    from safetensors.torch import load_file

    done = husai(
        "activations", "extract", "add-p59-0", "--hook", "mlp_out", "--out", "acts.safetensors", "--json", cwd=tmp_path
    )
    described = json.loads(done.stdout)
    stored = load_file(tmp_path / "acts.safetensors")
    assert described["hook"] == "blocks.0.hook_mlp_out"
    assert stored["x"].shape == (59 * 59, 128)
    assert torch.equal(stored["label"], (stored["a"] + stored["b"]) % 59)
    assert sum(s["share"] for s in described["subspaces"]) > 0.9


def test_reference_models_are_listed(tmp_path):
    rows = json.loads(husai("model", "list", "--json", cwd=tmp_path).stdout)
    assert {"add-p113-0", "add-p113-1", "add-p113-2", "mul-p113-0", "add-p59-0"} <= {row["name"] for row in rows}


def test_sae_train_writes_folders_that_saelens_layout_has(tmp_path):
    small = ["sae.d_sae=64", "sae.k=4", "sae.k_aux=4", "training.steps=30", "training.batch_size=256"]
    done = husai("sae", "train", "add-p59-0", *small, "--seeds", 3, "--out", "saes", "--json", cwd=tmp_path)
    metrics = json.loads(done.stdout)
    assert metrics["l0"] == pytest.approx(4, abs=0.1)
    assert "pwmcc_ambient" in metrics
    for seed in range(3):
        assert (tmp_path / "saes" / f"seed-{seed}-{seed}" / "cfg.json").is_file()
    one = tmp_path / "saes" / "seed-0-0"
    scores = json.loads(husai("sae", "score", one, "--model", "add-p59-0", "--json", cwd=tmp_path).stdout)
    assert all(set(score) == {"value", "nulls", "adjusted"} for score in scores.values())
    assert set(scores["fourier_overlap"]["nulls"]) == set(scores["fourier_overlap"]["adjusted"])
    shown = husai("sae", "score", one, "--model", "add-p59-0", cwd=tmp_path).stdout
    assert "fourier_overlap" in shown
    assert "chance: ambient" in shown
    for arguments, message in (
        ((tmp_path, "--model", "add-p59-0"), "is not a SAELens folder (cfg.json, "),
        ((one, "--model", "add-p59-0", "--hook", "embed"), "the SAEs were trained on blocks.0.hook_resid_post"),
    ):
        assert message in sentence(husai("sae", "score", *arguments, cwd=tmp_path))
    shutil.rmtree(tmp_path / "saes")


FLAGS = [
    *("--early-exit", 20, "--seed", 7, "--deterministic", "--log-timing", "--log-every", 5, "--log-statistics"),
    *("--optimizer", "rmsprop", "--dtype", "fp32", "--lower-dtype", "fp16", "--adam-trick", "--sparsity-coeff", 6),
    *("--track", "tensorboard"),
]


def check_flags(folder):
    """What a run with `FLAGS` must have left behind."""
    text = (folder / "report.md").read_text()
    assert "Steps: 20 of 60 (**cut short** by training.early_exit" in text
    assert "Precision: fp32 parameters, fp16 products" in text
    assert "| gradients | " in text
    config = SAEConfig.load(folder / "config.yaml")
    assert (config.init_seeds, config.data_seeds, config.sae.sparsity) == ((7,), (7,), ("k", 6.0))
    training = config.training
    assert (training.optimiser, training.pair, training.adam_trick) == ("rmsprop", ("fp32", "fp16"), True)
    assert "log_timing" not in (folder / "config.yaml").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["cut_short"] is True
    assert metrics["steps"] == 20
    history = (folder / "history.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in history[1:]] == ["5", "10", "15", "20"]
    assert {"ms_data", "ms_gradients", "ms_update", "ms_logging"} <= set(history[0].split(","))
    assert "FVU at best" in (folder / "health.json").read_text(), "a check of low precision only"
    assert list((folder.parent / "tensorboard" / folder.name).glob("events.*"))


def test_flags_of_precision_logging_and_length(tmp_path):
    short = [*SMALL, "training.warmup_steps=2", *FLAGS]
    done = husai("sae", "train", "add-p59-0", *short, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_flags(tmp_path / "run")
    nowhere = husai("sae", "train", "add-p59-0", *SMALL, "--log-statistics", "--out", "two", cwd=tmp_path)
    assert nowhere.returncode == 0
    assert "has no tracker to go to; choose one with --track" in nowhere.stderr
    flags = ["--transformer-checkpoint", "add-p59-0", "--save-dir", "script"]
    script = [sys.executable, Path(__file__).parents[1] / "scripts" / "train_sae.py", *flags, *short]
    done = subprocess.run(list(map(str, script)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_flags(tmp_path / "script")
    first, second = ((tmp_path / name / "sae_weights.safetensors").read_bytes() for name in ("run", "script"))
    assert first == second, "reruns agree in every bit"


SMALL = ["sae.d_sae=32", "sae.k=4", "sae.k_aux=4", "training.steps=60", "training.batch_size=128"]


def test_a_captured_store_trains_without_its_model(tmp_path):
    from safetensors.torch import load_file

    capture = ["activations", "capture", "--model", "add-p59-0", "--hook", "resid_post", "--position", -1]
    made = husai(
        *capture, "--num-batches", 40, "--batch-size", 100, "--rows-per-shard", 900, "--out", "s", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    assert "s: 4000 rows of width 128 in 5 shard(s), blocks.0.hook_resid_post" in made.stdout
    assert "all whole" in husai("activations", "verify", "s", cwd=tmp_path).stdout
    train = ["sae", "train", "--shard-dir", "s", *SMALL, "--deterministic"]
    expected = json.loads(husai(*train, "--dry-run", "--json", cwd=tmp_path).stdout)
    assert expected["steps"] == 60
    assert expected["seconds"] > 0
    assert not (tmp_path / "runs").exists()
    for out in ("one", "two"):
        done = husai(*train, "--seeds", 2, "--out", out, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    report = (tmp_path / "one" / "report.md").read_text()
    assert "Model: add-p59-0\n" in report
    assert "Trained on: s (4000 rows in 5 shards)" in report
    one, two = (load_file(tmp_path / out / "seed-1-1" / "sae_weights.safetensors") for out in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    scored = json.loads(husai("sae", "train", "add-p59-0", *train[2:], "--out", "three", "--json", cwd=tmp_path).stdout)
    assert "fourier_overlap" in scored
    (tmp_path / "s" / "shard-00003.safetensors").write_bytes(b"short")
    damaged = sentence(husai("activations", "verify", "s", cwd=tmp_path))
    assert "shard-00003.safetensors: is truncated or damaged" in damaged


def test_a_killed_run_goes_on_when_the_command_is_given_again(tmp_path):
    script = (
        "import os, signal\n"
        "from husai.sae.trainer import Trainer\n"
        "advance = Trainer.advance\n"
        "def dying(self):\n"
        "    if self.step == 45: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return advance(self)\n"
        "Trainer.advance = dying\n"
        "import sys\n"
        "from husai.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    every = ["training.checkpoint_every=10", "--deterministic", "--json"]
    train = ["sae", "train", "add-p59-0", *SMALL, *every, "--out"]
    killed = subprocess.run([sys.executable, "-c", script, *train, "run"], cwd=tmp_path, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "run.checkpoints" / "step-000000040.json").is_file()
    changed = husai(*train, "run", "training.lr=0.5", cwd=tmp_path)
    assert "since training.lr was 0.001 and is now 0.5" in sentence(changed)
    resumed = husai(*train, "run", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == husai(*train, "whole", cwd=tmp_path).stdout
    first, second = ((tmp_path / name / "sae_weights.safetensors").read_bytes() for name in ("run", "whole"))
    assert first == second
    assert not (tmp_path / "run.checkpoints").exists()
    assert "checkpoint_every" not in (tmp_path / "run" / "config.yaml").read_text()


def test_a_hopeless_training_is_given_up_and_says_why(tmp_path):
    settings = ["sae.d_sae=64", "sae.l1_coefficient=100", "sae.l1_warmup_steps=10", "training.lr=0.01"]
    settings += ["training.steps=200", "training.batch_size=512", "training.warmup_steps=10", "training.stop=hopeless"]
    done = husai("sae", "train", "add-p59-0", *settings, "--config", "relu_8x", "--out", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "training was given up at step" in done.stderr
    assert "Lower λ (sae.l1_coefficient or sae.l0_coefficient)" in done.stderr
    assert "Health: NOT FIXED: L0 does not end at 5.0% of latents ± 2 points" in done.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] < 200
    assert not metrics["converged"]
    health = json.loads((tmp_path / "run" / "health.json").read_text())
    assert health["verdict"] == metrics["health"]
    assert {check["name"]: check["band"] for check in health["checks"]}["L0 share"] == "red"
    text = (tmp_path / "run" / "report.md").read_text()
    assert f"Training was stopped after {metrics['steps']} of 200 steps: " in text
    assert "| L0 share | 0." in text
    assert (tmp_path / "run" / "sae_weights.safetensors").is_file()
