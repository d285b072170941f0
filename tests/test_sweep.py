import json
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from husai import models
from husai import suite as suite_module
from husai.cell import RECORD_COLUMNS, checkpoints, hook_of, run_cell
from husai.config import CompiledConfig, SuiteConfig, TaskConfig, TransformerConfig
from husai.errors import HusaiError
from husai.report.results import SuiteResults
from husai.report.tables import write_tables
from husai.report.write import write_report
from husai.runs import GateFailed
from husai.seeding import generator
from husai.suite import run_smoke, run_suite
from husai.sweep import compute as compute_module
from husai.sweep import plan as plan_module
from husai.sweep.plan import plan
from husai.sweep.ways import Ways
from husai.transformer.model import Transformer, init_params
from husai.transformer.weights import save_weights
from husai.workflow import compile_run

TRAINING = {"steps": 40, "batch_size": 512, "lr": 3e-3}
SUITE = {
    "name": "tiny",
    "model": "add-p59-0",
    "hooks": ["resid_post"],
    "init_seeds": [0, 1, 2],
    "data_seeds": [5, 6, 7],
    "entries": [
        {"sae": {"architecture": "topk", "d_sae": 32, "k": 2, "k_aux": 2, "dead_steps": 5}, "training": TRAINING},
        {"sae": {"architecture": "relu", "d_sae": 32, "l1_coefficient": 2.0}, "training": TRAINING},
    ],
    "analysis": {"curve": [0, 10], "null_draws": 4, "curve_null_draws": 2, "aligned_null_draws": 1},
}


@pytest.fixture(scope="module")
def suite():
    return SuiteConfig.parse(SUITE)


@pytest.fixture(scope="module")
def finished(suite, tmp_path_factory):
    place = tmp_path_factory.mktemp("finished")
    assert run_suite(suite, place / "results", place / "runs", Ways(jobs=1)) == 0
    return place


@pytest.fixture(autouse=True)
def tables_alone(monkeypatch):
    """Drawing takes longer than computing these cells; the tests of figures call `write_report` themselves."""

    def write(results, out):
        return write_tables(SuiteResults.load(results), out)

    monkeypatch.setattr(suite_module, "write_report", write)


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def no_computing(monkeypatch):
    def refuse(job):
        raise AssertionError(f"cell {job.cell.title} was computed again")

    monkeypatch.setattr(compute_module, "run_cell", refuse)


def records(place):
    return pd.read_parquet(place / "results" / "records.parquet")


def test_records_follow_the_contract(finished):
    table = records(finished)
    assert tuple(table.columns) == RECORD_COLUMNS
    assert set(table["step"]) == {0, 10, 20, 40}
    assert set(table["tier"]) == {"trained"}
    assert table["verified"].all()
    assert len(set(table["run_id"])) == 2
    pairs = table[(table["metric"] == "pwmcc") & (table["step"] == 40) & table["init_seed_b"].notna()]
    assert len(pairs) == 2 * 3, "three pairs of seeds a cell"
    assert (pairs["data_seed"] == pairs["init_seed"] + 5).all()
    for null in ("ambient", "data", "data_points", "untrained"):
        assert len(table[(table["metric"] == "pwmcc") & (table["null"] == null) & (table["step"] == 40)]) == 2
    for metric in ("explained_variance", "l0", "dead", "fourier_overlap", "decoder_overlap", "max_cosine", "shifted"):
        whole = table[(table["metric"] == metric) & table["init_seed"].isna() & (table["null"] == "")]
        assert set(whole["step"]) == {0, 10, 20, 40}, f"{metric} is a curve"
        assert (whole["ci_low"] <= whole["value"]).all()


def test_the_step_0_pwmcc_is_the_untrained_null(finished):
    table = records(finished)
    first = table[
        (table["metric"] == "pwmcc") & (table["step"] == 0) & table["init_seed"].isna() & (table["null"] == "")
    ]
    null = table[(table["metric"] == "pwmcc") & (table["step"] == 40) & (table["null"] == "untrained")]
    assert sorted(first["value"]) == sorted(null["value"])


def test_every_run_folder_holds_its_record_and_one_saelens_folder_a_seed(finished):
    places = [
        path for path in (finished / "runs").iterdir() if path.is_dir() and path.name != "nulls" and path.name[0] != "."
    ]
    assert len(places) == 2
    for place in places:
        assert {"config.yaml", "metrics.json", "history.csv", "provenance.json", "DONE"} <= {
            p.name for p in place.iterdir()
        }
        assert len(list(place.glob("seed-*/cfg.json"))) == 3
        assert json.loads((place / "metrics.json").read_text())["verdict"].startswith("pwmcc ")


