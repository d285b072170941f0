import json
import os

import pytest

from husai.errors import HusaiError
from husai.measure.null_cache import NullCache, NullKey, outdated
from husai.store import gc
from husai.store.files import write_atomic
from husai.store.folders import finished
from husai.store.gc import find, remove
from husai.store.lease import Lease
from husai.store.places import checkpoint_folder, failure_path, lease_path
from husai.store.processes import Process

A, B, C, D = (letter * 12 for letter in "abcd")
ELSEWHERE = Process("0" * 8, "1" * 8, 7, 7)


def held(path, process, token="a" * 32):
    content = {"token": token, "host": "h", **process._asdict(), "about": "x"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def temporary(folder, name, process):
    return folder / f".{name}.{process.tag}-00000000"


def paths(found):
    return sorted(str(one.path.name) for one in found.remove)


# --- leftovers


def test_what_the_dead_left_goes_and_what_the_living_write_stays(tmp_path, dead, listing, make_run):
    runs, results = tmp_path / "runs", tmp_path / "results"
    make_run(runs / A, "m")
    (results / "suite" / "arrays").mkdir(parents=True)
    for folder in (runs, results, results / "suite", results / "suite" / "arrays"):
        for process in (dead, Process.here(), ELSEWHERE):
            temporary(folder, "x", process).write_bytes(bytes(10))
    temporary(runs, B, dead).mkdir()
    (temporary(runs, B, dead) / "half").write_text("half")
    found = find(runs, [results])
    assert len(found.remove) == 5
    assert all("which is dead" in one.why for one in found.remove)
    assert [why for _, why in found.kept] == [
        "temporary, of a process on another machine; husai runs gc there removes it"
    ] * 4
    assert sum(one.size for one in found.remove) == 44
    assert listing(runs) == sorted([A, *(temporary(runs, "x", p).name for p in (dead, Process.here(), ELSEWHERE)),
                                    temporary(runs, B, dead).name])  # fmt: skip
    assert remove(found) == found.remove
    assert listing(runs) == sorted([A, temporary(runs, "x", Process.here()).name, temporary(runs, "x", ELSEWHERE).name])
    assert find(runs, [results]).remove == []


def test_leases_of_the_dead_go_and_those_of_the_living_stay(tmp_path, dead, listing):
    runs, results = tmp_path / "runs", tmp_path / "results"
    results.mkdir()
    with Lease.take(lease_path(runs / A), about="a") as living:
        held(lease_path(runs / B), dead)
        held(lease_path(runs / C), ELSEWHERE)
        held(results / "suite" / ".lease.json", dead)
        beats = lease_path(runs / B).with_name(f".{B}.json.{'a' * 32}.beat")
        beats.write_text("{}")
        orphan = beats.with_name(f".{D}.json.{'a' * 32}.beat")
        orphan.write_text("{}")
        found = find(runs, [results])
        assert paths(found) == sorted([f"{B}.json", ".lease.json", orphan.name])
        assert [path.name for path, _ in found.kept] == [f"{C}.json"]
        remove(found)
        assert listing(runs / ".leases") == [f"{A}.json", f"{C}.json"]
        assert listing(results / "suite") == []
        assert not living.lost


def test_watching_tells_silent_leases_of_other_machines_from_living_ones(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    silent, beating = lease_path(runs / A), lease_path(runs / B)
    held(silent, ELSEWHERE)
    held(beating, ELSEWHERE, "b" * 32)
    left = temporary(runs, A, ELSEWHERE._replace(pid=8))
    left.mkdir()
    clock = [0.0]

    def sleep(seconds):
        clock[0] += seconds
        beating.with_name(f".{beating.name}.{'b' * 32}.beat").write_text(json.dumps({"beat": int(clock[0])}))

    monkeypatch.setattr(gc.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(gc.time, "sleep", sleep)
    assert paths(find(runs)) == []
    held(silent, ELSEWHERE)
    assert paths(find(runs, watch=60)) == [silent.name], "the other process of that machine is not known to be dead"
    assert 60 <= clock[0] <= 70
    left.rename(temporary(runs, A, ELSEWHERE))
    assert paths(find(runs, watch=60)) == sorted([silent.name, temporary(runs, A, ELSEWHERE).name])


def test_a_lease_that_is_taken_again_meanwhile_stays(tmp_path, dead):
    path = lease_path(tmp_path / A)
    held(path, dead)
    found = find(tmp_path)
    assert paths(found) == [path.name]
    with Lease.take(path, about="next") as lease:
        assert remove(found) == []
        assert not lease.lost


def test_checkpoints_and_failures_of_finished_runs_go(tmp_path, listing, make_run, make_suite):
    runs, results = tmp_path / "runs", tmp_path / "results"
    make_run(runs / A, "m")
    make_suite(results / "suite", cells=[A, B, C], records=[B])
    for name in (A, B, C, D):
        checkpoint_folder(runs / name).mkdir(parents=True)
        write_atomic(checkpoint_folder(runs / name) / "step-1.json", "{}")
        write_atomic(failure_path(runs / name), json.dumps({"run_id": name}))
    with Lease.take(lease_path(runs / A), about="measured again"):
        assert paths(find(runs, [results])) == sorted([f"{B}.checkpoints", f"{B}.json"])
    remove(find(runs, [results]))
    assert listing(runs) == [".failed", ".leases", A, f"{C}.checkpoints", f"{D}.checkpoints"]
    assert listing(runs / ".failed") == [f"{C}.json", f"{D}.json"], (
        "they were planned, or are of no suite: not finished"
    )


def test_nulls_of_other_code_go(tmp_path, listing, monkeypatch):
    import numpy as np

    from husai.measure import null_cache

    key, nulls = NullKey("ambient", "d 4", ("pwmcc",), False), tmp_path / "nulls"

    def draw(n_live, count):
        return np.zeros((count, len(n_live), len(n_live), 1))

    NullCache(nulls).draws(key, (3, 4), 2, draw)
    (now,) = listing(nulls)
    with monkeypatch.context() as patch:
        patch.setattr(null_cache, "CODE", "before")
        NullCache(nulls).draws(key, (3, 4), 2, draw)
    (old,) = set(listing(nulls)) - {now}
    (nulls / "damaged-3.npz").write_text("no archive")
    assert paths(find(tmp_path)) == []
    found = find(tmp_path, outdated=outdated)
    assert paths(found) == sorted([old, "damaged-3.npz"])
    remove(found)
    assert listing(nulls) == [now]


# --- finished runs


def test_only_runs_that_no_table_refers_to_go(tmp_path, listing, make_run, make_suite):
    runs, results = tmp_path / "runs", tmp_path / "results"
    make_suite(results / "one", cells=[A])
    make_suite(results / "deep" / "two", records=[B])
    for name in (A, B, C, D):
        make_run(runs / name, "m")
    make_run(runs / "mine", "m", run_id=A)
    (runs / "wandb").mkdir()
    assert find(runs, [results]).remove == [], "runs go only if that is asked for"
    with Lease.take(lease_path(runs / D), about="read"):
        assert paths(find(runs, [results], unreferenced=True)) == [C]
    found = find(runs, [results], unreferenced=True)
    assert paths(found) == [C, D]
    assert [path.name for path, _ in found.kept] == ["mine"]
    with Lease.take(lease_path(runs / D), about="taken meanwhile"):
        assert [one.path.name for one in remove(found)] == [C]
    assert listing(runs) == [".leases", A, B, D, "mine", "wandb"]
    assert finished(runs / A)
    assert finished(runs / B)


def test_models_stay_as_long_as_anything_may_rest_on_them(tmp_path, make_run, make_suite):
    runs, results = tmp_path / "runs", tmp_path / "results"
    gate = {"fve": 0.9786464, "excluded_loss": 11.07863, "passed": True}
    make_suite(results / "suite", cells=[A], models=["named", "control/permuted-0"], gates={"other": gate})
    make_run(runs / A, "by-run")
    hashed = {
        "suite-named": "in the suite's gate reports",
        "suite-control": "in them, under the name of its stand-in",
        "suite-by-run": "a run that stays was trained on it",
        "suite-same-gate": "its gate report is one of the suite's",
        "suite-gone": "nothing",
    }
    for name in hashed:
        report = {**gate, "fve": 0.9786465} if name == "suite-same-gate" else {**gate, "fve": 0.5}
        make_run(runs / f"{name}-0123456789ab", gate=report)
    make_run(runs / "by-hand")
    found = find(runs, [results], unreferenced=True)
    assert paths(found) == ["suite-gone-0123456789ab"]
    make_run(runs / B, "gone")
    assert paths(find(runs, [results], unreferenced=True)) == [B, "suite-gone-0123456789ab"], (
        "a run that goes needs none"
    )
    make_run(runs / "my-sae", "gone", run_id=D)
    assert paths(find(runs, [results], unreferenced=True)) == [B]
    write_atomic(runs / "my-sae" / "DONE", "")
    for name in ("my-sae", B):
        (runs / name / "DONE").unlink()
    with Lease.take(lease_path(runs / C), about="a run of which the model is not known"):
        assert paths(find(runs, [results], unreferenced=True)) == []
    assert paths(find(runs, [results], unreferenced=True)) == ["suite-gone-0123456789ab"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cells.json", "{"),
        ("cells.json", "{}"),
        ("cells.json", "[1]"),
        ("gate.json", "[]"),
        ("gate.json", "\x00"),
        ("records.parquet", "no table"),
        ("records.parquet", ""),
    ],
)
def test_a_table_that_cannot_be_read_stops_everything(tmp_path, make_run, make_suite, name, content):
    runs, results = tmp_path / "runs", tmp_path / "results"
    suite = make_suite(results / "suite", cells=[A], records=[B])
    make_run(runs / C, "m")
    (suite / name).write_text(content)
    with pytest.raises(HusaiError, match=rf"{name}: .*what it refers to is not known"):
        find(runs, [results], unreferenced=True)
    assert finished(runs / C)


def test_a_table_without_run_ids_stops_everything(tmp_path, make_run, make_suite):
    import pandas as pd

    suite = make_suite(tmp_path / "results" / "suite", cells=[A])
    pd.DataFrame({"value": [1.0]}).to_parquet(suite / "records.parquet")
    make_run(tmp_path / "runs" / C, "m")
    with pytest.raises(HusaiError, match="is not a readable table of records"):
        find(tmp_path / "runs", [tmp_path / "results"], unreferenced=True)


def test_without_a_single_table_no_run_goes(tmp_path, make_run):
    make_run(tmp_path / "runs" / C, "m")
    (tmp_path / "results").mkdir()
    with pytest.raises(HusaiError, match="results: holds no results table, so that every run would go"):
        find(tmp_path / "runs", [tmp_path / "results"], unreferenced=True)
    with pytest.raises(HusaiError, match="no folder: holds no results table"):
        find(tmp_path / "runs", unreferenced=True)
    with pytest.raises(HusaiError, match="absent: no such folder of results"):
        find(tmp_path / "runs", [tmp_path / "absent"])
    with pytest.raises(HusaiError, match="absent: no such folder of runs"):
        find(tmp_path / "absent")


def test_what_cannot_be_removed_is_a_sentence(tmp_path, dead, monkeypatch):
    path = temporary(tmp_path, "x", dead)
    path.write_text("")
    found = find(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(type(path), "unlink", refuse)
    with pytest.raises(HusaiError, match=r"cannot be removed \(Permission denied\)"):
        remove(found)
