"""Whole runs with a tracker: what reaches it, that it changes nothing, and that it costs nothing where it is off."""

import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from husai.cell import run_cell
from husai.config import Config, ModelConfig, SAEConfig, SuiteConfig, TopKConfig, TrackingConfig, content_hash
from husai.errors import HusaiError
from husai.sae.history import StepLog
from husai.sae.train import train_saes
from husai.sae.trainer import Trainer
from husai.store.folders import finished
from husai.suite import run_suite, train_watched
from husai.sweep.plan import plan
from husai.sweep.ways import Ways
from husai.tracking import Attempts, Curves, NoTracker, tracking_of

SUITE = {
    "name": "tiny",
    "model": {"planted": {"d_model": 8, "n_atoms": 12, "k": 2, "samples": 300}},
    "init_seeds": [0, 1],
    "data_seeds": [0, 1],
    "entries": [
        {
            "sae": {"architecture": "topk", "d_sae": 12, "k": 2},
            "training": {"steps": 8, "batch_size": 50, "log_every": 2, "log_statistics": True},
        }
    ],
    "analysis": {
        **dict.fromkeys(("null_draws", "wide_null_draws", "curve_null_draws", "aligned_null_draws"), 1),
        **dict.fromkeys(("shifts", "curve_shifts"), 1),
        "curve": [0],
    },
}


def suite(**changes) -> SuiteConfig:
    return SuiteConfig.parse(SUITE | changes, "test")


class Recorder(NoTracker):
    """Keeps every call."""

    on = True

    def __init__(self):
        self.calls = []

    def log(self, figures, step):
        self.calls.append(("log", step, figures))

    def log_statistics(self, statistics, step):
        self.calls.append(("statistics", step, statistics))

    def summarise(self, metrics):
        self.calls.append(("summary", metrics))

    def text(self, name, markdown):
        self.calls.append(("text", name, markdown))

    def show(self, images):
        self.calls.append(("show", [path.name for path in images]))

    def finish(self, failed=False):
        self.calls.append(("finish", failed))


@pytest.fixture
def recorded(monkeypatch):
    """Trackers that are opened, with what they were opened with; those of mode none are as ever."""
    found = []

    def open_tracker(tracking, *, every=None, **given):
        if every == 0 or tracking.mode in (None, "none"):
            return NoTracker()
        tracker = Recorder()
        found.append((tracker, SimpleNamespace(tracking=tracking, **given)))
        return tracker

    for module in ("husai.cell", "husai.single.run", "husai.tracking.curves"):
        monkeypatch.setattr(f"{module}.open_tracker", open_tracker)
    return found


def test_tracking_is_in_no_identity_and_no_file():
    kind, tracked = TopKConfig(d_sae=8, k=1), TrackingConfig(mode="offline", tags=("a",))
    assert content_hash(SAEConfig(sae=kind, tracking=tracked)) == content_hash(SAEConfig(sae=kind))
    assert content_hash(ModelConfig(tracking=tracked)) == content_hash(ModelConfig())
    for config in (SAEConfig(sae=kind, tracking=tracked), ModelConfig(tracking=tracked), suite(tracking=tracked)):
        assert "tracking" not in config.to_yaml()
        assert isinstance(config, Config)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"mode": "sometimes"}, "tracking.mode"),
        ({"projekt": "x"}, "unknown key 'tracking.projekt', did you mean 'project'"),
        ({"tags": ["x" * 65]}, "tracking.tags"),
    ],
)
def test_a_wrong_tracking_section_is_refused_by_name(given, wrong):
    with pytest.raises(HusaiError, match=re.escape(wrong)):
        suite(tracking=given)


def test_a_model_of_a_suite_is_tracked_as_the_suite_is():
    model = {"task": {"p": 11}, "tracking": {"mode": "offline"}}
    with pytest.raises(HusaiError, match="belongs at the top of the suite"):
        suite(model=model, hooks=["resid_post"])