def test_atoms_have_one_row_an_atom_and_costs_one_a_run(finished):
    atoms = pd.read_parquet(finished / "results" / "atoms.parquet")
    assert len(atoms) == 2 * 3 * 32
    costs = pd.read_parquet(finished / "results" / "costs.parquet")
    assert list(costs["precision"]) == ["fp32/fp32"] * 2
    with np.load(next((finished / "results" / "arrays").glob("*.npz"))) as arrays:
        assert arrays["pwmcc"].shape == (3, 3)


def test_a_finished_suite_is_never_redone(suite, copy, no_computing):
    before = (copy / "results" / "records.parquet").read_bytes()
    assert run_suite(suite, copy / "results", copy / "runs", Ways(jobs=1)) == 0
    assert (copy / "results" / "records.parquet").read_bytes() == before


def test_truth_and_gate_of_a_finished_suite_are_not_written_again(suite, copy):
    for name in ("gate.json", "truth.json"):
        data = json.loads((copy / "results" / name).read_text())
        (copy / "results" / name).write_text(json.dumps(data))  # the same figures in other bytes
    files = {name: (copy / "results" / name).read_bytes() for name in ("cells.json", "gate.json", "truth.json")}
    assert run_suite(suite, copy / "results", copy / "runs", Ways(jobs=1)) == 0
    assert {name: (copy / "results" / name).read_bytes() for name in files} == files
    (copy / "results" / "truth.json").unlink()
    assert run_suite(suite, copy / "results", copy / "runs", Ways(jobs=1)) == 0
    assert json.loads((copy / "results" / "truth.json").read_text()) == json.loads(files["truth.json"])


def test_a_smoke_run_replaces_an_earlier_one_and_speaks_of_its_own_folder(suite, tmp_path, capsys):
    place = tmp_path / "smoke"
    for _ in range(2):
        assert run_smoke(suite, place, jobs=1) == 0
        said = capsys.readouterr().out
        assert f"tables and figures in {place}; read" in said
        assert ".smoke." not in said, "the temporary folder is nobody's business"
        assert {"DONE", "summary.md", "records.parquet", "runs"} <= {path.name for path in place.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["smoke"]


def test_a_running_cell_says_how_far_it_is(suite, tmp_path):
    (job, *_), _ = plan(suite, ["add-p59-0"], tmp_path)
    told = []
    run_cell(job, say=lambda **figures: told.append(figures))
    assert [figures["step"] for figures in told if "pwmcc" in figures] == [0, 10, 20, 40]
    assert {"loss", "explained_variance", "l0"} <= set().union(*told)
    assert all(figures["of"] == 40 for figures in told)


def test_a_smoke_run_touches_no_foreign_folder(suite, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(HusaiError, match="exists and is not an earlier smoke run"):
        run_smoke(suite, tmp_path, jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_smoke_run_without_a_verified_model_leaves_nothing(tmp_path, capsys):
    recipe = {
        "task": {"p": 11},
        "transformer": {"d_model": 16, "d_mlp": 16},
        "training": {"steps": 5, "batch_size": 32},
    }
    with pytest.raises(GateFailed, match="no transformer passed the gate"):
        run_smoke(SuiteConfig.parse({**SUITE, "model": recipe}), tmp_path / "smoke", jobs=1)
    assert capsys.readouterr().out.count("the gate failed: accuracy") == 3
    assert list(tmp_path.iterdir()) == []


def test_committed_records_stand_for_lost_run_folders(suite, copy, no_computing):
    shutil.rmtree(copy / "runs")
    assert run_suite(suite, copy / "results", copy / "runs", Ways(jobs=1)) == 0


def test_run_folders_stand_for_lost_results(suite, copy, no_computing):
    before = records(copy)
    shutil.rmtree(copy / "results")
    assert run_suite(suite, copy / "results", copy / "runs", Ways(jobs=1)) == 0
    pd.testing.assert_frame_equal(records(copy), before)


def test_an_interrupted_sweep_keeps_what_is_finished_and_goes_on(suite, finished, tmp_path, monkeypatch):
    real, calls = compute_module.run_cell, []

    def second_is_interrupted(job, say):
        calls.append(job.cell.title)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(job, say)

    monkeypatch.setattr(compute_module, "run_cell", second_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1))
    assert len(set(records(tmp_path)["run_id"])) == 1
    left = {path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")}
    assert left == {".leases", ".families"}
    assert list((tmp_path / "runs" / ".leases").iterdir()) == []
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 0
    assert len(calls) == 3, "only the interrupted cell is computed again"
    pd.testing.assert_frame_equal(records(tmp_path), records(finished))


def test_two_processes_give_the_results_of_one(suite, finished, tmp_path):
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=2)) == 0
    mine, theirs = records(tmp_path), records(finished)
    assert list(mine["run_id"]) == list(theirs["run_id"])
    np.testing.assert_allclose(mine["value"], theirs["value"], atol=2e-3)


def test_a_changed_config_is_another_cell(suite, copy, capsys):
    changed = SuiteConfig.parse({**SUITE, "data_seeds": [5, 6, 8]})
    assert run_suite(changed, copy / "results", copy / "runs", Ways(jobs=1, dry_run=True)) == 0
    assert capsys.readouterr().out.count("missing") == 2
    assert run_suite(suite, copy / "results", copy / "runs", Ways(jobs=1, dry_run=True)) == 0
    assert capsys.readouterr().out.count("finished") == 2


def test_a_model_that_fails_the_gate_stops_the_suite_unless_allowed(tmp_path):
    params = init_params(TransformerConfig(), 13, generator=generator("test", 0))
    save_weights(Transformer(params, "abe", 13), tmp_path / "random.safetensors")
    training = {"steps": 4, "batch_size": 64}
    entries = [{"sae": {"architecture": "topk", "d_sae": 16, "k": 2}, "training": training}]
    data = {**SUITE, "model": str(tmp_path / "random.safetensors"), "hooks": ["resid_post"], "entries": entries}
    suite = SuiteConfig.parse(data)
    with pytest.raises(GateFailed, match="accuracy"):
        run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1))
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1, allow_unverified=True)) == 0
    assert not records(tmp_path)["verified"].any()
    assert "unverified" in (tmp_path / "results" / "summary.md").read_text()


