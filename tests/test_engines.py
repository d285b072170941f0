"""Engines: all items, as there is room for them, whatever dies."""

import gc
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import pandas as pd
import psutil
import pytest
from engine_calls import dies, dies_until, double, note_and_wait, odd_only, pid, sleep_then, unpicklable, where

from husai.config import SuiteConfig
from husai.engines import RETRIES
from husai.engines.processes import Processes
from husai.engines.serial import Serial
from husai.errors import HusaiError
from husai.suite import run_suite
from husai.sweep.ways import Ways

SUITE = {
    "name": "tiny",
    "models": [
        {"name": "dots", "model": {"planted": {"d_model": 8, "n_atoms": 12, "k": 2, "samples": 400}}},
        {"name": "more", "model": {"planted": {"d_model": 8, "n_atoms": 12, "k": 3, "samples": 400}}},
    ],
    "init_seeds": [0, 1],
    "data_seeds": [0, 1],
    "entries": [
        {
            "sae": {"architecture": "topk", "d_sae": 16, "k": 2, "k_aux": 2, "dead_steps": 5},
            "training": {"steps": 20, "batch_size": 100, "lr": 3e-3},
        },
        {
            "sae": {"architecture": "batchtopk", "d_sae": 16, "k": 2},
            "training": {"steps": 20, "batch_size": 100, "lr": 3e-3},
        },
    ],
    "analysis": {
        **dict.fromkeys(("null_draws", "wide_null_draws", "curve_null_draws", "aligned_null_draws"), 1),
        **dict.fromkeys(("shifts", "curve_shifts"), 1),
        "curve": [10],
    },
}


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def outcomes(engine, call, items):
    return {ended.item: (ended.result, ended.trouble) for ended in engine.run(call, items)}


@pytest.fixture(scope="module")
def ray():
    """An engine on a cluster of this machine, started once."""
    pytest.importorskip("ray")
    from husai.engines.ray import Ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # workers import `engine_calls`
        engine = Ray(2)
    yield engine
    with warnings.catch_warnings():  # Ray leaves its processes' handles to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        Ray.__exit__(engine)
        gc.collect()


@pytest.fixture(params=["serial", "processes", "ray"])
def engine(request):
    made = {"serial": Serial, "processes": lambda: Processes(2), "ray": lambda: request.getfixturevalue("ray")}
    return made[request.param]()


@pytest.fixture(params=["processes", "ray"])
def apart(request):
    """Engines whose workers are processes of their own."""
    return Processes(2) if request.param == "processes" else request.getfixturevalue("ray")


def test_every_item_is_computed_once(engine):
    assert outcomes(engine, double, range(7)) == {item: (2 * item, "") for item in range(7)}
    assert outcomes(engine, double, []) == {}


def test_items_are_taken_when_there_is_room(engine):
    taken = []

    def items():
        for item in range(9):
            taken.append(item)
            yield item

    ended = 0
    for _ in engine.run(double, items()):
        ended += 1
        assert len(taken) <= ended + engine.workers + 1
    assert ended == len(taken) == 9


def test_who_is_first_comes_first(apart):
    list(apart.run(sleep_then, [0.0, 0.0]))  # workers are there
    order = [ended.item for ended in apart.run(sleep_then, [3.0, 0.1])]
    assert order == [0.1, 3.0]


def test_an_exception_is_the_trouble_of_one_item(apart):
    found = outcomes(apart, odd_only, range(4))
    assert found == {
        0: (None, "ValueError: 0 is even"),
        1: (1, ""),
        2: (None, "ValueError: 2 is even"),
        3: (3, ""),
    }


def test_in_this_process_an_exception_goes_through():
    with pytest.raises(ValueError, match="0 is even"):
        list(Serial().run(odd_only, [0]))


def test_closing_stops_what_runs(apart, tmp_path):
    running = apart.run(note_and_wait, [(str(tmp_path), item) for item in range(2)])

    def close_soon():
        until(lambda: len(list(tmp_path.iterdir())) == 2)
        os.kill(os.getpid(), signal.SIGUSR1)

    def wake(_signal, _frame):
        raise TimeoutError

    before = signal.signal(signal.SIGUSR1, wake)
    threading.Thread(target=close_soon, daemon=True).start()
    with pytest.raises(TimeoutError):
        next(running)
    signal.signal(signal.SIGUSR1, before)
    running.close()
    pids = {int(path.name.partition("-")[2]) for path in tmp_path.iterdir()}
    assert len(pids) == 2
    until(lambda: not any(psutil.pid_exists(one) and "zombie" not in psutil.Process(one).status() for one in pids))