def test_the_group_of_a_sweep_is_its_name_unless_it_has_one():
    assert tracking_of(suite(), print).group == "tiny"
    assert tracking_of(suite(), print).mode == "none"
    assert tracking_of(suite(tracking={"group": "mine", "mode": "offline"}), print).group == "mine"


def test_a_sweep_tells_its_tracker_of_every_cell_and_of_its_figures(tmp_path, recorded):
    run_suite(suite(tracking={"mode": "offline", "tags": ["mine"]}), tmp_path / "out", tmp_path / "runs", Ways(jobs=1))
    (cell, about), (whole, about_whole) = recorded
    assert about.tracking.group == about_whole.tracking.group == "tiny"
    assert about.tracking.tags == ("mine",)
    assert about.tags == ("topk", "planted", "tiny-model")
    assert about.config["sae"]["k"] == 2
    rows = {step: figures for kind, step, figures in (c for c in cell.calls if c[0] == "log")}
    assert list(rows) == [2, 4, 6, 8]
    assert {"loss", "mse", "loss/auxk", "active", "lr", "ms_step"} <= rows[2].keys()
    assert rows[8]["active"] == pytest.approx(rows[8]["l0"] / 12)
    assert all(row["ms_step"] > 0 for row in rows.values())
    assert [c[1] for c in cell.calls if c[0] == "statistics"] == [2, 4, 6, 8]
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if finished(path)]
    ((_, summary),) = [c for c in cell.calls if c[0] == "summary"]
    assert summary == json.loads((folder / "metrics.json").read_text()) | {
        name: value for name, value in summary.items() if value != value
    }
    assert cell.calls[-1] == ("finish", False)
    ((_, shown),) = [c for c in whole.calls if c[0] == "show"]
    assert sorted(shown) == sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert shown
    ((_, name, text),) = [c for c in whole.calls if c[0] == "text"]
    assert (name, text) == ("report", (tmp_path / "out" / "summary.md").read_text())


@pytest.mark.filterwarnings("ignore")
def test_records_are_equal_with_tracking_on_and_off(tmp_path):
    tables = []
    for mode in ("none", "offline", "tensorboard"):
        (job,), _ = plan(suite(tracking={"mode": mode}), [None], tmp_path / mode)
        run_cell(job)
        folder = tmp_path / mode / job.cell.run_id
        tables.append([pd.read_parquet(folder / name) for name in ("records.parquet", "atoms.parquet")])
        tables[-1].append(pd.read_csv(folder / "history.csv"))
    assert list((tmp_path / "offline" / "wandb").glob("offline-run-*"))
    assert list((tmp_path / "tensorboard" / "tensorboard").rglob("events*"))
    for table in tables[1:]:
        for one, other in zip(table, tables[0], strict=True):
            pd.testing.assert_frame_equal(one, other, check_exact=True)


def counted(monkeypatch):
    """How often what tracking costs is called: statistics, rows, and updates."""
    calls = {"statistics": 0, "log": 0, "advance": 0}

    def counting(name, function):
        def run(*given, **named):
            calls[name] += 1
            return function(*given, **named)

        return run

    monkeypatch.setattr("husai.sae.train.statistics", counting("statistics", lambda *_: {}))
    for name in ("log", "advance"):
        monkeypatch.setattr(Trainer, name, counting(name, getattr(Trainer, name)))
    return calls


@pytest.mark.parametrize(("every", "rows", "opened"), [(0, 1, 0), (2, 4, 1)])
def test_at_frequency_0_nothing_is_told_or_computed(tmp_path, monkeypatch, recorded, every, rows, opened):
    calls = counted(monkeypatch)
    entry = SUITE["entries"][0]
    entry = entry | {"training": entry["training"] | {"log_every": every}}
    (job,), _ = plan(suite(tracking={"mode": "offline"}, entries=[entry]), [None], tmp_path)
    run_cell(job)
    assert len(recorded) == opened
    assert calls == {"statistics": rows if every else 0, "log": rows, "advance": 8}


