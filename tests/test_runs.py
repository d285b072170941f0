import csv
import json
import shutil
from dataclasses import replace

import pytest

import husai.workflow
from husai import models
from husai.config import CompiledConfig, ModelConfig, TaskConfig
from husai.errors import HusaiError
from husai.recurrent.walks import Walks
from husai.resources import find_config, reference_dir, reference_names
from husai.runs import GateFailed, LoadedModel, check_gate, load_model
from husai.tasks import Task
from husai.transformer.train import train_transformer
from husai.transformer.weights import save_weights, weights_hash
from husai.truth.circuit import verify
from husai.workflow import compile_run, train_model


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


# --- load_model


def test_a_reference_a_folder_and_a_file_mean_the_same_model(reference):
    model, task = reference("mul-p113-0")
    folder = reference_dir() / "mul-p113-0"
    for way in ("mul-p113-0", str(folder), folder, folder / "model.safetensors"):
        again, of, ignored = load_model(way)[:3]
        assert weights_hash(again) == weights_hash(model)
        assert (of, ignored) == (task, ())
        assert again.name == ("model" if str(way).endswith(".safetensors") else "mul-p113-0")
        assert again.verified is None  # nobody has looked yet


def test_a_bare_file_is_addition_unless_told_otherwise(fresh, tmp_path):
    save_weights(fresh(), tmp_path / "some.safetensors")
    assert load_model(tmp_path / "some.safetensors").task == Task("add", 11)
    assert load_model(tmp_path / "some.safetensors", op="mul").task == Task("mul", 11)
    with pytest.raises(HusaiError, match="op: 'pow' is unknown"):
        load_model(tmp_path / "some.safetensors", op="pow")


def test_an_op_that_contradicts_the_folders_config_is_refused():
    assert load_model("mul-p113-0", op="mul").task.op == "mul"
    with pytest.raises(HusaiError, match=r"model mul-p113-0: its config\.yaml says that it computes mul, not add"):
        load_model("mul-p113-0", op="add")


def test_weights_that_are_not_finite_are_named_with_their_file(fresh, tmp_path):
    model = fresh()
    model.params["embed.W_E"][0, 0] = float("nan")
    save_weights(model, tmp_path / "some.safetensors")
    with pytest.raises(HusaiError, match=r"some\.safetensors: 'embed\.W_E' holds NaN or infinity"):
        load_model(tmp_path / "some.safetensors")


@pytest.mark.parametrize(
    ("find", "message"),
    [(load_model, "model: the name is empty"), (lambda name: find_config(name, "suites"), "config: the name is empty")],
)
def test_an_empty_name_is_refused(find, message):
    with pytest.raises(HusaiError, match=message):
        find("")


def test_an_unknown_model_lists_the_references():
    with pytest.raises(HusaiError) as caught:
        load_model("add-p113-99")
    assert "model add-p113-99: no such file or folder" in str(caught.value)
    assert ", ".join(reference_names()) in str(caught.value)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(HusaiError, match="holds no model weights"):
        load_model(tmp_path)


def test_the_best_weights_of_a_run_folder_come_before_the_final_ones(fresh, tmp_path):
    save_weights(fresh(seed=1), tmp_path / "transformer_final.safetensors")
    assert weights_hash(load_model(tmp_path).model) == weights_hash(fresh(seed=1))
    save_weights(fresh(seed=2), tmp_path / "transformer_best.safetensors")
    assert weights_hash(load_model(tmp_path).model) == weights_hash(fresh(seed=2))