def test_a_suite_on_the_walks_of_a_network_measures_everything(rotating, tmp_path):
    models.save_weights(rotating(length=2).to(torch.float32), tmp_path / "rotating.safetensors")
    entries = [{"sae": {"architecture": "topk", "d_sae": 16, "k": 2}, "training": {"steps": 4, "batch_size": 64}}]
    data = {**SUITE, "model": str(tmp_path / "rotating.safetensors"), "hooks": ["hidden"], "entries": entries}
    suite = SuiteConfig.parse(data)
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 0
    found = records(tmp_path)
    assert set(found["tier"]) == {"recurrent"}
    assert found["verified"].all()
    assert {"pwmcc", "fourier_overlap", "aligned", "purity"} <= set(found["metric"])
    (cell,) = found["run_id"].unique()
    assert np.load(tmp_path / "results" / "arrays" / f"{cell}.npz")["tuning_maps"].shape == (4, 29, 29)
    assert "previous k=" in (tmp_path / "results" / "summary.md").read_text()
    write_report(tmp_path / "results", tmp_path / "results")
    assert (tmp_path / "results" / "figures" / "feature_tuning.png").is_file()
    longer = replace(rotating(length=3), name="longer").to(torch.float32)
    models.save_weights(longer, tmp_path / "rotating.safetensors")
    assert plan(suite, [suite.model], tmp_path)[0][0].cell.run_id != cell  # other walks are other samples
    with pytest.raises(HusaiError, match="a recurrent network has one hook, 'hidden'"):
        plan(SuiteConfig.parse({**data, "hooks": ["resid_post"]}), [suite.model], tmp_path)


def test_a_suite_trains_a_recurrent_recipe_first(small_network, tmp_path, capsys):
    recipe = small_network().model_dump(mode="json")
    suite = SuiteConfig.parse({**SUITE, "model": recipe, "hooks": ["hidden"]})
    assert suite.model == small_network()
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 1  # twelve steps pass no gate
    assert "Training a recurrent model on add mod 5" in capsys.readouterr().out
    with pytest.raises(HusaiError, match=r"unknown key 'model\.recurrent\.d_hiden'"):
        SuiteConfig.parse({**SUITE, "model": {**recipe, "recurrent": {"d_hiden": 3}}})


