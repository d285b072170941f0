"""Attacks by name: code in files, names that leave their folder, texts that multiply, and sizes that no machine has."""

import json
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzz_cases import case, run
from safetensors.torch import load_file, save_file

from husai.sae.checkpoint import Checkpoints

PLANTED = {"d_model": 8, "n_atoms": 8, "k": 2, "samples": 64}
SUITE = {"name": "s", "model": {"planted": PLANTED}, "entries": [{"sae": {"architecture": "topk", "d_sae": 8, "k": 1}}]}
QUICK = 20  # seconds that a refusal may take on a busy machine; what it prevents would take hours


def written(folder: Path, text: str | dict) -> Path:
    path = folder / "it.yaml"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def swept(folder: Path, text: str | dict, *more: str) -> str:
    """The sentence with which a sweep of this file is refused."""
    path, start = written(folder, text), time.perf_counter()
    done = case("named attacks", folder, "sweep", path, *more, "--runs", folder / "runs", "--out", folder / "out")
    assert done.code == 2, done.out
    assert time.perf_counter() - start < QUICK
    return done.err


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_in_a_pt_file_is_never_run(tmp_path, foreign, protocol, zipped):
    canary, bomb = tmp_path / "canary", Bomb(tmp_path / "canary")
    folder = tmp_path / "sae"
    folder.mkdir()
    (folder / "config.json").write_bytes((foreign / "AutoEncoder" / "config.json").read_bytes())
    for path in (folder / "ae.pt", tmp_path / "model.pt"):
        if zipped:
            torch.save({"encoder.weight": bomb}, path, pickle_protocol=protocol)
        else:
            path.write_bytes(pickle.dumps({"encoder.weight": bomb}, protocol=protocol))
    other = foreign / "AutoEncoderTopK"
    for command in (("compare", folder, other), ("model", "verify", tmp_path / "model.pt")):
        done = case("named attacks", tmp_path, *command)
        assert done.code == 2
        assert "only plain tensors are read" in done.err
    assert not canary.exists()
    pickle.loads(pickle.dumps(bomb))
    assert canary.exists(), "the bomb is one"


def test_a_pickle_in_the_arrays_of_results_is_never_run(tmp_path, results):
    import shutil

    folder = tmp_path / "fuzz"
    shutil.copytree(results, folder)
    path = next((folder / "arrays").iterdir())
    np.savez(path, pwmcc=np.array([Bomb(tmp_path / "canary")], dtype=object))
    done = case("named attacks", tmp_path, "report", folder, "--out", tmp_path / "out")
    assert done.code == 2
    assert "is a pickle" in done.err
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"]
)
def test_tags_of_yaml_run_nothing(tmp_path, tag):
    canary = tmp_path / "canary"
    said = swept(tmp_path, f"name: {tag} ['touch {canary}']\n")
    assert "is not valid YAML" in said
    assert "override" in swept(tmp_path, SUITE, f"name={tag} ['touch {canary}']")
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/b", "..", ".", "", "a\\b", "~x", "CON:", "é", "x" * 300 + "/"]
)
def test_a_suites_name_is_no_path(tmp_path, name):
    assert "'name'" in swept(tmp_path, SUITE | {"name": name})


def test_nul_is_no_character_of_a_config(tmp_path):
    assert "control character U+0000" in swept(tmp_path, 'name: "a\\0b"\n')
    assert "control character U+D800" in swept(tmp_path, 'name: "a\\ud800b"\n')
    assert "is not valid YAML" in swept(tmp_path, "name: a\x00b\n")


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", "a b"])
def test_a_models_name_is_no_path(tmp_path, name):
    subject = {"name": name, "model": {"planted": PLANTED}}
    assert "'models.0.name'" in swept(tmp_path, {"name": "s", "models": [subject], "entries": SUITE["entries"]})
    base = {**subject, **SUITE["entries"][0]}
    assert "'name'" in swept(tmp_path, {"name": "s", "base": base})


def test_names_within_results_do_not_leave_the_report(tmp_path, results, monkeypatch):
    import shutil

    folder = tmp_path / "deep" / "fuzz"
    shutil.copytree(results, folder)
    for name in ("records", "atoms"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        table["architecture"] = "../../../../escaped"
        table.to_parquet(folder / f"{name}.parquet")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "deep"))
    before = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    done = run("report", folder, "--out", folder / "out")
    assert done.code == 0, done.err
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} == before
    assert any("escaped" in path.name for path in (folder / "out" / "matrices").iterdir())


