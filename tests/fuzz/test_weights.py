"""Files of tensors: models, SAEs of every format, checkpoints."""

import json
import shutil
import tempfile
from pathlib import Path

from fuzz_cases import case, fuzz
from fuzz_mutate import damaged_bytes, damaged_data, damaged_tensors
from hypothesis import given
from hypothesis import strategies as st


def copied(source: Path, name: str = "it") -> Path:
    """A folder of its own, with a copy of `source` in it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    place = folder / name
    if source.is_dir():
        shutil.copytree(source, place)
    else:
        shutil.copy(source, place.with_suffix(source.suffix))
    return folder


def spoil(data, path: Path) -> None:
    """One file in a folder becomes another."""
    content = path.read_bytes()
    how = data.draw(st.sampled_from(["damage"] * 6 + ["other", "gone", "folder"]))
    if how == "gone":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "other":
        path.write_bytes(
            data.draw(st.sampled_from([b"PK\x03\x04" + content, b"\x89PNG", b"{}", b"[]", b"\x80\x02}q\x00.", b"null"]))
        )
    elif path.suffix == ".safetensors":
        path.write_bytes(data.draw(damaged_tensors(content)))
    elif path.suffix == ".json" and data.draw(st.integers(0, 3)):
        path.write_text(json.dumps(data.draw(damaged_data(json.loads(content))), default=str))
    else:
        path.write_bytes(data.draw(damaged_bytes(content)))


@fuzz
@given(st.data())
def test_models(models, data):
    name = data.draw(st.sampled_from(["transformer.safetensors", "recurrent.safetensors", "transformer.pt"]))
    folder = copied(models / name)
    path = folder / Path("it").with_suffix(Path(name).suffix)
    spoil(data, path)
    case("model weights", folder, "model", "verify", path, "--json")


@fuzz
@given(st.data())
def test_saes_of_saelens(saes, data):
    folder = copied(saes / "run" / "seed-0-0")
    spoil(data, folder / "it" / data.draw(st.sampled_from(["cfg.json", "cfg.json", "sae_weights.safetensors"])))
    case("SAELens folders", folder, "compare", folder / "it", saes / "run" / "seed-1-1")


@fuzz
@given(st.data())
def test_saes_on_samples(saes, store, data):
    folder = copied(saes / "run" / "seed-0-0")
    spoil(data, folder / "it" / data.draw(st.sampled_from(["cfg.json", "sae_weights.safetensors"])))
    case("SAELens folders, scored", folder, "sae", "score", folder / "it", "--shard-dir", store, "--json")


@fuzz
@given(st.data())
def test_saes_of_sparsify(foreign, data):
    folder = copied(foreign / "sparsify")
    spoil(data, folder / "it" / data.draw(st.sampled_from(["cfg.json", "sae.safetensors"])))
    case("sparsify folders", folder, "compare", folder / "it", foreign / "AutoEncoderTopK")


@fuzz
@given(st.data())
def test_saes_of_dictionary_learning(foreign, store, data):
    folder = copied(foreign / data.draw(st.sampled_from(["AutoEncoder", "AutoEncoderTopK", "JumpReluAutoEncoder"])))
    spoil(data, folder / "it" / data.draw(st.sampled_from(["config.json", "ae.pt"])))
    case("dictionary_learning folders", folder, "compare", folder / "it", foreign / "sparsify", "--shard-dir", store)


@fuzz
@given(st.data())
def test_checkpoints(saes, store, data):
    folder = copied(saes / "checkpoints")
    names = sorted(path.name for path in (folder / "it").iterdir())
    for name in names if data.draw(st.booleans()) else [data.draw(st.sampled_from(names))]:
        spoil(data, folder / "it" / name)
    settings = json.loads((saes / "settings").read_text())
    train = ("sae", "train", "--shard-dir", store, "--seeds", 2, "--quiet", "--resume-from", folder / "it")
    done = case("checkpoints", folder, *train, "--out", folder / "out", *settings)
    assert done.code == 2 or (folder / "out" / "DONE").exists()


@fuzz
@given(st.data())
def test_stores(store, saes, data):
    folder = copied(store)
    spoil(data, folder / "it" / "a.safetensors")
    case("stores of activations", folder, "sae", "score", saes / "run", "--shard-dir", folder / "it", "--json")