def test_a_suite_on_a_compiled_model_says_so(tmp_path):
    circuit = CompiledConfig(task=TaskConfig(p=29), kind="pizza", keys=(8, 9, 12), seed=4, d_model=32, d_mlp=32)
    compile_run(circuit, tmp_path / "pizza")
    entries = [{"sae": {"architecture": "topk", "d_sae": 16, "k": 2}, "training": {"steps": 4, "batch_size": 64}}]
    data = {**SUITE, "model": str(tmp_path / "pizza"), "hooks": ["resid_post"], "entries": entries}
    assert run_suite(SuiteConfig.parse(data), tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 0
    table = records(tmp_path)
    assert set(table["tier"]) == {"compiled"}
    assert set(table["model_seed"].dropna()) == {4}
    assert table["verified"].all()
    summary = (tmp_path / "results" / "summary.md").read_text()
    assert "Judged as variant pizza; its plain fve is 0.667." in summary


def test_measured_steps_are_the_curve_half_way_and_the_end():
    assert checkpoints(1500, (0, 30, 1000, 5000)) == (0, 30, 750, 1000, 1500)


def test_the_report_shows_every_cell_beside_its_chance_levels(finished, tmp_path):
    files = write_report(finished / "results", tmp_path)
    text = (tmp_path / "summary.md").read_text()
    cells = SuiteResults.load(finished / "results").cells
    assert len(cells) == 2
    for cell in cells:
        assert text.count(cell.label) >= 4
        matrix = pd.read_csv(tmp_path / "matrices" / f"pwmcc_{cell.slug}.csv").to_numpy()
        np.testing.assert_allclose(np.diag(matrix), 1)
        np.testing.assert_allclose(matrix[np.triu_indices(3, 1)].mean(), cell.value("pwmcc").mean, atol=1e-5)
    for null in ("ambient", "untrained", "data", "data_points"):
        assert null in text
    assert text.count("exceed") >= 2, "one sentence a cell"
    assert all(path.stat().st_size > 0 for path in files)
    assert {path.suffix for path in files} == {".md", ".csv", ".pdf", ".png"}


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_results_are_named(damage, copy):
    table = copy / "results" / "atoms.parquet"
    if damage == "missing":
        table.unlink()
    else:
        table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(HusaiError, match=r"atoms\.parquet|damaged table"):
        SuiteResults.load(copy / "results")


def test_one_failing_cell_does_not_end_the_sweep(suite, finished, tmp_path, monkeypatch, capsys):
    real = compute_module.run_cell

    def relu_fails(job, say):
        if job.cell.config.sae.architecture == "relu":
            raise HusaiError("seed 0 collapsed")
        return real(job, say)

    monkeypatch.setattr(compute_module, "run_cell", relu_fails)
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 1
    said = capsys.readouterr()
    assert re.search(r"relu.*: seed 0 collapsed", said.err)
    assert "1 computed, 0 finished before, 1 failed" in said.out
    assert set(records(tmp_path)["architecture"]) == {"topk"}
    monkeypatch.setattr(compute_module, "run_cell", real)
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 1, "it is not tried again unasked"
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1, retry_failed=True)) == 0
    pd.testing.assert_frame_equal(records(tmp_path), records(finished))
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 0, "the note is gone"


def test_a_dry_run_of_a_suite_with_a_recipe_trains_nothing(tmp_path, capsys):
    suite = SuiteConfig.parse({**SUITE, "model": {"task": {"op": "add", "p": 11}}})
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1, dry_run=True)) == 0
    assert "would be trained first" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_the_cells_of_what_is_there(tmp_path, capsys):
    trained = {"name": "small", "model": {"task": {"op": "add", "p": 11}}, "hooks": ["resid_post"]}
    models = [trained, {"model": "add-p59-0", "hooks": ["resid_post"]}]
    given = {key: value for key, value in SUITE.items() if key not in ("model", "hooks")}
    suite = SuiteConfig.parse({**given, "models": models})
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1, dry_run=True)) == 0
    printed = capsys.readouterr().out
    assert "would be trained first" in printed
    assert printed.count("missing ") == 1 + len(SUITE["entries"])
    assert list(tmp_path.iterdir()) == []


def test_a_changed_recipe_is_another_model(tmp_path, capsys):
    for p in (11, 13):
        suite = SuiteConfig.parse({**SUITE, "model": {"task": {"op": "add", "p": p}}})
        run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1, dry_run=True))
    first, second = capsys.readouterr().out.splitlines()
    assert first != second


