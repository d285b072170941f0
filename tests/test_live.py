"""What is seen of a sweep, from leases made by hand; and the words of its options."""

import json
import re
import secrets
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from husai import console, live
from husai.config import SuiteConfig
from husai.errors import HusaiError
from husai.live import View
from husai.store.lease import Lease
from husai.store.places import lease_path
from husai.store.processes import Process
from husai.suite import OUT_OF_TIME, run_suite
from husai.sweep import compute as compute_module
from husai.sweep.compute import Outcome
from husai.sweep.plan import plan
from husai.sweep.ways import Ways, duration, part

TRAINING = {"steps": 20, "batch_size": 100, "lr": 3e-3}
SUITE = {
    "name": "tiny",
    "model": {"planted": {"d_model": 8, "n_atoms": 12, "k": 2, "samples": 400}},
    "init_seeds": [0, 1],
    "data_seeds": [0, 1],
    "entries": [{"sae": {"architecture": "topk", "d_sae": 16, "k": k}, "training": TRAINING} for k in (1, 2, 3, 4)],
    "analysis": {
        **dict.fromkeys(("null_draws", "wide_null_draws", "curve_null_draws", "aligned_null_draws"), 1),
        **dict.fromkeys(("shifts", "curve_shifts"), 1),
        "curve": [10],
    },
}


@pytest.fixture
def jobs(tmp_path):
    return plan(SuiteConfig.parse(SUITE), [None], tmp_path / "runs")[0]


