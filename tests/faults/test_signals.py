"""SIGTERM and Ctrl-C: a sentence that says how to continue, its exit code, and nothing half-written left."""

import os
import random
import signal
import time

import pytest
from fault_sweeps import until

PACE = 1.2
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def interrupted(arena, number, jobs, *, group, after):
    """Sweep until `after` seconds into the first cell, then signal; everything must be gone and said.

    All cells take PACE seconds at least, so that the sweep is not over by then.
    """
    sweep = arena.start(jobs=jobs, FAULTS_PACE=str(PACE))
    until(lambda: arena.begun(), sweep=sweep)
    time.sleep(after)
    (os.killpg if group else os.kill)(sweep.pid, number)
    assert sweep.wait() == CODES[number], sweep.text
    (said,) = sweep.sentences
    assert said.endswith("nothing half-written remains, and the same command goes on from what is finished")
    until(lambda: not sweep.group())
    assert arena.temporary() == []
    assert arena.leases() == []
    assert not (arena.store / ".failed").exists(), "to be interrupted is no failure"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.handful)], ids=lambda number: number.name
)
def test_a_serial_sweep_that_is_interrupted_leaves_nothing_half_written(whole, arena, number):
    interrupted(arena, number, 1, group=False, after=PACE)
    arena.finish()
    whole.check(arena, f"{number.name}, serial")


@pytest.mark.parametrize("group", [False, True], ids=["parent", "group"])
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_workers_end_with_a_sweep_that_is_interrupted(whole, arena, number, group):
    """A terminal sends Ctrl-C to the group, and a scheduler may send SIGTERM so."""
    interrupted(arena, number, 2, group=group, after=random.Random(f"{number} {group}").uniform(0, 0.8))
    arena.finish()
    whole.check(arena, f"{number.name}, two processes")


@pytest.mark.parametrize("seed", range(6))
def test_signals_at_random_times(whole, arena, seed):
    stream = random.Random(seed)
    number = stream.choice(list(CODES))
    interrupted(arena, number, 1, group=True, after=stream.uniform(0, 2 * PACE))
    arena.finish()
    whole.check(arena, "SIGINT or SIGTERM at random times, serial")


def test_a_sweep_without_time_goes_on_where_it_stopped(whole, arena):
    """--max-time: exit code 75 until everything is there."""
    codes = []
    while not codes or codes[-1] == 75:
        assert len(codes) < 20, "no cell is ever finished"
        sweep = arena.start("--max-time", str(1.0 + len(codes) / 2), FAULTS_PACE="0.5")
        codes.append(sweep.wait())
        assert ("Out of time with" in sweep.text) == (codes[-1] == 75)
        assert arena.temporary() == []
        assert arena.leases() == []
    assert codes[-1] == 0
    assert len(codes) > 1
    whole.check(arena, "--max-time")