def test_the_report_leaves_out_cells_of_earlier_versions_of_a_suite(copy, tmp_path):
    kept = json.loads((copy / "results" / "cells.json").read_text())[:1]
    (copy / "results" / "cells.json").write_text(json.dumps(kept))
    assert [cell.run_id for cell in SuiteResults.load(copy / "results").cells] == kept
    (copy / "results" / "cells.json").write_text("[]")
    with pytest.raises(HusaiError, match="no finished cell"):
        SuiteResults.load(copy / "results")


def test_one_seed_gives_a_report_without_figures_of_pairs(tmp_path):
    data = {**SUITE, "init_seeds": [0], "data_seeds": [0], "entries": SUITE["entries"][:1]}
    assert run_suite(SuiteConfig.parse(data), tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 0
    write_report(tmp_path / "results", tmp_path / "report")
    drawn = {path.stem for path in (tmp_path / "report" / "figures").glob("*.png")}
    assert drawn == {"fourier_spectrum", "feature_tuning", "gate_summary"}


def test_a_config_in_the_working_folder_changes_nothing(suite, tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text("foo: 1")
    monkeypatch.chdir(tmp_path)
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1, dry_run=True)) == 0
    assert capsys.readouterr().out.count("missing") == 2


# --- synthetic sources ---

SHORT = {"steps": 30, "batch_size": 128, "lr": 3e-3}
SOURCES = {
    "planted": {"d_model": 12, "n_atoms": 16, "k": 2, "samples": 600, "seed": 3},
    "circles": {
        "d_model": 12,
        "p": 23,
        "frequencies": [2, 5],
        "radii": [1, 2],
        "repeats": 12,
        "noise": 0.01,
        "seed": 3,
    },
}


def synthetic_suite(kind, **changes):
    entry = {"sae": {"architecture": "topk", "d_sae": 16, "k": 2, "k_aux": 2, "dead_steps": 5}, "training": SHORT}
    data = {name: value for name, value in SUITE.items() if name != "hooks"}
    return SuiteConfig.parse({**data, "model": {kind: SOURCES[kind] | changes}, "entries": [entry]})


