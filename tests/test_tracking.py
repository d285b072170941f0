"""Trackers, read back with what their own programs write and read, and each way in which they fail."""

import json
import os
import resource
import struct
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from husai.config import TrackingConfig
from husai.tracking import NoTracker, base, open_tracker, opening
from husai.tracking.tensorboard import TensorBoardTracker
from husai.tracking.wandb import WandbTracker

FORGED = "0" * 40
BLOCK = 32768  # W&B's file is a LevelDB log behind a header of 7 bytes


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No account, no earlier failure, and short patience."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    base.failed.clear()
    for module in (base, opening):
        monkeypatch.setattr(module, "LIMIT", 20.0)
    return tmp_path


def opened(mode, folder, notices, **more):
    more = {"name": "test", "config": {"a": 1}} | more
    tracking = more.pop("tracking", None) or TrackingConfig(mode=mode)
    return open_tracker(tracking, folder=folder, warn=notices.append, **more)


def wandb_records(folder):
    """The records of the only W&B run below `folder`, as W&B's protocol has them."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # waits until its process has written everything
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := BLOCK - at % BLOCK) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts, at = parts + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def wandb_run(folder):
    """What W&B would show of the only run below `folder`: the run, its rows by step, and its summary."""
    run, rows, summary = None, {}, {}
    for record in wandb_records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
        elif kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            found = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
            summary |= found
            if kind == "history":
                rows[record.history.step.num] = found
    return run, rows, summary


class Spread:
    """Four numbers: one in the lower half, three in the upper."""

    norm, mean = 2.0, 0.5
    counts, edges = np.array([1, 3]), np.array([0.0, 0.5, 1.0])


@pytest.fixture
def picture(tmp_path):
    plt.imsave(tmp_path / "curve.png", np.zeros((3, 5, 4)))
    return tmp_path / "curve.png"


def tell_everything(tracker, picture):
    with tracker:
        tracker.log({"loss": 2.0, "loss/l1": 0.5, "ev": 0.1}, 5)
        tracker.log({"loss": 1.0, "loss/l1": 0.25, "ev": 0.2}, 10)
        tracker.log_statistics({"parameters/W_enc/0": Spread()}, 10)
        tracker.summarise({"ev": 0.75, "converged": True, "verdict": "above chance"})
        tracker.show([picture])
        tracker.text("report", "# A <report>")


@pytest.mark.filterwarnings("ignore")
def test_what_wandb_keeps_offline_is_read_back(tmp_path, picture):
    notices = []
    tracking = TrackingConfig(mode="offline", project="p", entity="team", group="g", tags=("mine", "topk"))
    tags = ("topk", None, "h" * 70)
    tracker = opened("offline", tmp_path, notices, tracking=tracking, tags=tags, config={"sae": {"k": 3}})
    tell_everything(tracker, picture)
    assert notices == []
    run, rows, summary = wandb_run(tmp_path)
    assert (run.project, run.entity, run.run_group, run.display_name) == ("p", "team", "g", "test")
    assert list(run.tags) == ["mine", "topk", "h" * 64]
    assert {item.key: item.value_json for item in run.config.update}["sae"] == '{"k":3}'
    assert {step: row["loss"] for step, row in rows.items() if "loss" in row} == {5: 2.0, 10: 1.0}
    assert rows[5]["loss/l1"] == 0.5
    assert rows[10]["parameters/W_enc/0/norm"] == 2.0
    assert rows[10]["parameters/W_enc/0.values"] == [1, 3]
    assert rows[10]["parameters/W_enc/0.bins"] == [0, 0.5, 1]
    assert (summary["ev"], summary["converged"], summary["verdict"]) == (0.75, True, "above chance")
    (kept,) = tmp_path.glob("wandb/offline-run-*/files/media/images/figures/curve*.png")
    assert kept.read_bytes() == picture.read_bytes()
    (page,) = tmp_path.glob("wandb/offline-run-*/files/media/html/report*.html")
    assert "# A &lt;report&gt;" in page.read_text()


@pytest.mark.filterwarnings("ignore")
def test_what_tensorboard_keeps_is_read_back(tmp_path, picture):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    notices = []
    tracker = opened("tensorboard", tmp_path, notices, run="suite/1.mlp topk k=3 abc", config={"sae": {"k": 3}})
    tell_everything(tracker, picture)
    assert notices == []
    events = EventAccumulator(str(tmp_path / "tensorboard" / "suite" / "1.mlp-topk-k=3-abc")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(5, 2.0), (10, 1.0)]
    assert [(one.step, one.value) for one in events.Scalars("loss/l1")] == [(5, 0.5), (10, 0.25)]
    assert [(one.step, one.value) for one in events.Scalars("summary/ev")] == [(10, 0.75)]
    assert events.Scalars("summary/converged")[0].value == 1.0
    assert events.Scalars("parameters/W_enc/0/norm")[0].value == 2.0
    assert events.Scalars("parameters/W_enc/0/mean")[0].value == 0.5
    histogram = events.Histograms("parameters/W_enc/0")[0].histogram_value
    assert (histogram.num, histogram.bucket_limit, histogram.bucket) == (4, [0.5, 1.0], [1, 3])
    text = {name: events.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode() for name in
            ("config", "summary", "report")}  # fmt: skip
    assert json.loads(text["config"].strip("`\n")) == {"sae": {"k": 3}}
    assert json.loads(text["summary"].strip("`\n"))["verdict"] == "above chance"
    assert text["report"] == "# A <report>"
    image = events.Images("figures/curve")[0]
    assert (image.width, image.height, image.encoded_image_string) == (5, 3, picture.read_bytes())


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_shows_the_last_attempt_at_a_run(tmp_path):
    """A killed run leaves its events beside those of the one that does it again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((10, 20, 30), (10, 20)):
        tracker = opened("tensorboard", tmp_path, [], run="r")
        for step in steps:
            tracker.log({"loss": 1.0 / len(steps)}, step)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "r")).Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(10, 0.5), (20, 0.5)]