def test_aliases_that_multiply_are_refused_before_they_are_written_out(tmp_path):
    lists = ["a0: &a0 [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"]
    lists += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert "e+30 values with its aliases written out" in swept(tmp_path, "\n".join(lists))
    merges = ["m0: &m0 {a: 1, b: 2}"] + [
        f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 30)
    ]
    assert "values with its aliases written out" in swept(tmp_path, "\n".join(merges))
    assert "an alias within what it stands for" in swept(tmp_path, "a: &a [*a]")
    assert "an alias within what it stands for" in swept(tmp_path, "a: &a\n  <<: *a\n")


def test_aliases_and_merges_that_stay_small_are_as_good_as_ever(tmp_path):
    text = """
name: s
model: {planted: &p {d_model: 8, n_atoms: 8, k: 2, samples: 64}}
entries:
  - sae: &sae {architecture: topk, d_sae: 8, k: 1}
    training: &training {batch_size: 16}
  - sae: {<<: *sae, k: 2}
    training: *training
"""
    done = run("sweep", written(tmp_path, text), "--dry-run", "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 2020-13-45", "is not valid YAML (month must be in 1..12"),
        ("a: " + "9" * 5000, "holds a whole number of 5000 digits"),
        ("a: 0x" + "f" * 5000, "holds a whole number of 5002 digits"),
        ("[" * 20000, "levels deep"),
        ("a: 1\na: 2", "key 'a' stands twice"),
        ("? [a]\n: 1", "is not valid YAML"),
        ("- " * 100, "levels deep"),
        ("a: b\n---\nc: d", "is not valid YAML"),
        ("name: x\n" + "#" * 2**21, "is larger than 1048576 bytes"),
    ],
)
def test_odd_texts_are_refused_in_words(tmp_path, text, said):
    assert said in swept(tmp_path, text)


def test_a_config_that_never_ends_is_not_read_to_its_end(tmp_path):
    done = run("sweep", "/dev/zero", "--dry-run", "--runs", tmp_path / "runs", "--out", tmp_path / "out")
    assert done.code == 2


@pytest.mark.parametrize(
    ("sae", "training", "said"),
    [
        ({"d_sae": 10**12}, {}, "'entries.0.sae.d_sae': must be less than or equal to 1000000000, got 1000000000000"),
        (
            {},
            {"steps": 10**15},
            "'entries.0.training.steps': must be less than or equal to 1000000000, got 1000000000000000",
        ),
        ({}, {"batch_size": 10**10}, "batch_size': must be less than or equal to 1000000000, got 10000000000"),
        ({}, {"lr": float("inf")}, "'entries.0.training.lr': must be a finite number"),
    ],
)
def test_absurd_sizes_of_a_suite_are_refused_by_its_config(tmp_path, sae, training, said):
    text = json.dumps(SUITE | {"entries": [{"sae": SUITE["entries"][0]["sae"] | sae, "training": training}]})
    assert said in swept(tmp_path, text.replace("Infinity", ".inf"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"d_sae": 10**9}, "5 SAE(s) of d_sae 1000000000 on 8 dimensions takes at least"),
        ({"d_sae": 10**8, "k": 3}, "5 SAE(s) of d_sae 100000000 on 8 dimensions takes at least"),
    ],
)
def test_an_sae_that_fits_no_machine_is_refused_before_it_is_made(tmp_path, store, change, said):
    settings = [f"sae.{name}={value}" for name, value in ({"architecture": "topk"} | change).items()]
    command = ("sae", "train", "--shard-dir", store, "--seeds", 5, "--quiet", "training.batch_size=16", *settings)
    done = case("named attacks", tmp_path, *command, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.err


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"task": {"p": 10**7}}, "p: 10000000 is not allowed"),
        ({"task": {"p": 10**30 + 57}}, str(10**30 + 57)),
        ({"task": {"p": 11}, "transformer": {"d_model": 10**6, "n_heads": 1}}, "d_model 1000000"),
        ({"p": 11, "recurrent": {"d_hidden": 10**8}}, "d_hidden 100000000"),
        ({"kind": "clock", "keys": [2], "d_model": 10**9}, "d_model 1000000000"),
        ({"planted": PLANTED | {"samples": 10**9}}, "1000000000 samples"),
        ({"planted": PLANTED | {"n_atoms": 10**9}}, "must be less than or equal to 1048576, got 1000000000"),
        ({"circles": {"d_model": 10**9}}, "12769 samples of p 113 and d_model 1000000000"),
        ({"circles": {"p": 10**9 - 1, "repeats": 10**9, "frequencies": [1]}}, "999999999000000000 samples"),
    ],
)
def test_a_model_or_source_that_fits_no_machine_is_refused_before_it_is_made(tmp_path, model, said):
    hooks = {} if {"planted", "circles"} & set(model) else {"hooks": ["mlp_out"]}
    assert said in swept(tmp_path, SUITE | {"model": model} | hooks)