@pytest.fixture(scope="module", params=["planted", "circles"])
def synthetic(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    assert run_suite(synthetic_suite(request.param), place / "results", place / "runs", Ways(jobs=1)) == 0
    return request.param, place


def test_records_of_a_synthetic_source_follow_the_contract(synthetic):
    kind, place = synthetic
    table = records(place)
    assert tuple(table.columns) == RECORD_COLUMNS
    for column, value in (("tier", kind), ("task", kind), ("hook", kind), ("model", "tiny-model"), ("model_seed", 3)):
        assert set(table[column]) == {value}, column
    assert set(table["p"]) == {0 if kind == "planted" else 23}
    assert table["p"].dtype == "int64"
    assert table["verified"].all()
    headline = "gt_mcc" if kind == "planted" else "fourier_overlap"
    whole = table[(table["metric"] == headline) & table["init_seed"].isna()]
    assert set(whole[whole["null"] == ""]["step"]) == {0, 10, 15, 30}
    assert set(whole[whole["step"] == 30]["null"]) == {"", "ambient", "data", "data_points", "untrained"}
    foreign = {"planted": {"fourier_overlap", "purity", "shifted", "self_shift"}, "circles": {"gt_mcc", "l0_true"}}[
        kind
    ]
    assert not foreign & set(table["metric"])


def test_the_report_of_a_synthetic_source_shows_what_applies(synthetic, tmp_path):
    kind, place = synthetic
    write_report(place / "results", tmp_path)
    text = (tmp_path / "summary.md").read_text()
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == {"ladder", "stability_over_steps", "stability_matrices", "trajectories", "calibration"}
    assert "## The circuit" not in text
    assert "nan" not in text
    assert json.loads((place / "results" / "gate.json").read_text()) == {}
    truth = json.loads((place / "results" / "truth.json").read_text())["tiny-model"][kind]
    if kind == "planted":
        assert "16 planted atoms" in text
        assert "gt_mcc beside its chance levels" in text
        assert "## Symmetry" not in text
        assert "## Labels" not in text
        assert (truth["atoms"], truth["dim"], truth["l0"]) == (16, 12, 2.0)
    else:
        assert "sum k=5 0.8" in text
        assert all(f"## {title}" in text for title in ("Symmetry", "Recovery: fourier_overlap", "Labels"))
        assert [s["label"] for s in truth["subspaces"]] == ["sum k=5", "sum k=2"]


def test_a_finished_synthetic_suite_is_never_redone_and_another_source_is_another_cell(
    synthetic, no_computing, tmp_path, capsys
):
    kind, place = synthetic
    shutil.copytree(place / "results", tmp_path / "results")
    assert run_suite(synthetic_suite(kind), tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 0
    assert (
        run_suite(synthetic_suite(kind, seed=4), tmp_path / "results", tmp_path / "runs", Ways(jobs=1, dry_run=True))
        == 0
    )
    assert "\nmissing" in capsys.readouterr().out


@pytest.mark.parametrize("kind", SOURCES)
def test_a_job_draws_the_same_samples_in_any_process(kind, tmp_path):
    (job,), gates = plan(synthetic_suite(kind), [None], tmp_path)
    assert gates == {}
    assert torch.equal(hook_of(job).x, hook_of(pickle.loads(pickle.dumps(job))).x)


def test_a_source_that_cannot_be_drawn_is_one_sentence(tmp_path):
    with pytest.raises(HusaiError, match=r"planted: atom \d+ is active in none of the 130 samples"):
        run_suite(
            synthetic_suite("planted", samples=130, group_size=2, hierarchy=True),
            tmp_path / "r",
            tmp_path / "s",
            Ways(jobs=1),
        )
    assert not (tmp_path / "r").exists()


# --- several models ---


def several_models() -> SuiteConfig:
    entry = {"sae": {"architecture": "topk", "d_sae": 16, "k": 1, "k_aux": 2, "dead_steps": 5}, "training": SHORT}
    clock = {"kind": "clock", "keys": [2, 3, 5], "task": {"op": "add", "p": 29}}
    models = [
        {"name": "my-clock", "model": clock, "hooks": ["mlp_out", "resid_mid"]},
        {"name": "atoms", "model": {"planted": SOURCES["planted"]}, "entries": [{**entry, "sae": TOPK_2}]},
        {"model": "add-p59-0", "hooks": ["mlp_out"]},
    ]
    data = {name: SUITE[name] for name in ("init_seeds", "data_seeds", "analysis")}
    return SuiteConfig.parse({"name": "several", "models": models, "entries": [entry], **data})


TOPK_2 = {"architecture": "topk", "d_sae": 16, "k": 2, "k_aux": 2, "dead_steps": 5}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    place = tmp_path_factory.mktemp("several")
    assert run_suite(several_models(), place / "results", place / "runs", Ways(jobs=1)) == 0
    return place


def test_a_suite_of_several_models_trains_on_each_at_its_own_hooks(several):
    cells = records(several)[["model", "tier", "hook", "sparsity", "p"]].drop_duplicates()
    assert sorted(map(tuple, cells.itertuples(index=False))) == [
        ("add-p59-0", "trained", "blocks.0.hook_mlp_out", 1.0, 59),
        ("atoms", "planted", "planted", 2.0, 0),
        ("my-clock", "compiled", "blocks.0.hook_mlp_out", 1.0, 29),
        ("my-clock", "compiled", "blocks.0.hook_resid_mid", 1.0, 29),
    ]
    gates = json.loads((several / "results" / "gate.json").read_text())
    assert [(name, gate["p"], gate["passed"]) for name, gate in gates.items()] == [
        ("my-clock", 29, True),
        ("add-p59-0", 59, True),
    ]


def test_the_report_of_several_models_goes_by_their_order_and_names_them(several, tmp_path):
    results = SuiteResults.load(several / "results")
    assert [cell.place for cell in results.cells] == [
        "my-clock mlp_out",
        "my-clock resid_mid",
        "atoms",
        "add-p59-0 mlp_out",
    ]
    write_report(several / "results", tmp_path)
    text = (tmp_path / "summary.md").read_text()
    for part in (
        "Model `my-clock` (add, p = 29)",
        "Model `add-p59-0` (add, p = 59)",
        "- atoms `planted`",
        "| atoms | TopK",
    ):
        assert part in text
    assert [
        line.split(",")[0] for line in text.splitlines() if line.startswith(("## Recovery: ", "## What the model"))
    ] == [
        "## Recovery: gt_mcc beside its chance levels",
        "## Recovery: fourier_overlap beside its chance levels",
        "## Recovery: true atoms and planes",
        "## What the model makes of them",
    ]
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == {
        *("tiers", "ladder", "stability_over_steps", "stability_matrices", "trajectories", "calibration"),
        *(
            f"{figure}_{model}"
            for figure in ("fourier_spectrum", "gate_summary")
            for model in ("my-clock", "add-p59-0")
        ),
    }


def test_a_suites_compiled_model_is_not_compiled_twice(several, no_computing, capsys):
    assert run_suite(several_models(), several / "results", several / "runs", Ways(jobs=1, dry_run=True)) == 0
    assert capsys.readouterr().out.count("finished") == 4


# --- controls ---


def control_suite(model, *, hooks=("resid_post",), kinds=()):
    entry = {"sae": {"architecture": "topk", "d_sae": 16, "k": 2}, "training": {"steps": 4, "batch_size": 64}}
    data = {**SUITE, "model": model, "hooks": list(hooks), "entries": [entry], "controls": [{"kind": k} for k in kinds]}
    return SuiteConfig.parse(data)


def test_stand_ins_are_trained_beside_the_model_and_scored_against_its_truth(tmp_path):
    circuit = {"task": {"p": 29}, "kind": "clock", "keys": [8, 9, 12], "d_model": 32}
    suite = control_suite(circuit, kinds=("surrogate", "permuted"))
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 0
    table = records(tmp_path)
    assert set(table["tier"]) == {"compiled", "surrogate", "permuted"}
    assert set(table["model"]) == {f"tiny-model{end}" for end in ("", "/surrogate-0", "/permuted-0")}
    assert table["verified"].all(), "the planes they are scored against are of a verified model"
    assert set(table[table["metric"] == "fourier_overlap"]["tier"]) == set(table["tier"])
    results = SuiteResults.load(tmp_path / "results")
    own = next(cell for cell in results.cells if not cell.control)
    twin = results.surrogate_of(own)
    assert twin is not None
    assert twin.control == "surrogate-0"
    assert results.surrogate_of(twin) is None
    assert len({cell.slug for cell in results.cells}) == 3
    text = (tmp_path / "results" / "summary.md").read_text()
    assert "TopK 16, k=2, permuted-0" in text
    assert "surrogate_trained (" in text or "every rung: " in text
    write_report(tmp_path / "results", tmp_path / "report")


def test_only_the_samples_of_a_stand_in_differ(tmp_path):
    suite = control_suite("add-p59-0", kinds=("surrogate",))
    (own, surrogate), _ = plan(suite, ["add-p59-0"], tmp_path)
    assert own.cell.run_id == plan(control_suite("add-p59-0"), ["add-p59-0"], tmp_path)[0][0].cell.run_id
    assert surrogate.cell.run_id != own.cell.run_id
    first, second = hook_of(own), hook_of(surrogate)
    assert first.x.shape == second.x.shape
    assert not torch.allclose(first.x, second.x, atol=0.1)
    assert first.truth is not None
    assert second.truth is not None
    assert torch.equal(first.truth.union, second.truth.union)


RANDOM = {"task": {"p": 13}, "transformer": {"d_model": 16, "d_mlp": 16}, "training": {"steps": 0}}


@pytest.mark.parametrize("tier", ["random", "memorised"])
def test_a_declared_control_runs_without_permission_and_is_unverified(tier, tmp_path, capsys):
    training = {"steps": 0} if tier == "random" else {"shuffle_labels": True, "steps": 6, "batch_size": 32}
    assert (
        run_suite(control_suite(RANDOM | {"training": training}), tmp_path / "results", tmp_path / "runs", Ways(jobs=1))
        == 0
    )
    assert capsys.readouterr().out.count("the gate failed") == 1, "one attempt, since it must fail"
    table = records(tmp_path)
    assert set(table["tier"]) == {tier}
    assert not table["verified"].any()
    assert not {"fourier_overlap", "shifted"} & set(table["metric"]), "without a circuit there is no truth"
    text = (tmp_path / "results" / "summary.md").read_text()
    assert "no truth" in text
    assert "all results unverified" in text


def test_a_control_by_path_is_stopped_like_any_model_that_fails(tmp_path):
    """A path declares nothing: whoever names it may not know what it is."""
    run_suite(control_suite(RANDOM), tmp_path / "results", tmp_path / "runs", Ways(jobs=1))
    (place,) = (tmp_path / "runs").glob("tiny-model-*")
    with pytest.raises(GateFailed, match="accuracy"):
        run_suite(control_suite(str(place)), tmp_path / "other", tmp_path / "runs", Ways(jobs=1))


def test_a_control_that_passes_the_gate_is_none(tmp_path, monkeypatch):
    suite = control_suite(RANDOM)
    run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1))
    real = plan_module.check_gate

    def passed(loaded, *, allow_unverified):
        model, report = real(loaded, allow_unverified=allow_unverified)
        return model, replace(report, conditions=())

    monkeypatch.setattr(plan_module, "check_gate", passed)
    with pytest.raises(HusaiError, match="is declared a random control, yet passes the gate"):
        run_suite(suite, tmp_path / "other", tmp_path / "runs", Ways(jobs=1))


