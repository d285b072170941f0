"""Suites, axes, SAE configs, recipes of models and overrides: mutated as text and as data."""

import tempfile
from pathlib import Path

import pytest
import yaml
from fuzz_cases import case, fuzz, run
from fuzz_mutate import damaged_bytes, damaged_data, values
from hypothesis import given
from hypothesis import strategies as st

from husai import workflow

SAE = {"architecture": "topk", "d_sae": 16, "k": 2, "k_aux": 2, "dead_steps": 4}
TRAINING = {"steps": 12, "batch_size": 16, "lr": 0.001}
ENTRY = {"sae": SAE, "training": TRAINING}
RELU = {"sae": {"architecture": "relu", "d_sae": 16, "l1_coefficient": 1.0}, "training": TRAINING}
PLANTED = {"planted": {"d_model": 8, "n_atoms": 8, "k": 2, "samples": 64, "magnitudes": [0.5, 1.5], "seed": 1}}
CIRCLES = {"circles": {"d_model": 16, "p": 11, "frequencies": [1, 3], "radii": [1.0, 2.0], "noise": 0.1, "repeats": 2}}
SUITE = {
    "name": "fuzz",
    "models": [
        {"name": "atoms", "model": PLANTED},
        {"name": "circles", "model": CIRCLES, "entries": [RELU]},
        {"name": "clock", "model": {"kind": "clock", "keys": [2]}, "hooks": ["mlp_out"]},
    ],
    "controls": [{"kind": "surrogate", "seed": 0}],
    "entries": [ENTRY],
    "init_seeds": [0, 1],
    "data_seeds": [0, 1],
    "analysis": {"curve": [0, 4], "null_draws": 2},
}
AXES = {
    "name": "fuzz",
    "base": {"name": "atoms", "model": PLANTED, **ENTRY},
    "axes": {"sae.k": [1, 2], "sae.d_sae, training.steps": [[16, 3], [32, 4]], "training.lr": ["1e-3", 0.01]},
    "include": [{"sae.k": 3}, {"sae": {"architecture": "relu"}}],
    "exclude": [{"sae.k": 1, "sae.d_sae": [16]}],
}
KINDS = [
    *(SAE, {"architecture": "batchtopk", "d_sae": 16, "k": 2}, {"architecture": "relu", "d_sae": 16}),
    {"architecture": "jumprelu", "d_sae": 16, "bandwidth": 0.5, "initial_threshold": 0.1},
    {"architecture": "matryoshka", "d_sae": 16, "k": 2, "widths": [4, 16]},
    {"architecture": "blocktopk", "d_sae": 16, "k": 2, "group_size": 2, "k_aux": 2},
    *({"architecture": "gated", "d_sae": 16}, {"architecture": "pca"}, {"architecture": "kmeans", "d_sae": 4}),
]
MODELS = [
    {
        "task": {"op": "add", "p": 5},
        "transformer": {"layout": "abe", "d_model": 8, "n_heads": 2, "d_mlp": 8},
        "training": {"steps": 2, "batch_size": 4, "lr": 0.001, "frac_train": 0.5, "log_every": 1},
    },
    {"p": 5, "recurrent": {"cell": "gru", "d_hidden": 4}, "walks": {"length": 2}, "training": {"steps": 2}},
]


@st.composite
def texts(draw, data) -> bytes:
    """A config file: valid data that were damaged and written down, or valid text that was damaged."""
    if not draw(st.integers(0, 15)):
        return draw(st.sampled_from([b"[" * 5000, b"a: " + b"{b: " * 3000, b"? " * 2000, b"- " * 20000, b"a:\n" * 9]))
    if draw(st.integers(0, 3)):
        text = yaml.safe_dump(draw(damaged_data(data)), sort_keys=False, allow_unicode=True)
        return text.encode(errors="surrogatepass")
    return draw(damaged_bytes(yaml.safe_dump(data, sort_keys=False).encode()))


def folder_with(content: bytes) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (folder / "it.yaml").write_bytes(content)
    return folder


def sweep(kind: str, content: bytes, *overrides: str) -> None:
    folder = folder_with(content)
    case(
        kind,
        folder,
        "sweep",
        folder / "it.yaml",
        "--dry-run",
        "--runs",
        folder / "runs",
        "--out",
        folder / "out",
        *overrides,
    )


@pytest.mark.parametrize("start", [SUITE, AXES])
def test_what_suites_are_mutated_from_is_valid(start):
    folder = folder_with(yaml.safe_dump(start).encode())
    path, places = folder / "it.yaml", ("--runs", folder / "runs", "--out", folder / "out")
    done = run("sweep", path, "--dry-run", *places)
    assert done.code == 0, done.err


@fuzz
@given(texts(SUITE))
def test_suites(content):
    sweep("suite configs", content)


@fuzz
@given(texts(AXES))
def test_axes(content):
    sweep("axes", content)


@fuzz
@given(st.data())
def test_overrides(data):
    key = data.draw(
        st.sampled_from(
            ["base.sae.k", "axes.sae.k", "axes", "name", "init_seeds", "base.model.planted", "a.b", "", "."]
        )
    )
    extra = data.draw(st.sampled_from(["", "", "x", ".x", "..", "," * 3, "." * 100, "\u202e"]))
    value = data.draw(
        st.one_of(values().map(lambda v: yaml.safe_dump(v, default_flow_style=True)), st.text(max_size=12))
    )
    text = f"{key}{extra}{data.draw(st.sampled_from(['=', '=', '=', '', '==']))}{value}".replace("\x00", "")
    text = text.encode(errors="replace").decode().lstrip("-")
    sweep("overrides", yaml.safe_dump(AXES, sort_keys=False).encode(), text)


@fuzz
@given(st.data())
def test_sae_configs(store, data):
    start = {"sae": data.draw(st.sampled_from(KINDS)), "training": TRAINING, "init_seeds": [0], "data_seeds": [0]}
    folder = folder_with(data.draw(texts(start)))
    train = ("sae", "train", "--shard-dir", store, "--config", folder / "it.yaml", "--dry-run", "--quiet")
    case("SAE configs", folder, *train, "--out", folder / "out")


@pytest.fixture
def three_steps(monkeypatch):
    """Whatever is trained here is trained for three steps: a default of 1500 is no hang."""
    train = workflow.train

    def briefly(recipe, **more):
        steps = min(recipe.training.steps, 3)
        return train(
            recipe.model_copy(update={"training": recipe.training.model_copy(update={"steps": steps})}), **more
        )

    monkeypatch.setattr(workflow, "train", briefly)


@fuzz
@given(st.data())
def test_model_recipes(three_steps, data):
    folder = folder_with(data.draw(texts(data.draw(st.sampled_from(MODELS)))))
    train = ("model", "train", "--config", folder / "it.yaml", "--attempts", 1, "--quiet")
    case("model recipes", folder, *train, "--out", folder / "out")