def test_training_itself_takes_no_statistics_at_frequency_0(monkeypatch):
    calls = counted(monkeypatch)
    training = {"steps": 6, "batch_size": 50, "warmup_steps": 1, "log_every": 0}
    config = SAEConfig.parse({"sae": {"architecture": "topk", "d_sae": 16, "k": 2}, "training": training})
    train_saes(torch.randn(200, 8), config, on_statistics=lambda *_: pytest.fail("statistics at frequency 0"))
    assert calls == {"statistics": 0, "log": 1, "advance": 6}


def test_an_untracked_run_computes_no_means_and_wraps_no_looks():
    curves = Curves(NoTracker(), SAEConfig(sae=TopKConfig()).training.model_copy(update={"log_statistics": True}))

    def look(_step, _ensemble):
        return False

    curves.on_log([])  # a mean of no rows would fail
    assert curves.on_statistics is None
    assert curves.apart(look) is look


def test_time_a_step_leaves_out_what_looking_takes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("husai.tracking.curves.time.perf_counter", lambda: now[0])
    tracker = Recorder()
    curves = Curves(tracker, SAEConfig(sae=TopKConfig()).training)

    def look(_step, _ensemble):
        now[0] += 50.0
        return False

    watched = curves.apart(look)
    row = StepLog(0, 0, 0, *[0.0] * 11, {})

    def steps(until, seconds):
        now[0] += seconds
        curves.on_log([StepLog(**{**vars(row), "step": until})])

    watched(0, None)
    steps(10, 2.0)
    now[0] += 1.0
    watched(15, None)
    steps(20, 3.0)
    assert [call[2]["ms_step"] for call in tracker.calls] == [200.0, 400.0]


def test_each_attempt_at_a_model_is_a_run_with_its_gate_report(tmp_path, recorded, recipe):
    wanted = TrackingConfig(mode="offline")
    assert not train_watched(recipe(), tmp_path / "model", attempts=2, quiet=True, tracking=wanted)
    assert [about.config["training"]["init_seed"] for _, about in recorded] == [0, 1]
    for tracker, about in recorded:
        assert about.run == f"model-seed{about.config['training']['init_seed']}"
        kinds = [call[0] for call in tracker.calls]
        assert kinds == [*["log"] * (len(kinds) - 2), "summary", "finish"]
        assert [call[1] for call in tracker.calls[:-2]] == [0, 4, 8, 12] or kinds.count("log") == 3
        assert {"lr", "train_loss", "seconds"} <= tracker.calls[0][2].keys()
        assert tracker.calls[-2][1]["passed"] is False


def test_an_attempt_that_is_interrupted_is_marked_as_failed(tmp_path, recorded, recipe):
    tracked = Attempts(TrackingConfig(mode="offline"), "add-p11", tmp_path / "model", print)
    tracked.begin(0, recipe())
    with pytest.raises(KeyboardInterrupt), tracked:
        raise KeyboardInterrupt
    assert recorded[0][0].calls == [("finish", True)]


def test_an_unreachable_server_costs_a_notice_and_a_bounded_time(tmp_path):
    code = "import husai.tracking.wandb as w; w.INIT_LIMIT = 3.0; from husai.cli import main; import sys; main(sys.argv[1:])"
    flags = ["--track", "online", "--quiet", "training.steps=4", "training.batch_size=64", "sae.d_sae=16", "sae.k=2"]
    given = {**os.environ, "HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    start = time.perf_counter()
    command = [sys.executable, "-c", code, "sae", "train", "add-p59-0", *flags, "--out", "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=given, check=False)
    assert done.returncode == 0, done.stderr
    assert finished(tmp_path / "run")
    assert done.stderr.count("W&B cannot be used (") == done.stderr.count("going on without it") == 1
    assert "Traceback" not in done.stderr
    assert time.perf_counter() - start < 200