def test_a_broken_config_beside_the_weights_is_named(fresh, tmp_path):
    save_weights(fresh(), tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text("task: {op: add, prime: 11}")
    with pytest.raises(HusaiError, match=r"config\.yaml: unknown key 'task\.prime'"):
        load_model(tmp_path)


def test_a_stranger_beside_a_bare_weights_file_is_not_read(fresh, tmp_path):
    save_weights(fresh(), tmp_path / "mine.safetensors")
    (tmp_path / "config.yaml").write_text("lr: 3")
    assert load_model(tmp_path / "mine.safetensors").config is None


def test_a_copied_reference_folder_still_loads(reference, tmp_path):
    shutil.copytree(reference_dir() / "add-p59-0", tmp_path / "elsewhere")
    model, task, _ = load_model(tmp_path / "elsewhere")[:3]
    assert (model.name, task) == ("elsewhere", Task("add", 59))
    assert weights_hash(model) == weights_hash(reference("add-p59-0")[0])


@pytest.mark.parametrize("name", ["add-p113", "configs/models/add-p113.yaml", "models/add-p113.yaml"])
def test_shipped_configs_are_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ModelConfig.load(find_config(name, "models")).task.p == 113


def test_an_unknown_config_lists_the_shipped_ones():
    with pytest.raises(HusaiError, match=r"config add-p7: no such file.*add-p113, add-p113-classic"):
        find_config("add-p7", "models")


# --- check_gate


def test_gate_lets_a_reference_through_and_marks_it(reference):
    model, task = reference("add-p59-0")
    checked, report = check_gate(LoadedModel(model, task))
    assert report.passed
    assert checked.verified is True
    assert model.verified is None


def test_gate_stops_an_unverified_model_and_says_why(fresh):
    with pytest.raises(GateFailed) as caught:
        check_gate(LoadedModel(fresh(), Task("add", 11)))
    message = str(caught.value)
    assert message.startswith("model fresh is not ground truth: accuracy 0.")
    assert "misses by" in message
    assert "--allow-unverified" in message


def test_gate_marks_what_was_allowed_through(fresh):
    checked, report = check_gate(LoadedModel(fresh(), Task("add", 11)), allow_unverified=True)
    assert not report.passed
    assert checked.verified is False


# --- train_model


def test_run_folder_of_a_model_holds_what_is_promised(recipe, tmp_path):
    config = recipe(steps=6, log_every=3, checkpoint_epochs=1)
    run = train_model(config, tmp_path / "run", attempts=1)
    assert listing(tmp_path) == ["run"]
    assert listing(tmp_path / "run") == [
        "DONE",
        "checksums.json",
        "config.yaml",
        "gate.json",
        "history.csv",
        "metrics.json",
        "provenance.json",
        "transformer_best.safetensors",
        "transformer_epoch_1.safetensors",
        "transformer_epoch_2.safetensors",
        "transformer_final.safetensors",
    ]
    assert run.model.name == "run"
    assert run.model.verified is False
    assert ModelConfig.load(tmp_path / "run" / "config.yaml") == config == run.config
    with (tmp_path / "run" / "history.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [row["step"] for row in rows] == ["3", "6"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["passed"] is False
    assert str(metrics["test_loss"]) == rows[-1]["test_loss"]
    gate = json.loads((tmp_path / "run" / "gate.json").read_text())
    assert gate == json.loads(json.dumps(run.report.to_json()))
    assert gate["passed"] is False
    loaded, task, _ = load_model(tmp_path / "run")[:3]
    assert weights_hash(loaded) == weights_hash(run.model)
    assert task == Task("add", 11)


def test_saved_weights_are_those_of_the_training(recipe, tmp_path):
    # A memoriser, whose lowest held-out loss comes long before the end.
    config = recipe(frac_train=0.3, batch_size=None, steps=200, lr=1e-2, weight_decay=0.0, log_every=10)
    train_model(config, tmp_path / "run", attempts=1)
    trained = train_transformer(config)
    assert weights_hash(trained.best) != weights_hash(trained.final)
    for name, model in [("best", trained.best), ("final", trained.final)]:
        saved = load_model(tmp_path / "run" / f"transformer_{name}.safetensors").model
        assert weights_hash(saved) == weights_hash(model)


def test_the_saved_config_replays_the_run(recipe, tmp_path):
    first = train_model(recipe(steps=6, lr=1e-3), tmp_path / "first", attempts=2)
    again = train_model(ModelConfig.load(tmp_path / "first" / "config.yaml"), tmp_path / "again", attempts=1)
    assert weights_hash(again.model) == weights_hash(first.model)
    assert again.report == first.report


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_failing_gate_costs_exactly_the_attempts_and_the_best_is_kept(recipe, tmp_path, attempts):
    tried, verdicts = [], []
    run = train_model(
        recipe(steps=6, init_seed=5),
        tmp_path / "run",
        attempts=attempts,
        on_attempt=lambda number, config: tried.append((number, config.training.init_seed)),
        on_verdict=lambda number, report: verdicts.append((number, report)),
    )
    assert tried == [(0, 5), (1, 6), (2, 7)][:attempts]
    assert [number for number, _ in verdicts] == list(range(attempts))
    fves = [report.fve for _, report in verdicts]
    assert run.report.fve == max(fves)
    kept = fves.index(max(fves))
    assert run.config.training.init_seed == 5 + kept
    saved = json.loads((tmp_path / "run" / "gate.json").read_text())
    assert saved["fve"] == max(fves)
    assert ModelConfig.load(tmp_path / "run" / "config.yaml").training.init_seed == 5 + kept


def test_further_attempts_change_all_three_seeds(recipe, tmp_path):
    seeds = []
    train_model(
        recipe(steps=2, init_seed=5, split_seed=0, batch_seed=9),
        tmp_path / "run",
        attempts=2,
        on_attempt=lambda _n, config: seeds.append(
            (config.training.init_seed, config.training.split_seed, config.training.batch_seed)
        ),
    )
    assert seeds == [(5, 0, 9), (6, 6, 6)]


@pytest.mark.parametrize(
    ("fves", "passes", "kept", "used"),
    [
        ((0.2, 0.7, 0.4), (False, False, False), 1, 3),
        ((0.9, 0.96, 0.99), (False, True, True), 1, 2),
        ((0.99, 0.96, 0.5), (False, True, False), 1, 2),  # a pass with a lower fve beats a failure
        ((0.96, 0.99, 0.99), (True, True, True), 0, 1),
    ],
)
def test_attempts_stop_at_the_first_pass(recipe, tmp_path, monkeypatch, fves, passes, kept, used):
    verdicts = iter(zip(fves, passes, strict=True))

    def scripted(model, task):
        fve, passed = next(verdicts)
        real = verify(model, task)
        return replace(real, fve=fve, conditions=() if passed else real.conditions)

    monkeypatch.setattr(husai.workflow, "verify", scripted)
    run = train_model(recipe(steps=2), tmp_path / "run")
    assert len(fves) - len(list(verdicts)) == used
    assert run.report.fve == fves[kept]
    assert run.config.training.init_seed == kept
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["attempts"] == used
    assert run.model.verified is passes[kept]
    expected = train_transformer(recipe(steps=2, init_seed=kept, split_seed=kept, batch_seed=kept))
    assert weights_hash(run.model) == weights_hash(expected.best)


def test_a_training_that_diverges_leaves_no_folder(recipe, tmp_path):
    with pytest.raises(HusaiError, match="the loss is not finite"):
        train_model(recipe(lr=1e30), tmp_path / "run")
    assert listing(tmp_path) == []


def test_a_finished_run_is_refused_before_any_training(recipe, tmp_path):
    train_model(recipe(steps=2), tmp_path / "run", attempts=1)
    tried = []
    with pytest.raises(HusaiError, match="already holds a finished run"):
        train_model(recipe(steps=2), tmp_path / "run", on_attempt=lambda *args: tried.append(args))
    assert tried == []


# --- compile_run


def circuit(kind="clock", keys=(8, 9, 12), **fields):
    return CompiledConfig(task=TaskConfig(p=29), kind=kind, keys=keys, **fields)


@pytest.mark.parametrize(("kind", "variant"), [("clock", "plain"), ("pizza", "pizza")])
def test_run_folder_of_a_compiled_model(kind, variant, tmp_path):
    config = circuit(kind, noise=1e-4, seed=3)
    report = compile_run(config, tmp_path / "run")
    assert report.passed
    assert listing(tmp_path) == ["run"]
    promised = [
        "DONE",
        "checksums.json",
        "config.yaml",
        "gate.json",
        "metrics.json",
        "model.safetensors",
        "provenance.json",
    ]
    assert listing(tmp_path / "run") == promised
    assert json.loads((tmp_path / "run" / "gate.json").read_text()) == json.loads(json.dumps(report.to_json()))
    loaded = load_model(tmp_path / "run")
    assert loaded.config == config
    assert (loaded.model.act, loaded.task) == ("relu2", Task("add", 29))
    assert (loaded.variant, loaded.tier, loaded.seed) == (variant, "compiled", 3)
    assert verify(loaded.model, loaded.task, variant=variant) == report
    compile_run(loaded.config, tmp_path / "again")
    assert weights_hash(load_model(tmp_path / "again").model) == weights_hash(loaded.model)


def test_a_compiled_model_is_checked_in_the_variant_its_config_names(tmp_path):
    compile_run(circuit("pizza"), tmp_path / "run")
    loaded = load_model(tmp_path / "run")
    checked, report = check_gate(loaded)
    assert checked.verified is True
    assert report.variant == "pizza"
    with pytest.raises(GateFailed, match=r"fve 0\.666667 >= 0\.95"):
        check_gate(loaded._replace(config=None))  # the same weights, of which nothing says that they are a pizza


def test_models_that_were_not_compiled_are_plain(reference, tmp_path):
    trained = load_model("add-p59-0")
    assert (trained.variant, trained.tier, trained.seed) == ("plain", "trained", trained.config.training.init_seed)
    save_weights(reference("add-p59-0")[0], tmp_path / "bare.safetensors")
    bare = load_model(tmp_path / "bare.safetensors")
    assert (bare.variant, bare.tier, bare.seed) == ("plain", "trained", None)


def test_a_compiled_model_that_fails_its_gate_is_kept_and_says_so(tmp_path):
    report = compile_run(circuit(noise=3.0), tmp_path / "run")
    assert "accuracy" in report.failed_conditions
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["passed"] is False


def test_a_circuit_that_does_not_exist_leaves_no_folder(tmp_path):
    with pytest.raises(HusaiError, match="keys: 15 is not a frequency of Z_29"):
        compile_run(circuit(keys=(15,)), tmp_path / "run")
    assert listing(tmp_path) == []


def test_a_recurrent_run_holds_everything_and_says_what_it_is(small_network, tmp_path):
    run = train_model(small_network(), tmp_path / "run", attempts=1)
    assert {"recurrent_best.safetensors", "recurrent_final.safetensors", "gate.json"} <= set(listing(tmp_path / "run"))
    loaded = load_model(tmp_path / "run")
    assert (loaded.tier, loaded.seed, loaded.variant, loaded.config) == ("recurrent", 0, "plain", run.config)
    assert loaded.task == Walks(5, small_network().walks)
    assert models.weights_hash(loaded.model) == models.weights_hash(run.model)
    with pytest.raises(GateFailed, match="model run is not ground truth: accuracy"):
        check_gate(loaded)
    model, report = check_gate(loaded, allow_unverified=True)
    assert (model.verified, report) == (False, run.report)
    with pytest.raises(HusaiError, match=r"is a recurrent network, which computes a running sum \(add\), not mul"):
        load_model(tmp_path / "run", "mul")


def test_a_recurrent_network_is_tried_with_further_seeds(small_network, tmp_path):
    tried = []
    run = train_model(
        small_network(), tmp_path / "run", attempts=3, on_attempt=lambda _n, config: tried.append(config.training)
    )
    assert [(t.init_seed, t.batch_seed) for t in tried] == [(0, 0), (1, 1), (2, 2)]
    assert run.config.walks == small_network().walks
