import sys

import pytest

from husai.tracking import NoTracker, WandbTracker, open_tracker


@pytest.fixture
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def opened(mode, folder, notices):
    return open_tracker(mode, name="test", config={"a": 1}, folder=folder, warn=notices.append)


def test_without_an_account_nothing_is_tracked_and_one_notice_says_so(alone):
    notices = []
    assert isinstance(opened("auto", alone, notices), NoTracker)
    assert len(notices) == 1
    assert "--no-wandb" in notices[0]


def test_none_is_silent(alone):
    notices = []
    tracker = opened("none", alone, notices)
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert notices == []


def test_an_absent_wandb_does_not_stop_the_run(alone, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    notices = []
    assert isinstance(opened("online", alone, notices), NoTracker)
    assert "going on without it" in notices[0]


def test_a_failing_wandb_is_left_behind_once():
    class Broken:
        def log(self, *_arguments, **_options):
            raise ConnectionError

    notices = []
    tracker = WandbTracker(Broken(), notices.append)
    tracker.log({"loss": 1.0}, 1)
    tracker.log({"loss": 1.0}, 2)
    tracker.finish()
    assert notices == ["W&B stopped working (ConnectionError); going on without it"]


def test_figures_reach_the_run():
    class Run:
        def __init__(self):
            self.rows = []

        def log(self, figures, step):
            self.rows.append((step, figures))

        def finish(self):
            self.rows.append("finished")

    run = Run()
    tracker = WandbTracker(run, lambda _: None)
    tracker.log({"loss": 2.0}, 7)
    tracker.finish()
    assert run.rows == [(7, {"loss": 2.0}), "finished"]


@pytest.mark.filterwarnings("ignore")
def test_offline_wandb_writes_below_the_folder(alone, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    notices = []
    tracker = opened("auto", alone, notices)
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert notices == []
    assert list((alone / "wandb").glob("offline-run-*"))