@pytest.mark.parametrize(("how", "why"), [("exit", "exit code 7"), ("kill", "SIGKILL")])
def test_a_worker_that_dies_is_reported_after_so_many_tries(how, why):
    ((item, (result, trouble)),) = outcomes(Processes(1), dies, [how]).items()
    assert (item, result) == (how, None)
    assert trouble.startswith(f"its worker died {RETRIES + 1} times ({why})")


def test_items_of_dead_workers_are_tried_again(apart, tmp_path):
    items = [(str(tmp_path), "well", 0), (str(tmp_path), "once", 1), (str(tmp_path), "never", 99)]
    found = {item[1]: outcome for item, outcome in outcomes(apart, dies_until, items).items()}
    assert found["well"] == ("well", "")
    assert found["once"] == ("once", "")
    assert found["never"][0] is None
    assert f"died {RETRIES + 1} times" in found["never"][1]
    tries = [path.name.partition("-")[0] for path in tmp_path.iterdir()]
    assert {name: tries.count(name) for name in ("well", "once", "never")} == {"well": 1, "once": 2, "never": 3}


def test_a_worker_that_dies_idle_costs_nothing():
    """The next item is given to a new one."""
    found = []

    def items():
        yield "first"
        until(lambda: found)
        os.kill(found[0], signal.SIGKILL)
        until(lambda: not psutil.pid_exists(found[0]) or psutil.Process(found[0]).status() == "zombie")
        yield "second"

    for ended in Processes(1).run(pid, items()):
        assert ended.trouble == ""
        found.append(ended.result)
    assert len(set(found)) == 2


def test_equal_items_are_tried_apart(tmp_path):
    """Tries are counted for an item, not for what is equal to it."""
    told = (str(tmp_path), "same", 2)
    ended = list(Processes(1).run(dies_until, [told, told]))
    assert [one.trouble for one in ended] == ["", ""]


def test_what_cannot_be_sent_back_is_a_trouble():
    ((_, (result, trouble)),) = outcomes(Processes(1), unpicklable, [0]).items()
    assert result is None
    assert trouble


def test_ray_starts_where_the_sweep_did(ray, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert outcomes(ray, where, [0]) == {0: (str(tmp_path), "")}


def test_ray_leaves_the_signals_alone(ray):
    assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None) or "ray" not in repr(
        getattr(signal.getsignal(signal.SIGTERM), "__module__", "")
    )


@pytest.mark.parametrize(("kind", "sentence"), [("gpus", "--gpus 0.5: the cluster has 0 GPUs"), ("cpus", "--cpus 99:")])
def test_what_the_cluster_has_not_is_said(ray, kind, sentence, monkeypatch):
    monkeypatch.setattr(ray, f"{kind}_each", 0.5 if kind == "gpus" else 99)
    with pytest.raises(HusaiError, match=sentence):
        next(ray.run(double, [1]))


def test_without_ray_a_sentence_says_how_to_get_it(monkeypatch):
    from husai.engines.ray import Ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HusaiError, match=r"Ray is not installed; pip install 'husai\[cluster\]'"):
        Ray(1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:6379", "nonsense", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_said_soon(address):
    pytest.importorskip("ray")
    from husai.engines.ray import Ray

    start = time.monotonic()
    with pytest.raises(HusaiError, match=f"--address {address}: "):
        Ray(1, address=address)
    assert time.monotonic() - start < 30


def tables(place):
    files = [*sorted((place / "results").glob("*.parquet")), *sorted((place / "results" / "arrays").iterdir())]
    return {path.name: path.read_bytes() for path in files if path.name != "costs.parquet"}


def test_records_are_the_same_bytes_from_every_engine(tmp_path, ray, monkeypatch):
    from husai import suite as suite_module

    monkeypatch.setattr(suite_module, "write_report", lambda *_: [])
    monkeypatch.setattr(Ways, "open", lambda ways: made[ways.engine]())
    monkeypatch.setattr(type(ray), "__exit__", lambda *_: None)
    made = {"serial": Serial, "processes": lambda: Processes(2), "ray": lambda: ray}
    suite = SuiteConfig.parse(SUITE)
    found = {}
    for engine in made:
        ways = Ways(jobs=2, engine=engine, deterministic=True)
        assert run_suite(suite, tmp_path / engine / "results", tmp_path / engine / "runs", ways) == 0
        found[engine] = tables(tmp_path / engine)
    assert len(found["serial"]) == 2 + 4
    assert found["serial"] == found["processes"] == found["ray"]
    assert (
        run_suite(
            suite, tmp_path / "many" / "results", tmp_path / "many" / "runs", Ways(threads=2, jobs=1, engine="serial")
        )
        == 0
    )
    many = pd.read_parquet(tmp_path / "many" / "results" / "records.parquet")
    assert len(many) == len(pd.read_parquet(tmp_path / "serial" / "results" / "records.parquet"))