def test_a_header_of_safetensors_that_claims_terabytes_is_refused(tmp_path, saes):
    for claim in (2**63, 2**40):
        for path in (tmp_path / "model.safetensors",):
            path.write_bytes(struct.pack("<Q", claim) + b"{}")
            assert case("named attacks", tmp_path, "model", "verify", path).code == 2
    header = json.dumps({"embed.W_E": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert case("named attacks", tmp_path, "model", "verify", tmp_path / "model.safetensors").code == 2


def test_an_sae_whose_config_claims_more_than_its_weights_is_refused(tmp_path, saes):
    import shutil

    folder = tmp_path / "sae"
    shutil.copytree(saes / "run" / "seed-0-0", folder)
    config = json.loads((folder / "cfg.json").read_text())
    for changed in (config | {"d_sae": 10**12}, config | {"d_in": 10**12, "d_sae": 10**12, "architecture": "standard"}):
        (folder / "cfg.json").write_text(json.dumps(changed))
        done = case("named attacks", tmp_path, "compare", folder, saes / "run" / "seed-1-1")
        assert done.code == 2
        assert "1000000000000" in done.err


def test_an_sae_of_other_names_than_its_folders_stays_in_its_folder(tmp_path, saes):
    tensors = load_file(saes / "run" / "seed-0-0" / "sae_weights.safetensors")
    folder = tmp_path / "sae"
    folder.mkdir()
    config = json.loads((saes / "run" / "seed-0-0" / "cfg.json").read_text())
    config["metadata"] |= {"model_name": "../../x", "hook_name": "/tmp/x", "init_seed": "../x"}
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    case("named attacks", tmp_path, "compare", folder, saes / "run" / "seed-1-1", "--out", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"sae", "out"}


def spoiled(results: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(results, tmp_path / "fuzz"))


def reported(folder: Path) -> str:
    start = time.perf_counter()
    done = case("named attacks", folder.parent, "report", folder, "--out", folder.parent / "out")
    assert done.code == 2
    assert time.perf_counter() - start < QUICK
    return done.err


def test_an_array_that_claims_terabytes_is_refused_with_the_number(tmp_path, results):
    folder = spoiled(results, tmp_path)
    for path in (folder / "arrays").iterdir():
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 4), }\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("reliability.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert f"says that it has {2**40 * 32} bytes" in reported(folder)


def test_a_table_that_claims_huge_row_counts_is_refused_with_the_number(tmp_path, results):
    folder = spoiled(results, tmp_path)
    rows = 10**9
    indices = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int8)), pa.array(["x"]))
    table = pa.table({"run_id": pa.chunked_array([indices] * (rows // 10**6 // 10))})
    pq.write_table(table, folder / "records.parquet")
    assert f"says that it has {rows // 10} rows; at most 50000000 are read" in reported(folder)


def test_what_a_file_says_is_shown_on_one_line_and_obeyed_by_no_terminal(tmp_path):
    said = swept(tmp_path, SUITE | {"name": "a\nb\u202e"})
    assert said.count("\n") == 1
    assert "\u202e" not in said
    assert len(swept(tmp_path, SUITE | {"name": "x" * 10**5 + "/"})) < 3000


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"content": 1}', '{"content": "[]"}', '{"content": "{\\"about\\": []}"}', "[" * 10**5]
)
def test_checkpoints_that_say_nothing_are_left_where_they_are(tmp_path, text):
    (tmp_path / "step-000000004.json").write_text(text)
    Checkpoints(tmp_path, {"x": 1}).drop_unless_same("x")
    assert (tmp_path / "step-000000004.json").read_text() == text