def test_without_an_account_nothing_is_tracked_and_one_notice_says_so(tmp_path):
    notices = []
    assert isinstance(opened("auto", tmp_path, notices), NoTracker)
    assert len(notices) == 1
    assert "--no-wandb" in notices[0]


@pytest.mark.parametrize(("mode", "every"), [("none", None), (None, None), ("offline", 0), ("tensorboard", 0)])
def test_off_is_silent_and_loads_nothing(tmp_path, monkeypatch, mode, every):
    for name in ("wandb", "torch.utils.tensorboard", "tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    notices, before = [], sorted(tmp_path.iterdir())
    tracker = opened(mode, tmp_path, notices, every=every)
    assert type(tracker) is NoTracker
    assert not tracker.on
    with tracker:
        tracker.log({"loss": 1.0}, 1)
    assert notices == []
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("asked", "key", "mode"),
    [
        ("offline", None, "offline"),
        ("disabled", FORGED, "none"),
        (None, FORGED, "online"),
        (None, None, "none"),
    ],
)
def test_auto_follows_the_environment(monkeypatch, asked, key, mode):
    for name, value in (("WANDB_MODE", asked), ("WANDB_API_KEY", key)):
        if value:
            monkeypatch.setenv(name, value)
    assert opening.settled("auto", lambda _: None) == mode


def test_an_account_may_stand_in_the_netrc_file(tmp_path):
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {FORGED}\n")
    assert opening.settled("auto", lambda _: None) == "online"
    (tmp_path / ".netrc").write_text("not a netrc file")
    assert opening.settled("auto", lambda _: None) == "none"


@pytest.mark.parametrize(
    ("mode", "module", "said"), [("online", "wandb", "W&B"), ("tensorboard", "tensorboard", "husai[tensorboard]")]
)
def test_an_absent_package_does_not_stop_the_run(tmp_path, monkeypatch, mode, module, said):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.summary", None)
    notices = []
    for _ in range(3):  # as the cells of a sweep would
        assert type(opened(mode, tmp_path, notices)) is NoTracker
    assert len(notices) == 1
    assert said in notices[0]
    assert "going on without it" in notices[0]


