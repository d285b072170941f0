"""Files flipped, cut and emptied: nothing damaged is ever taken for a result, and what is damaged is made anew."""

import json
import shutil

import pytest


def flip(path):
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path):
    """The first half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def remove(path):
    path.unlink()


FILES = (
    *("records.parquet", "atoms.parquet", "arrays.npz", "provenance.json", "metrics.json", "config.yaml"),
    *("history.csv", "health.json", "checksums.json", "DONE", "looks/history.json", "looks/step-000000010.safetensors"),
    *("seed-0-0/sae_weights.safetensors", "seed-1-1/cfg.json"),
)
HOW = {"flipped": flip, "cut": cut, "removed": remove}


@pytest.fixture
def copy(whole, arena):
    """A finished sweep of its own; the log begins anew."""
    for name in ("runs", "results"):
        shutil.copytree(whole.arena.place / name, arena.place / name)
    return arena


def runs(arena):
    return sorted(path.parent for path in arena.store.glob("[!.]*/DONE"))


def test_the_files_to_be_damaged_are_all_there_are(whole):
    for run in runs(whole.arena):
        names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
        assert set(FILES) <= names
        assert {name.rpartition("/")[2].split("-")[0] for name in names} == {
            name.rpartition("/")[2].split("-")[0] for name in FILES
        }


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("first", [pytest.param(0, marks=pytest.mark.handful), *range(3, len(FILES), 3)])
def test_a_damaged_run_is_made_anew(whole, copy, how, first):
    """A damaged file in each of up to three runs that no table has yet."""
    shutil.rmtree(copy.tables)
    damaged = {run.name: run / name for run, name in zip(runs(copy), FILES[first : first + 3], strict=False)}
    for path in damaged.values():
        HOW[how](path)
    copy.finish()
    assert sorted(copy.begun()) == sorted(damaged)
    copy.clean()
    whole.check(copy, f"file of a run {how}")


def test_a_damaged_run_whose_removal_is_interrupted_is_made_anew(whole, copy):
    """Of a run that was half removed, by whatever, only the checksums are left, or only some file."""
    shutil.rmtree(copy.tables)
    one, other, _ = runs(copy)
    for path in [path for path in one.iterdir() if path.name != "checksums.json"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in [path for path in other.iterdir() if path.name != "DONE"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    copy.finish()
    assert sorted(copy.begun()) == sorted([one.name, other.name])
    whole.check(copy, "run half removed")


def test_a_strangers_folder_in_a_runs_place_stays(copy):
    shutil.rmtree(copy.tables)
    place = runs(copy)[0]
    shutil.rmtree(place)
    place.mkdir()
    (place / "thesis.tex").write_text("mine")
    sweep = copy.start()
    assert sweep.wait() == 1
    assert any("exists and is not an empty folder" in said for said in sweep.sentences), sweep.text
    assert (place / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("name", ["records.parquet", "atoms.parquet", "costs.parquet"])
def test_a_damaged_table_is_named_and_stays(whole, copy, name):
    path = copy.tables / name
    cut(path)
    bad = path.read_bytes()
    if name != "records.parquet":  # something is to be merged
        (copy.tables / "records.parquet").unlink()
    sweep = copy.start()
    assert sweep.wait() == 2, sweep.text
    (said,) = sweep.sentences
    assert f"{name}: is not a readable Parquet table" in said
    assert path.read_bytes() == bad
    assert copy.temporary() == []
    path.unlink()
    (copy.tables / "records.parquet").unlink(missing_ok=True)
    copy.finish()
    assert copy.begun() == []
    whole.check(copy, "damaged table")


RUBBISH = {
    "empty": b"",
    "cut": b'{"token": "0123',
    "bytes": bytes(range(256)),
    "deep": b"[" * 100_000,
    "list": b"[1, 2]",
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.handful if kind == "cut" else ()) for kind in RUBBISH]
)
def test_damaged_leases_and_notes_hinder_nobody(whole, arena, kind):
    """Of every cell a lease, and of the results; notes of failure and of families; draws of nulls."""
    for folder in (".leases", ".failed"):
        (arena.store / folder).mkdir(parents=True)
        for run in runs(whole.arena):
            (arena.store / folder / f"{run.name}.json").write_bytes(RUBBISH[kind])
    arena.tables.mkdir()
    (arena.tables / ".lease.json").write_bytes(RUBBISH[kind])
    for family in (whole.arena.store / ".families").iterdir():
        (arena.store / ".families" / family.name / "0123456789ab").mkdir(parents=True)
        (arena.store / ".families" / family.name / "a note").write_bytes(RUBBISH[kind])
    (arena.store / "nulls").mkdir()
    for path in (whole.arena.store / "nulls").iterdir():
        (arena.store / "nulls" / path.name).write_bytes(RUBBISH[kind])
    sweep = arena.start(FAULTS_STALE="0.5")
    assert sweep.wait() == 0, sweep.text
    assert list((arena.store / ".failed").iterdir()) == []
    arena.clean()
    whole.check(arena, "damaged leases, notes and draws")


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_damaged_draws_of_nulls_are_drawn_anew(whole, copy, how):
    shutil.rmtree(copy.tables)
    for run in runs(copy):
        shutil.rmtree(run)
    for path in (copy.store / "nulls").iterdir():
        HOW[how](path)
    copy.finish()
    whole.check(copy, "damaged leases, notes and draws")


def test_a_damaged_run_is_reused_by_nobody(whole, copy):
    """A third seed takes the first two from the finished run, unless that is damaged."""
    suite = {**copy.suite, "init_seeds": [0, 1, 2], "data_seeds": [0, 1, 2]}
    (copy.place / "suite.yaml").write_text(json.dumps(suite))
    copy.results = "clean"
    copy.finish()
    clean = (copy.tables / "records.parquet").read_bytes()
    for run in runs(copy):
        if len(list(run.glob("seed-*"))) == 3:
            assert json.loads((run / "provenance.json").read_text())["seeds_of"], "seeds were to be reused"
            shutil.rmtree(run)
        else:
            flip(run / "looks" / "step-000000010.safetensors")
    copy.results = "damaged"
    copy.log.unlink()
    copy.finish()
    assert (copy.tables / "records.parquet").read_bytes() == clean
    for run in runs(copy):
        if len(list(run.glob("seed-*"))) == 3:
            assert "seeds_of" not in json.loads((run / "provenance.json").read_text())
