"""Valid inputs to start from, and the table of cases at the end of `make fuzz`."""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))  # test modules have no package; their helpers are found by name

from fuzz_cases import run, table

from husai.config import RecurrentConfig, TransformerConfig
from husai.recurrent.model import Recurrent
from husai.recurrent.model import init_params as recurrent_params
from husai.recurrent.walks import Walks
from husai.recurrent.weights import save_recurrent
from husai.seeding import generator
from husai.transformer.model import Transformer, init_params
from husai.transformer.weights import save_weights

RESULTS = Path(__file__).parents[2] / "results"
D, LATENTS = 8, 16
SAE = {"architecture": "topk", "d_sae": LATENTS, "k": 2, "k_aux": 2, "dead_steps": 4}
TRAINING = {"steps": 12, "batch_size": 16, "checkpoint_every": 4}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """One thread, and warnings are no errors: what libraries warn of goes where the command sends it."""
    monkeypatch.setattr("torch.set_num_threads", lambda _count: None)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """A folder of 64 rows of D numbers."""
    folder = tmp_path_factory.mktemp("store")
    save_file({"x": torch.randn(64, D, generator=generator("fuzz", 0))}, folder / "a.safetensors")
    return folder


@pytest.fixture(scope="session")
def sae_lens() -> None:
    """SAELens is there: importing it takes longer than a case may."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sae_lens  # noqa: F401


@pytest.fixture(scope="session")
def saes(sae_lens, store, tmp_path_factory) -> Path:
    """A run folder of two SAEs, seed-0-0 and seed-1-1, and its checkpoints in `checkpoints`."""
    place = tmp_path_factory.mktemp("saes")
    settings = [
        *(f"sae.{key}={value}" for key, value in SAE.items()),
        *(f"training.{k}={v}" for k, v in TRAINING.items()),
    ]
    train = ("sae", "train", "--shard-dir", store, "--seeds", 2, "--quiet")
    kept: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("husai.sae.checkpoint.Checkpoints.remove", lambda self: kept.append(self.folder))
        done = run(*train, "--out", place / "run", *settings)
    assert done.code == 0, done.err
    shutil.move(kept[0], place / "checkpoints")
    (place / "settings").write_text(json.dumps(settings))
    return place


@pytest.fixture(scope="session")
def foreign(tmp_path_factory) -> Path:
    """Folders sparsify/ and, one a class, of dictionary_learning."""
    place, stream = tmp_path_factory.mktemp("foreign"), generator("fuzz", 1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream)

    (place / "sparsify").mkdir()
    tensors = {"encoder.weight": drawn(LATENTS, D), "encoder.bias": drawn(LATENTS), "W_dec": drawn(LATENTS, D)}
    save_file(tensors | {"b_dec": drawn(D)}, place / "sparsify" / "sae.safetensors")
    stated = {"activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": LATENTS, "k": 2}
    (place / "sparsify" / "cfg.json").write_text(json.dumps(stated | {"d_in": D, "skip_connection": False}))
    linear = {"encoder.weight": drawn(LATENTS, D), "encoder.bias": drawn(LATENTS), "decoder.weight": drawn(D, LATENTS)}
    chosen = {"k": torch.tensor(2, dtype=torch.int), "threshold": torch.tensor(0.5)}
    matrices = {"W_enc": drawn(D, LATENTS), "b_enc": drawn(LATENTS), "W_dec": drawn(LATENTS, D), "b_dec": drawn(D)}
    classes = {
        "AutoEncoder": linear | {"bias": drawn(D)},
        "AutoEncoderTopK": linear | {"b_dec": drawn(D)} | chosen,
        "JumpReluAutoEncoder": matrices | {"threshold": drawn(LATENTS)},
    }
    for name, tensors in classes.items():
        (place / name).mkdir()
        torch.save(tensors, place / name / "ae.pt")
        trainer = {"dict_class": name, "activation_dim": D, "dict_size": LATENTS, "lm_name": "m", "layer": 3, "k": 2}
        (place / name / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"d_submodule": D}}))
    return place


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Weights of tiny untrained models: transformer.safetensors, transformer.pt, recurrent.safetensors."""
    place = tmp_path_factory.mktemp("models")
    params = init_params(TransformerConfig(d_model=8, n_heads=2, d_mlp=8), 5, generator=generator("fuzz", 2))
    save_weights(Transformer(params, "abe", 5, name="fuzz"), place / "transformer.safetensors")
    torch.save(params, place / "transformer.pt")
    shape = RecurrentConfig.parse({"p": 5, "recurrent": {"d_hidden": 8}})
    weights = recurrent_params(shape.recurrent, 5, generator=generator("fuzz", 3))
    save_recurrent(Recurrent(weights, "gru", Walks(5, shape.walks), name="fuzz"), place / "recurrent.safetensors")
    return place


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """Two cells of the suite default, TopK and ReLU at one hook, as a results folder called `fuzz`."""
    source, folder = RESULTS / "default", tmp_path_factory.mktemp("results") / "fuzz"
    (folder / "arrays").mkdir(parents=True)
    cells = ["ac340fd3f148", "a71f97333458"]
    for name in ("records", "atoms", "costs"):
        rows = pd.read_parquet(source / f"{name}.parquet")
        rows[rows["run_id"].isin(cells)].to_parquet(folder / f"{name}.parquet", index=False)
    for name in ("gate.json", "truth.json"):
        shutil.copy(source / name, folder)
    (folder / "cells.json").write_text(json.dumps(cells))
    for cell in cells:
        with np.load(source / "arrays" / f"{cell}.npz") as arrays:
            np.savez_compressed(folder / "arrays" / f"{cell}.npz", **arrays)
    return folder


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of cases, on the terminal and in the file that FUZZ_REPORT names."""
    text = table()
    if text.count("\n") > 3 and "FUZZ_CASES" in os.environ:
        terminalreporter.write_line(f"\n{text}")
        if path := os.environ.get("FUZZ_REPORT"):
            Path(path).write_text(text, encoding="utf-8")
