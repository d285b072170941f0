"""Results folders: tables, texts and arrays, as `report`, `plan` and `findings` read them."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fuzz_cases import case, fuzz
from fuzz_mutate import damaged_bytes, damaged_data, damaged_frame
from hypothesis import given
from hypothesis import strategies as st

TEMPLATE = """{% set s = suite("fuzz") %}
{{ s.cell(architecture="topk").value("pwmcc") }} of {{ s.cells().count }}
"""


@pytest.fixture(autouse=True)
def unsaved(monkeypatch):
    """Figures are drawn and written as empty files: what would be rendered takes seconds a figure."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _self, path, **_: Path(path).write_bytes(b""))


def spoil(data, folder: Path) -> None:
    """One file of a results folder becomes another."""
    names = ["records.parquet"] * 4 + ["atoms.parquet"] * 2 + ["costs.parquet", "cells.json", "gate.json", "truth.json"]
    names += [f"arrays/{path.name}" for path in (folder / "arrays").iterdir()]
    path = folder / data.draw(st.sampled_from(sorted(names)))
    how = data.draw(st.sampled_from(["damage"] * 8 + ["bytes", "bytes", "gone", "other"]))
    if how == "gone":
        path.unlink()
    elif how == "other":
        shutil.copy(
            folder / data.draw(st.sampled_from(["atoms.parquet", "cells.json", "truth.json"])), folder / "other"
        )
        (folder / "other").replace(path)
    elif how == "bytes":
        path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    elif path.suffix == ".parquet":
        data.draw(damaged_frame(pd.read_parquet(path))).to_parquet(path, index=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps(data.draw(damaged_data(json.loads(path.read_text()))), default=str))
    else:
        spoil_arrays(data, path)


def spoil_arrays(data, path: Path) -> None:
    with np.load(path) as stored:
        arrays = dict(stored)
    name = data.draw(st.sampled_from(sorted(arrays)))
    array = arrays.pop(name)
    how = data.draw(st.sampled_from(["drop", "rename", "shape", "type", "nan", "empty", "pickle"]))
    if how == "rename":
        arrays["x"] = array
    elif how != "drop":
        arrays[name] = {
            "shape": array[None],
            "type": array.astype(str),
            "nan": np.full(array.shape, np.nan),
            "empty": array[:0],
            "pickle": np.array([{"a": 1}], dtype=object),
        }[how]
    np.savez_compressed(path, **arrays)


def copied(results: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    shutil.copytree(results, folder / "fuzz")
    return folder


@fuzz
@given(st.data())
def test_report(results, data):
    folder = copied(results)
    spoil(data, folder / "fuzz")
    case("results, report", folder, "report", folder / "fuzz", "--out", folder / "out")


@fuzz
@given(st.data())
def test_plan(results, data):
    folder = copied(results)
    spoil(data, folder / "fuzz")
    metric = data.draw(st.sampled_from(["pwmcc", "explained_variance", "", "x", "../x"]))
    case("results, plan", folder, "plan", folder / "fuzz", "--metric", metric, "--json")


@fuzz
@given(st.data())
def test_findings(results, data):
    folder = copied(results)
    spoil(data, folder / "fuzz")
    (folder / "text.md.j2").write_text(TEMPLATE)
    case(
        "results, findings",
        folder,
        "findings",
        "--template",
        folder / "text.md.j2",
        "--results",
        folder,
        "--out",
        folder / "F.md",
    )