@pytest.fixture
def clock(monkeypatch):
    """The time that the view sees."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def hold(job, **told):
    """A lease of this process that says how far it is."""
    lease = Lease.take(lease_path(Path(job.folder)), about=job.title, beat_every=0.01)
    assert lease is not None
    lease.say(**told)
    end = time.monotonic() + 20
    while not any(f'"step": {told["step"]}' in path.read_text() for path in lease.path.parent.glob(".*.beat")):
        assert time.monotonic() < end
        time.sleep(0.01)
    return lease


def begun(jobs):
    view = View(quiet=True)
    view.begin(jobs)
    return view


def test_the_summary_counts_cells_steps_and_what_is_left(jobs, clock):
    view = begun(jobs)
    assert view.summary([]) == "0 done, 0 failed, 0 running, 4 waiting"
    clock.seconds += 100
    view.ended(jobs[0], Outcome("computed", 90))
    with hold(jobs[1], step=10, of=20):
        running = view.running()
        assert [job.title for job, _ in running] == [jobs[1].title]
        # 1.5 cells in 100 s; 2.5 are left. A cell has 2 seeds and 20 steps: 60 of them are done
        assert view.summary(running) == (
            "1 done, 0 failed, 1 running, 2 waiting · 54 cells/h · 0.6 SAE steps/s · about 0:02:47 left"
        )
    view.ended(jobs[1], Outcome("failed", why="it diverged"))
    assert view.summary([]).startswith("1 done, 1 failed, 0 running, 2 waiting · 72 cells/h")


def test_who_is_dead_or_of_another_suite_does_not_run(jobs):
    view = begun(jobs[:1])
    with hold(jobs[1], step=1, of=20):
        assert view.running() == []
    place = lease_path(Path(jobs[0].folder))
    gone = {**Process.here()._asdict(), "start": 1}  # another process with our number
    place.write_text(json.dumps({"token": secrets.token_hex(16), "host": "here", "about": "", **gone}))
    assert view.running() == []
    place.write_text("{")
    assert len(view.running()) == 1, "a file that cannot be read may be somebody's"


def test_outside_a_terminal_there_are_plain_lines(jobs, monkeypatch):
    out = Console(file=StringIO(), soft_wrap=True, width=80)
    monkeypatch.setattr(console, "out", out)
    monkeypatch.setattr(live, "LINE_EVERY", 0.05)
    with hold(jobs[0], step=7, of=20, loss=0.123456, l0=2.0), View() as view:
        view.begin(jobs)
        end = time.monotonic() + 20
        while "step 7" not in out.file.getvalue() and time.monotonic() < end:
            time.sleep(0.05)
    text = out.file.getvalue()
    assert "0 done, 0 failed, 1 running, 3 waiting · " in text
    assert f"    {jobs[0].title}: step 7 of 20, loss 0.1235, L0 2\n" in text
    assert "\x1b" not in text


def test_in_a_terminal_there_is_one_table(jobs, monkeypatch):
    out = Console(file=StringIO(), force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(console, "out", out)
    with hold(jobs[0], step=7, of=20, loss=0.5, explained_variance=0.25, pwmcc=0.75), View() as view:
        view.begin(jobs)
        view._live.refresh()
        console.say("a cell ended")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.file.getvalue()).replace("\r", "\n").splitlines()
    head = next(line for line in lines if line.startswith("cell"))
    assert head.split() == ["cell", "step", "loss", "EV", "L0", "pwmcc"]
    row = next(line for line in lines if line.startswith(jobs[0].title))
    assert row.split()[-6:] == ["7", "of", "20", "0.5", "0.25", "0.75"]
    assert row.index("0.75") + 4 == head.index("pwmcc") + 5, "figures stand below the ends of their names"
    assert any(line.startswith("a cell ended") for line in lines)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("15m", 900),
        ("1.5h", 5400),
        ("2d", 172800),
        ("01:30", 90),
        ("2:00:01", 7201),
        ("1-12:00:00", 129600),
    ],
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-5", "soon", "1:2:3:4", "1-12", "5 m", "infh", "00:00"])
def test_what_is_no_duration(text):
    with pytest.raises(HusaiError, match="--max-time"):
        duration(text)


def test_shards_are_parts_of_the_whole():
    assert part("2/4") == (2, 4)
    shares = [Ways(shard=(i, 3)).share(list(range(8))) for i in (1, 2, 3)]
    assert sorted(shares[0] + shares[1] + shares[2]) == list(range(8))
    assert shares[1] == [1, 4, 7]
    for text in ("0/4", "5/4", "1", "a/b", "1/0", "-1/4", ""):
        with pytest.raises(HusaiError, match="--shard"):
            part(text)


@pytest.mark.parametrize(
    ("ways", "threads"),
    [
        (Ways(jobs=2), 4),
        (Ways(jobs=8, engine="serial"), 8),
        (Ways(jobs=8, engine="ray", cpus=3), 3),
        (Ways(jobs=8, engine="ray", cpus=0.5), 1),
        (Ways(jobs=1, threads=5), 5),
        (Ways(jobs=1, threads=5, deterministic=True), 1),
    ],
)
def test_threads_of_a_cell(ways, threads, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    jobs, _ = ways.plan(SuiteConfig.parse(SUITE), [None], tmp_path)
    assert {job.threads for job in jobs} == {threads}


def test_a_dry_run_says_what_time_and_memory_it_takes(tmp_path, capsys):
    ways = Ways(jobs=8, engine="serial", dry_run=True, threads=1)
    assert run_suite(SuiteConfig.parse(SUITE), tmp_path / "results", tmp_path / "runs", ways) == 0
    *cells, time_line, memory_line = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in cells] == ["missing"] * 4
    assert re.fullmatch(r"time +about \d+ s of training with 1 at once; scoring not included", time_line)
    assert re.fullmatch(r"memory +about \d+ MiB in each of 1 processes", memory_line)
    assert list(tmp_path.iterdir()) == []


def sweep_of(tmp_path, **ways):
    return run_suite(SuiteConfig.parse(SUITE), tmp_path / "results", tmp_path / "runs", Ways(**{"threads": 1} | ways))


def test_exit_codes_of_a_suite(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("husai.suite.write_report", lambda *_: [])
    real = compute_module.run_cell

    def slow(job, say):
        time.sleep(600 if job.cell.config.sae.k == 2 else 0)
        return real(job, say)

    monkeypatch.setattr(compute_module, "run_cell", slow)
    assert sweep_of(tmp_path, seconds=8) == OUT_OF_TIME == 75
    assert re.search(r"Out of time with [34] cells left; run the same command again", capsys.readouterr().out)
    assert list((tmp_path / "runs" / ".leases").iterdir()) == [], "what was stopped let go"

    def fails(job, say):
        if job.cell.config.sae.k == 2:
            raise HusaiError("it diverged")
        return real(job, say)

    monkeypatch.setattr(compute_module, "run_cell", fails)
    assert sweep_of(tmp_path) == 1
    assert "it diverged" in capsys.readouterr().err
    monkeypatch.setattr(compute_module, "run_cell", real)
    assert sweep_of(tmp_path) == 1
    assert sweep_of(tmp_path, retry_failed=True) == 0
    assert sweep_of(tmp_path) == 0
