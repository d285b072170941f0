"""Several sweeps at once on one store, some of them killed; and a clock that nobody can trust."""

import os
import random
import signal
import time

import pytest
from fault_sweeps import CELLS, until


def once(arena):
    assert sorted(arena.begun()) == sorted(set(arena.begun()))
    assert len(arena.begun()) == CELLS


@pytest.mark.handful
def test_two_sweeps_at_once_train_every_cell_once(whole, arena):
    sweeps = [arena.start(FAULTS_PACE="0.2") for _ in range(2)]
    assert [sweep.wait() for sweep in sweeps] == [0, 0], [sweep.text for sweep in sweeps]
    once(arena)
    arena.clean()
    whole.check(arena, "two sweeps at once")


def test_a_serial_sweep_beside_one_of_processes(whole, arena):
    sweeps = [arena.start(jobs=2, FAULTS_PACE="0.5"), arena.start(FAULTS_PACE="2")]
    assert [sweep.wait() for sweep in sweeps] == [0, 0], [sweep.text for sweep in sweeps]
    once(arena)
    arena.clean()
    whole.check(arena, "two sweeps at once")


def test_two_sweeps_on_one_store_with_results_of_their_own(whole, arena):
    first = arena.start(FAULTS_PACE="0.2")
    arena.results = "others"
    second = arena.start(FAULTS_PACE="0.2")
    assert [first.wait(), second.wait()] == [0, 0]
    once(arena)
    whole.check(arena, "two sweeps at once")
    arena.results = "results"
    whole.check(arena, "two sweeps at once")


@pytest.mark.parametrize("seed", range(4))
def test_the_other_takes_over_the_cells_of_one_that_is_killed(whole, arena, seed):
    """At once, since both are on one machine: no beat has to stand still for it."""
    sweeps = [arena.start(FAULTS_PACE="0.4", FAULTS_STALE="100000") for _ in range(2)]
    until(lambda: len(arena.begun()) >= 2, sweep=sweeps[0])
    stream = random.Random(seed)
    time.sleep(stream.uniform(0, 0.8))
    killed, other = stream.sample(sweeps, 2)
    over = killed.poll() is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert other.wait() == 0, other.text
    arena.clean()
    whole.check(arena, "one of two sweeps killed", not over)


def test_shards_at_once_give_the_whole(whole, arena):
    sweeps = [arena.start("--shard", f"{part}/2", FAULTS_PACE="0.2") for part in (1, 2)]
    assert [sweep.wait() for sweep in sweeps] == [0, 0], [sweep.text for sweep in sweeps]
    once(arena)
    arena.clean()
    whole.check(arena, "shards at once")


@pytest.mark.handful
def test_a_clock_that_jumps_by_years_changes_nothing(whole, arena):
    """A killed sweep before, a second one beside; both see every hour of three decades."""
    first = arena.start(FAULTS_CLOCK="1", HUSAI_CRASH_AT="folder-marked:2")
    assert first.wait() == -signal.SIGKILL
    sweeps = [arena.start(FAULTS_CLOCK="1", FAULTS_PACE="0.2") for _ in range(2)]
    assert [sweep.wait() for sweep in sweeps] == [0, 0], [sweep.text for sweep in sweeps]
    arena.clean()
    whole.check(arena, "wall clock jumps by years", 1)


def test_a_clock_that_jumps_and_processes(whole, arena):
    sweep = arena.start(jobs=2, FAULTS_CLOCK="1", FAULTS_STALE="5", FAULTS_BEAT="0.1")
    assert sweep.wait() == 0, sweep.text
    once(arena)
    whole.check(arena, "wall clock jumps by years")