def test_a_cell_ends_where_it_has_converged_and_fails_if_hopeless(tmp_path, monkeypatch, capsys):
    def suite_of(**training):
        entries = [{**SUITE["entries"][1], "training": {**TRAINING, **training}}]
        return SuiteConfig.parse({**SUITE, "entries": entries, "init_seeds": [0, 1], "data_seeds": [0, 1]})

    monkeypatch.setattr("husai.cell.is_flat", lambda curve, step: step == 20)
    assert run_suite(suite_of(stop="converged"), tmp_path / "flat", tmp_path / "runs", Ways(jobs=1)) == 0
    records = pd.read_parquet(tmp_path / "flat" / "records.parquet")
    assert sorted(records.step.unique()) == [0, 2, 5, 10, 20]
    assert "untrained" in set(records[records.step == 20].null)
    monkeypatch.setattr("husai.sae.train.hopeless", lambda history, config: "it is of no use.")
    assert run_suite(suite_of(stop="hopeless"), tmp_path / "hopeless", tmp_path / "runs", Ways(jobs=1)) == 1
    assert re.search(r"given up after \d+ of 40 steps; it is of no use", capsys.readouterr().err)


def test_a_suite_takes_baselines_as_it_takes_saes(tmp_path):
    """With nulls, curves over iterations and tables."""
    kinds = [
        {"architecture": "pca", "d_sae": 6},
        {"architecture": "kmeans", "d_sae": 16},
        {"architecture": "blocktopk", "d_sae": 16, "k": 4},
    ]
    suite = synthetic_suite("circles").model_dump(mode="json")
    suite = SuiteConfig.parse({**suite, "entries": [{"sae": kind, "training": SHORT} for kind in kinds]})
    suite = suite.model_copy(update={"init_seeds": (0, 1), "data_seeds": (5, 6)})
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 0
    table = records(tmp_path)
    assert set(table["architecture"]) == {kind["architecture"] for kind in kinds}
    whole = table[table["init_seed"].isna() & (table["null"] == "")]
    for kind in kinds:
        own = whole[whole["architecture"] == kind["architecture"]]
        last = own[own["step"] == own["step"].max()].set_index("metric")["value"]
        first = own[own["step"] == 0].set_index("metric")["value"]
        assert last["explained_variance"] > first["explained_variance"]
        assert {"pwmcc", "fourier_overlap"} <= set(last.index)
    pca = whole[(whole["architecture"] == "pca") & (whole["metric"] == "pwmcc")]
    assert pca[pca["step"] > 0]["value"].tolist() == pytest.approx([1.0] * (pca["step"].nunique() - 1), abs=1e-5)
    assert "k-means" in (tmp_path / "results" / "summary.md").read_text()


def test_cells_that_exit_early_are_measured_at_half_of_what_they_did(tmp_path):
    training = {"steps": 20, "batch_size": 512, "early_exit": 3}
    kinds = ({"architecture": "ica", "d_sae": 4}, {"architecture": "topk", "d_sae": 32, "k": 2})
    entries = [{"sae": sae, "training": training} for sae in kinds]
    suite = SuiteConfig.parse({**SUITE, "entries": entries, "analysis": {**SUITE["analysis"], "curve": []}})
    assert run_suite(suite, tmp_path / "results", tmp_path / "runs", Ways(jobs=1)) == 0
    found = sorted((tmp_path / "runs").glob("*/records.parquet"))
    assert len(found) == 2
    for path in found:
        assert set(pd.read_parquet(path)["step"]) == {0, 1, 3}
