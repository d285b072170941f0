import sys

import numpy as np
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


class Spread:
    """Four numbers: one in the lower half, three in the upper."""

    norm, mean = 2.0, 0.5
    counts, edges = np.array([1, 3]), np.array([0.0, 0.5, 1.0])


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_gets_curves_and_histograms(tmp_path):
    notices = []
    tracker = open_tracker("tensorboard", name="n", run="r", config={"a": 1}, folder=tmp_path, warn=notices.append)
    tracker.log({"loss": 2.0}, 7)
    tracker.log_statistics({"parameters/W_enc/0": Spread()}, 7)
    tracker.finish()
    assert notices == []

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "r")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(7, 2.0)]
    assert events.Scalars("parameters/W_enc/0/norm")[0].value == 2.0
    histogram = events.Histograms("parameters/W_enc/0")[0].histogram_value
    assert (histogram.num, histogram.bucket_limit, histogram.bucket) == (4, [0.5, 1.0], [1, 3])


def test_an_absent_tensorboard_does_not_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    notices = []
    assert isinstance(opened("tensorboard", tmp_path, notices), NoTracker)
    assert "husai[tensorboard]" in notices[0]


def test_statistics_reach_wandb_as_histograms():
    class Run:
        def __init__(self):
            self.rows = []

        def log(self, figures, step):
            self.rows.append((step, figures))

    run, notices = Run(), []
    WandbTracker(run, notices.append).log_statistics({"gradients/b_dec/0": Spread()}, 3)
    ((step, figures),) = run.rows
    assert notices == []
    assert step == 3
    assert figures["gradients/b_dec/0/norm"] == 2.0
    assert list(figures["gradients/b_dec/0"].histogram) == [1, 3]