def test_what_failed_is_tried_again_later(tmp_path, monkeypatch):
    notices = []
    monkeypatch.setitem(sys.modules, "wandb", None)
    opened("offline", tmp_path, notices)
    base.failed["W&B"] -= base.RETRY_AFTER
    opened("offline", tmp_path, notices)
    assert len(notices) == 2


@pytest.mark.parametrize(("mode", "name"), [("tensorboard", "TensorBoard"), ("offline", "W&B")])
def test_a_folder_that_cannot_be_written_does_not_stop_the_run(tmp_path, mode, name):
    (tmp_path / "file").write_text("")
    notices = []
    assert type(opened(mode, tmp_path / "file" / "runs", notices)) is NoTracker
    assert len(notices) == 1
    assert notices[0].startswith(f"{name} cannot be used (NotADirectoryError: ")


@contextmanager
def files_up_to(size):
    """No file may grow beyond `size` bytes, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore")
def test_a_full_disk_does_not_stop_the_run(tmp_path):
    notices = []
    tracker = opened("tensorboard", tmp_path, notices)
    with files_up_to(1 << 20):
        tracker.text("long", "x" * (1 << 21))
        assert not tracker.on
        tracker.log({"loss": 1.0}, 1)
        tracker.finish()
    assert notices == ["TensorBoard stopped working (OSError: [Errno 27] File too large); going on without it"]


class Faulty:
    """A run of which every call raises, or never returns."""

    def __init__(self, *, hangs):
        self.hangs, self.calls = hangs, 0

    def _fail(self, *_given, **_named):
        self.calls += 1
        if self.hangs:
            threading.Event().wait()
        raise ConnectionError("refused\nand more")

    log = finish = add = close = _fail


@pytest.mark.parametrize("kind", [WandbTracker, TensorBoardTracker])
@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda tracker: tracker.log({"loss": 1.0}, 1),
        lambda tracker: tracker.log_statistics({"W": Spread()}, 1),
        lambda tracker: tracker.summarise({"ev": 1.0}),
        lambda tracker: tracker.text("report", "text"),
        lambda tracker: tracker.show([Path("absent.png")]),
        lambda tracker: tracker.finish(),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_failing_tracker_is_left_behind_once(monkeypatch, kind, hangs, call):
    import wandb  # noqa: F401  loading it is not what is timed
    from torch.utils.tensorboard import summary  # noqa: F401

    monkeypatch.setattr(base, "LIMIT", 0.3)
    notices, run = [], Faulty(hangs=hangs)
    tracker = kind(run, notices.append)
    call(tracker)
    called = run.calls
    with tracker:
        tracker.log({"loss": 1.0}, 2)
        tracker.log_statistics({"W": Spread()}, 2)
        tracker.text("report", "text")
    assert run.calls == called
    assert not tracker.on
    assert len(notices) == 1
    assert notices[0].startswith(f"{kind.name} stopped working (")
    assert "\n" not in notices[0]


def test_a_start_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "LIMIT", 0.2)
    monkeypatch.setattr("husai.tracking.wandb.start", lambda *_: threading.Event().wait())
    notices = []
    assert type(opened("online", tmp_path, notices)) is NoTracker
    assert notices[0].startswith("W&B cannot be used (no answer within")


def test_a_failed_run_is_marked_as_such():
    class Run:
        code = None

        def finish(self, exit_code):
            self.code = exit_code

    run = Run()
    with pytest.raises(KeyError), WandbTracker(run, lambda _: None):
        raise KeyError
    assert run.code == 1
    with WandbTracker(run, lambda _: None):
        pass
    assert run.code == 0


def test_what_an_action_raises_and_returns_comes_back():
    assert base.within(5, lambda: os.getpid()) == os.getpid()
    assert base.within(5, lambda: None) is None
    with pytest.raises(KeyError, match="here"):
        base.within(5, lambda: {}["here"])
    with pytest.raises(base.Unanswered):
        base.within(0.05, threading.Event().wait)
