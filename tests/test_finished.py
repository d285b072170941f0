"""Folders of finished SAEs, scored without training."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from husai.activations import extract
from husai.config import SAEConfig
from husai.errors import HusaiError
from husai.finished import sae_folders, score_folders
from husai.runs import load_model
from husai.sae.train import train_saes
from husai.workflow import save_ensemble


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of three seeds, 0, 2 and 10, of SAEs of a small compiled model; the model beside it."""
    from husai.config import CompiledConfig
    from husai.workflow import compile_run

    place = tmp_path_factory.mktemp("finished")
    config = {"task": {"op": "add", "p": 29}, "kind": "clock", "keys": [8, 9, 12]}
    compile_run(CompiledConfig.parse(config), place / "clock")
    loaded = load_model(str(place / "clock"))
    sae = {"architecture": "topk", "d_sae": 32, "k": 4, "k_aux": 4, "dead_steps": 10}
    training = {"steps": 40, "batch_size": 256, "lr": 5e-3}
    seeds = [0, 10, 2]
    chosen = SAEConfig.parse({"sae": sae, "training": training, "init_seeds": seeds, "data_seeds": seeds})
    trained = train_saes(extract(loaded.model, loaded.task, "resid_post").x, chosen)
    save_ensemble(trained, chosen, place / "run", {"hook_name": "blocks.0.hook_resid_post"})
    for name, d in (("store", 128), ("narrow", 64)):
        (place / name).mkdir()
        torch.save(torch.randn(400, d, generator=torch.Generator().manual_seed(0)), place / name / "a.pt")
    return place


def test_a_folder_stands_for_the_saes_in_it_in_order_of_their_numbers(run):
    names = [path.name for path in sae_folders([run / "run"])]
    assert names == ["seed-0-0", "seed-2-2", "seed-10-10"]
    assert sae_folders([run / "run" / "seed-2-2", run / "run" / "seed-0-0"]) == [
        run / "run" / "seed-2-2",
        run / "run" / "seed-0-0",
    ]


def test_the_command_prints_means_and_agreement_and_writes_every_number(run, capsys, monkeypatch):
    from husai.cli import main

    monkeypatch.chdir(run)
    monkeypatch.setattr("sys.argv", ["husai"])
    with pytest.raises(SystemExit) as end:
        main(["sae", "score", "run", "--model", "clock", "--json", "--out", "table"])
    assert end.value.code in (0, None)
    scores = json.loads(capsys.readouterr().out)
    assert all(set(score) == {"value", "nulls", "adjusted"} for score in scores.values())
    assert {"ambient", "data", "data_points"} <= set(scores["pwmcc"]["nulls"])
    assert set(scores["pwmcc"]["nulls"]) == set(scores["pwmcc"]["adjusted"])
    table = pd.read_csv(run / "table" / "scores.csv", keep_default_na=False)
    plain = table[(table["metric"] == "l0") & (table["null"] == "")]
    assert plain["sae"].tolist() == ["run/seed-0-0", "run/seed-2-2", "run/seed-10-10", ""]
    assert plain["value"].astype(float).iloc[:3].mean() == pytest.approx(scores["l0"]["value"])
    pairs = table[(table["metric"] == "pwmcc") & (table["sae_b"] != "")]
    assert pairs[["sae", "sae_b"]].values.tolist()[0] == ["run/seed-0-0", "run/seed-2-2"]
    assert pairs["value"].astype(float).mean() == pytest.approx(scores["pwmcc"]["value"])


def test_on_a_store_there_is_fit_and_agreement_and_no_truth(run):
    scored = score_folders([run / "run"], None, shard_dir=run / "store")
    assert {"explained_variance", "l0", "pwmcc"} <= set(scored.scores)
    assert "fourier_overlap" not in scored.scores
    assert scored.scores["explained_variance"].value < 0.5, "noise is not what they were trained on"


@pytest.mark.parametrize(
    ("folders", "model", "store", "message"),
    [
        (["run", "run/seed-0-0"], "clock", None, "run/seed-0-0: is named twice"),
        (["store"], "clock", None, "store: is not a SAELens folder"),
        (["nowhere"], "clock", None, "nowhere: is not a SAELens folder"),
        (["run"], None, None, r"needs a model \(--model\) or a store of activations \(--shard-dir\), one of them"),
        (["run"], "clock", "store", "one of them"),
        (["run"], None, "narrow", "run/seed-0-0: encodes 128 dimensions, but narrow has 64"),
    ],
)
def test_what_does_not_belong_together_is_a_sentence(run, monkeypatch, folders, model, store, message):
    monkeypatch.chdir(run)
    with pytest.raises(HusaiError, match=message):
        score_folders([Path(folder) for folder in folders], model, shard_dir=store and Path(store))


def test_a_store_of_another_hook_and_a_table_that_cannot_be_written_are_sentences(run, tmp_path):
    from husai.finished import write_scores
    from husai.shards import StoreWriter

    with StoreWriter(tmp_path / "mlp", {"hook_name": "blocks.0.hook_mlp_out"}) as writer:
        writer.append(torch.randn(64, 128))
    with pytest.raises(
        HusaiError, match=r"was trained on hook blocks\.0\.hook_resid_post, but .* of hook blocks\.0\.hook_mlp_out"
    ):
        score_folders([run / "run" / "seed-0-0"], None, shard_dir=tmp_path / "mlp")
    (tmp_path / "file").write_text("")
    scored = score_folders([run / "run" / "seed-0-0"], None, shard_dir=run / "store")
    with pytest.raises(HusaiError, match=r"file/scores\.csv: cannot be written"):
        write_scores(scored, tmp_path / "file")
