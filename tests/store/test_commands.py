"""`husai runs list|show|verify|gc`, and the listing under it."""

import json
import signal
import subprocess
import sys

import pytest

from husai.cli import main
from husai.errors import HusaiError
from husai.resources import reference_dir
from husai.store.files import write_atomic
from husai.store.lease import Lease, read_holder
from husai.store.listing import find_run, list_runs
from husai.store.places import checkpoint_folder, failure_path, lease_path
from husai.store.processes import Process

A, B, C, D = "aaaa11112222", "aabb11112222", "cccc11112222", "dddd11112222"


@pytest.fixture(autouse=True)
def _handlers():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def husai(capsys):
    """Runs `husai runs …` here: exit code, standard output, standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["runs", *map(str, arguments)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return caught.value.code, printed.out, printed.err

    return run


@pytest.fixture
def runs(tmp_path, make_run):
    """A finished run A, one that failed (B), and one with checkpoints only (C)."""
    folder = tmp_path / "runs"
    make_run(folder / A, "add-p59-0")
    write_atomic(failure_path(folder / B), json.dumps({"run_id": B, "title": "resid_post topk", "error": "too hot"}))
    write_atomic(checkpoint_folder(folder / C) / "step-1.json", "{}")
    return folder


def test_every_state_is_told(runs, make_run):
    make_run(runs / "model-0123456789ab")
    make_run(runs / "damaged", "m")
    (runs / "damaged" / "metrics.json").write_text("{}")
    (runs / "nulls").mkdir()
    (runs / "wandb").mkdir()
    with Lease.take(lease_path(runs / D), about="resid_post relu", beat_every=0.01) as lease:
        lease.say(step=30, of=100, loss=0.12345)
        while not read_holder(lease.path).progress:
            pass
        known = {run.id: run for run in list_runs(runs, check=True)}
    assert {name: run.state for name, run in known.items()} == {
        A: "finished",
        B: "failed",
        C: "unfinished",
        D: "running",
        "damaged": "damaged",
        "model-0123456789ab": "finished",
    }
    assert known[A].what == "add-p59-0 resid_post topk d_sae=8 2 seeds"
    assert (known[A].finished, known[A].seconds) == ("2026-11-22T00:00:00Z", 1.5)
    assert known[A].size > 1000
    assert (known[B].what, known[B].detail) == ("resid_post topk", "too hot")
    assert known[C].size == 2
    assert known[D].what == "resid_post relu"
    assert known[D].detail.endswith(": step 30, of 100, loss 0.1235")
    assert known["damaged"].detail.endswith(
        "metrics.json: does not match its checksum (damaged or changed since it was written)"
    )
    assert known["model-0123456789ab"].what == "transformer add p=11"
    assert {run.id: run.state for run in list_runs(runs)}["damaged"] == "finished", "not looked at"


def test_a_run_whose_holder_is_dead_is_unfinished(runs, dead):
    content = {"token": "a" * 32, "host": "h", **dead._asdict(), "about": "x"}
    write_atomic(lease_path(runs / D), json.dumps(content))
    (runs / f".{C}.{Process.here().tag}-00000000").mkdir()
    states = {run.id: run.state for run in list_runs(runs)}
    assert (states[C], states[D]) == ("unfinished", "unfinished")


def test_list_prints_a_table_or_json(runs, husai):
    code, out, _ = husai("list", "--runs", runs)
    assert code == 0
    assert f"{A} add-p59-0 resid_post topk d_sae=8 2 seeds finished" in " ".join(out.split())
    assert f"{B} resid_post topk failed" in " ".join(out.split())
    assert out.splitlines()[-1].startswith("3 runs, ")
    code, out, _ = husai("list", "--runs", runs, "--json")
    assert [run["state"] for run in json.loads(out)] == ["finished", "failed", "unfinished"]
    assert husai("list", "--runs", runs / "absent")[::2] == (
        2,
        f"husai: {runs / 'absent'}: no such folder of runs; name one with --runs\n",
    )


def test_damaged_files_of_a_run_do_not_stop_the_list(runs):
    for name in ("config.yaml", "provenance.json"):
        (runs / A / name).write_text("\x00[{:")
    failure_path(runs / B).write_text("{")
    known = {run.id: run for run in list_runs(runs)}
    assert (known[A].what, known[A].finished, known[B].state) == ("a run", None, "unfinished")


def test_show_takes_a_beginning_that_tells_runs_apart(runs, husai):
    code, out, _ = husai("show", A[:3], "--runs", runs)
    assert code == 0
    assert "add-p59-0 resid_post topk" in out
    assert "explained_variance: 0.5" in out
    assert "architecture: topk" in out
    assert "wall_seconds: 1.5" in out
    _, out, _ = husai("show", A, "--runs", runs, "--json")
    assert json.loads(out)["metrics"] == {"explained_variance": 0.5}
    assert "too hot" in husai("show", "aab", "--runs", runs)[1]
    for prefix, message in (
        ("aa", f"run 'aa': may be {A}, {B}; give more"),
        ("zz", "run 'zz': no such run"),
        ("", "run ''"),
    ):
        code, _, err = husai("show", prefix, "--runs", runs)
        assert code == 2
        assert message in err


def test_a_whole_name_is_no_beginning(runs, make_run):
    make_run(runs / "aa", "m")
    assert find_run(runs, "aa") == runs / "aa"
    with pytest.raises(HusaiError, match="may be"):
        find_run(runs, "a")


def test_verify_names_the_file_and_exits_1(runs, husai, make_run):
    code, out, _ = husai("verify", "--runs", runs)
    assert (code, out) == (0, "1 finished runs: 0 damaged, 1 whole\n")
    make_run(runs / D, "m")
    with (runs / D / "seed-0-0" / "weights").open("r+b") as file:
        file.seek(500)
        file.write(b"\x01")
    code, out, err = husai("verify", "--runs", runs)
    assert code == 1
    assert f"{runs / D}/seed-0-0/weights: does not match its checksum" in err
    assert out == "2 finished runs: 1 damaged, 1 whole\n"
    assert husai("verify", A, "--runs", runs)[0] == 0
    code, out, _ = husai("verify", A, "dd", "--runs", runs, "--json")
    assert code == 1
    assert {name: len(problems) for name, problems in json.loads(out).items()} == {A: 0, D: 1}
    code, _, err = husai("verify", C, "--runs", runs)
    assert code == 2
    assert "is not finished; only finished runs have checksums" in err


def test_runs_of_earlier_versions_are_verified_as_far_as_that_goes(husai):
    code, out, _ = husai("verify", "--runs", reference_dir())
    assert code == 0
    assert "of an earlier version have no checksums" in out


def test_gc_says_what_goes_and_a_dry_run_only_says_so(runs, dead, husai, make_suite, make_run):
    make_suite(runs.parent / "results" / "suite", cells=[B])
    make_run(runs / D, "m")
    left = runs / f".{C}.{dead.tag}-00000000"
    left.mkdir()
    (left / "half").write_bytes(bytes(3 * 2**20))
    common = ("gc", "--runs", runs, "--results", runs.parent / "results", "--unreferenced")
    code, out, _ = husai(*common, "--dry-run")
    assert code == 0
    assert f"would remove {left} (3.0 MiB): temporary, of process {dead.pid}, which is dead" in out
    assert f"would remove {runs / A} (0.0 MiB): a run that no results table refers to" in out
    assert out.splitlines()[-1] == "3.0 MiB would be freed"
    assert left.exists()
    code, out, _ = husai(*common, "--json")
    assert code == 0
    assert {one["path"] for one in json.loads(out)["removed"]} == {str(left), str(runs / A), str(runs / D)}
    assert not left.exists()
    assert not (runs / A).exists()
    code, out, _ = husai(*common)
    assert (code, out) == (0, "0.0 MiB freed\n")


def test_gc_without_results_removes_no_run(runs, husai, monkeypatch):
    monkeypatch.chdir(runs.parent)
    code, out, _ = husai("gc")
    assert (code, out) == (0, "0.0 MiB freed\n")
    code, _, err = husai("gc", "--unreferenced")
    assert (code, err) == (2, "husai: results: no such folder of results; name one with --results\n")
    assert (runs / A / "DONE").exists()


def test_the_store_loads_no_torch():
    code = "import sys, husai.store.listing, husai.store.gc, husai.store.lease; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
