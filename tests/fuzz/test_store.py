"""A folder of runs: run folders, leases of others, notes of failures, as `husai runs` reads them."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from fuzz_cases import case, fuzz
from fuzz_mutate import damaged_bytes, damaged_data
from hypothesis import given
from hypothesis import strategies as st

from husai.store.failures import note_failure
from husai.store.lease import Lease
from husai.store.places import failure_path, lease_path

RUN, OTHER = "0123456789ab", "ba9876543210"


@pytest.fixture(scope="session")
def runs(saes, tmp_path_factory) -> Path:
    """A finished run, and one that failed and whose lease someone holds."""
    folder = tmp_path_factory.mktemp("runs") / "runs"
    shutil.copytree(saes / "run", folder / RUN)
    note_failure(folder / OTHER, "a cell", "an error")
    lease = Lease.take(lease_path(folder / OTHER), about="a cell", beat_every=600)
    assert lease is not None
    kept = {path: path.read_bytes() for path in lease_path(folder / OTHER).parent.iterdir()}
    lease.release()
    for path, content in kept.items():
        path.write_bytes(content)
    return folder


def spoil(data, path: Path) -> None:
    content = path.read_bytes()
    if path.suffix == ".json" and data.draw(st.integers(0, 3)):
        path.write_text(json.dumps(data.draw(damaged_data(json.loads(content))), default=str))
    elif content:
        path.write_bytes(data.draw(damaged_bytes(content)))
    else:
        path.write_bytes(data.draw(st.binary(max_size=64)))


COMMANDS = (
    ("list",),
    ("list", "--check", "--json"),
    ("show", RUN),
    ("show", OTHER, "--json"),
    ("verify",),
    ("gc", "--dry-run"),
)


def looked_at(kind: str, runs: Path, data, *names: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    place = shutil.copytree(runs, folder / "runs")
    spoil(data, place / data.draw(st.sampled_from(names)))
    command = data.draw(st.sampled_from(COMMANDS))
    more = ("--results", folder / "results") if command[0] == "gc" else ()
    if more:
        (folder / "results").mkdir()
    case(kind, folder, "runs", *command, "--runs", place, *more)


@fuzz
@given(st.data())
def test_run_folders(runs, data):
    names = ("config.yaml", "metrics.json", "provenance.json", "DONE", "history.csv", "seed-0-0/cfg.json")
    looked_at("run folders", runs, data, *(f"{RUN}/{name}" for name in names))


@fuzz
@given(st.data())
def test_leases_and_failures(runs, data):
    names = (lease_path(runs / OTHER), failure_path(runs / OTHER))
    looked_at("leases and failure notes", runs, data, *(str(name.relative_to(runs)) for name in names))
