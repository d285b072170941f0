import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from husai.errors import HusaiError
from husai.store import lease as module
from husai.store import processes
from husai.store.lease import Lease, Watch, break_dead, end_file, hold, read_holder
from husai.store.processes import Process

PATIENCE = 20.0  # seconds a test waits for another process


def until(condition, patience=PATIENCE):
    """What the condition gives once it is true."""
    end = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < end, "took too long"
        time.sleep(0.01)
    return found


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


HOLDER = """
import sys, time
from pathlib import Path
from husai.store.lease import Lease
lease = Lease.take(Path(sys.argv[1]), about="a test", beat_every=0.05)
assert lease
lease.say(step=3, loss=0.5)
print("held", flush=True)
for line in sys.stdin:
    print(lease.lost, flush=True)
lease.release()
"""


@pytest.fixture
def other():
    """Starts processes that hold a lease until their standard input ends; a line asks whether it is lost."""
    started = []

    def start(path):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def content(**changed):
    """A lease file as a process elsewhere would write it."""
    process = Process("0" * 8, "1" * 8, 4321, 99)
    return json.dumps({"token": "a" * 32, "host": "node7", **process._asdict(), "about": "x", **changed})


# --- one holder


def test_of_two_one_holds_and_the_next_may_after_it(tmp_path):
    path = tmp_path / "leases" / "run.json"
    with Lease.take(path, about="first") as first:
        assert not first.lost
        assert read_holder(path).about == "first"
        assert Lease.take(path, about="second") is None
    assert listing(path.parent) == []
    assert read_holder(path) is None
    second = Lease.take(path, about="second")
    second.release()
    second.release()
    assert listing(path.parent) == []


def test_many_threads_take_one_and_none_takes_it_twice(tmp_path):
    path, taken, gate = tmp_path / "run.json", [], threading.Barrier(8)

    def one():
        gate.wait()
        taken.append(Lease.take(path, about="race"))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [lease for lease in taken if lease]
    winner.release()
    assert listing(tmp_path) == []


def test_others_see_who_holds_it_and_how_far_it_is(tmp_path, other):
    path = tmp_path / "run.json"
    process = other(path)
    holder = until(lambda: (seen := read_holder(path)).beat >= 2 and seen)
    assert holder.process.pid == process.pid
    assert holder.about == "a test"
    assert holder.progress == {"step": 3, "loss": 0.5}
    assert not holder.dead_here()
    assert str(process.pid) in str(holder)
    process.communicate("")
    assert listing(tmp_path) == []


def test_what_cannot_be_written_as_json_does_not_stop_the_beats(tmp_path):
    path = tmp_path / "run.json"
    with Lease.take(path, about="x", beat_every=0.01) as lease:
        lease.say(loss=float("nan"), where=tmp_path, nested={1, 2})
        assert until(lambda: read_holder(path).beat >= 3)


def test_an_unwritable_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HusaiError, match=r"file/run\.json: cannot be written"):
        Lease.take(tmp_path / "file" / "run.json", about="x")
    assert read_holder(tmp_path / "file" / "run.json") is None


# --- the dead


def test_a_killed_holder_is_dead_at_once_and_its_lease_is_taken(tmp_path, other):
    path = tmp_path / "run.json"
    process = other(path)
    assert Lease.take(path, about="too early") is None
    process.kill()  # and not waited for: its remains are still in the table of processes
    assert until(lambda: read_holder(path).dead_here())
    with Lease.take(path, about="next") as lease:
        assert read_holder(path).token == lease.token
        assert not lease.lost
    assert listing(tmp_path) == []


def test_a_later_process_of_the_same_number_does_not_pass_for_the_holder(tmp_path):
    path, me = tmp_path / "run.json", Process.here()
    for dead in (me._replace(start=me.start + 1), me._replace(boot="0" * 8)):
        path.write_text(content(**dead._asdict()))
        assert read_holder(path).dead_here()
    for alive in (me, me._replace(machine="0" * 8, start=0)):
        path.write_text(content(**alive._asdict()))
        assert not read_holder(path).dead_here()
        assert Lease.take(path, about="x") is None


def test_a_holder_elsewhere_is_dead_after_standing_still_as_long_as_one_watches(tmp_path, monkeypatch):
    path, clock = tmp_path / "run.json", [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    path.write_text(content())
    beats = path.with_name(f".{path.name}.{'a' * 32}.beat")
    watch = Watch(stale_after=60)
    assert not watch.stale(path)
    clock[0] += 59
    assert not watch.stale(path)
    beats.write_text('{"beat": 1, "progress": {"step": 5}}')
    clock[0] += 59
    assert not watch.stale(path), "it has beaten"
    assert read_holder(path).progress == {"step": 5}
    clock[0] += 61
    assert watch.stale(path)
    assert not Watch(stale_after=60).stale(path), "another observer has seen nothing yet"
    path.write_text(content(token="b" * 32))
    assert not watch.stale(path), "another holder"
    path.unlink()
    assert not watch.stale(path)


def test_a_watch_lets_a_lease_of_a_silent_holder_be_taken(tmp_path):
    path, watch = tmp_path / "run.json", Watch(stale_after=0.1)
    path.write_text(content())
    assert Lease.take(path, about="x", watch=watch) is None
    lease = until(lambda: Lease.take(path, about="x", watch=watch))
    lease.release()
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    ["", "{", content()[:40], "[]", "null", content(token="../../etc"), content(pid="x"), "\x00" * 64, "[" * 100_000],
)
def test_a_file_that_is_no_lease_counts_as_held_until_it_has_stayed_so(tmp_path, text):
    path, watch = tmp_path / "run.json", Watch(stale_after=0.1)
    path.write_text(text)
    holder = read_holder(path)
    assert holder.process is None
    assert not holder.dead_here()
    assert str(holder) == "a file that cannot be read"
    assert Lease.take(path, about="x", watch=watch) is None
    lease = until(lambda: Lease.take(path, about="x", watch=watch))
    lease.release()
    assert listing(tmp_path) == []


def test_beats_that_cannot_be_read_leave_the_holder_known(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(content())
    for text in ("", "[]", '{"beat": "x"}', '{"beat": 1, "progress": 3}'):
        path.with_name(f".{path.name}.{'a' * 32}.beat").write_text(text)
        assert read_holder(path).host == "node7"


def test_of_several_who_break_a_dead_lease_one_succeeds(tmp_path):
    path, won = tmp_path / "run.json", []
    for _ in range(20):
        path.write_text(content())
        gate = threading.Barrier(4)

        def one(gate=gate):
            gate.wait()
            won.append(break_dead(path, "a" * 32))

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(won) == 20
    assert listing(tmp_path) == []


def test_who_is_late_to_break_a_dead_lease_takes_nothing_from_the_next_holder(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(content())
    with pytest.MonkeyPatch.context() as patch:
        # Between the decision to break and the look at the file, another breaks it and takes it.
        create, rivals = module._create, []

        def slow(place, token, about):
            if place == end_file(path, "a" * 32) and not rivals:
                rivals.append(None)
                assert break_dead(path, "a" * 32)
                rivals.append(Lease.take(path, about="rival"))
            return create(place, token, about)

        patch.setattr(module, "_create", slow)
        assert not break_dead(path, "a" * 32)
    rival = rivals[1]
    assert read_holder(path).token == rival.token
    assert not rival.lost
    rival.release()
    assert listing(tmp_path) == []


def test_a_process_killed_while_it_breaks_a_lease_stops_nobody(tmp_path):
    path, me = tmp_path / "run.json", Process.here()
    path.write_text(content())
    end = end_file(path, "a" * 32)
    end.write_text(content(token="c" * 32, **me._replace(start=me.start + 1)._asdict()))
    assert not break_dead(path, "a" * 32)
    assert not end.exists()
    assert break_dead(path, "a" * 32)
    assert listing(tmp_path) == []


def test_what_another_created_meanwhile_is_put_back(tmp_path):
    end = tmp_path / "end"
    end.write_text(content(token="d" * 32))
    module._take_away(end, "c" * 32)
    assert listing(tmp_path) == ["end"]
    module._take_away(end, "d" * 32)
    assert listing(tmp_path) == []


# --- holders that were robbed, forked, or stopped


def test_a_stopped_holder_that_goes_on_notices_that_it_lost(tmp_path, other):
    path, watch = tmp_path / "run.json", Watch(stale_after=0.5)
    process = other(path)
    process.stdin.write("?\n")
    process.stdin.flush()
    assert process.stdout.readline() == "False\n"
    os.kill(process.pid, signal.SIGSTOP)
    lease = until(lambda: Lease.take(path, about="next", watch=watch, beat_every=0.05))
    os.kill(process.pid, signal.SIGCONT)
    process.stdin.write("?\n")
    process.stdin.flush()
    assert process.stdout.readline() == "True\n"
    process.communicate("")
    assert read_holder(path).token == lease.token, "it took nothing away when it ended"
    assert not lease.lost
    lease.release()
    assert listing(tmp_path) == []


def test_a_beating_holder_is_never_stale(tmp_path, other):
    path, watch = tmp_path / "run.json", Watch(stale_after=1.0)
    other(path)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        assert not watch.stale(path)
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["gone", "another's", "damaged"])
def test_a_lease_that_was_taken_away_is_lost(tmp_path, how):
    path = tmp_path / "run.json"
    lease = Lease.take(path, about="x", beat_every=0.02)
    path.unlink()
    if how != "gone":
        path.write_text(content() if how == "another's" else "{")
    assert until(lambda: lease.lost)
    lease.release()
    assert path.exists() == (how != "gone")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_does_not_hold_what_its_parent_holds(tmp_path):
    path = tmp_path / "run.json"
    with Lease.take(path, about="x") as lease:
        child = os.fork()
        if not child:
            lease.release()
            os._exit(0 if lease.lost else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert read_holder(path).token == lease.token
        assert not lease.lost


def test_wall_clocks_change_nothing(tmp_path, monkeypatch):
    path, jumps = tmp_path / "run.json", iter(range(0, 10**9, 10**6))
    monkeypatch.setattr(time, "time", lambda: float(10**9 - next(jumps)))
    with Lease.take(path, about="x", beat_every=0.02) as lease:
        watch = Watch(stale_after=5)
        os.utime(path, (0, 0))
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            assert not watch.stale(path)
            assert not lease.lost
            assert Lease.take(path, about="y", watch=watch) is None
        os.utime(path, (2**32, 2**32))
        assert not watch.stale(path)
        assert not lease.lost


# --- hold


def test_hold_waits_its_turn(tmp_path):
    path, inside, seen = tmp_path / "table.lock", [], []

    def one():
        for _ in range(10):
            with hold(path, about="a table", wait=PATIENCE):
                inside.append(1)
                seen.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 40
    assert listing(tmp_path) == []


def test_hold_names_the_holder_when_it_gives_up(tmp_path):
    path = tmp_path / "table.lock"
    with Lease.take(path, about="the tables of default"):
        with pytest.raises(HusaiError) as caught, hold(path, about="x", wait=0.05):
            pytest.fail("must not be entered")
        assert str(path) in str(caught.value)
        assert f"process {os.getpid()} on " in str(caught.value)
        assert "the tables of default" in str(caught.value)
    with pytest.raises(ValueError, match="inside"), hold(path, about="x"):
        raise ValueError("inside")
    assert listing(tmp_path) == []


INCREMENT = """
import sys, time
from pathlib import Path
from husai.store.lease import hold
folder = Path(sys.argv[1])
for _ in range(25):
    with hold(folder / "count.lock", about="a count", wait=60):
        count = int((folder / "count").read_text())
        time.sleep(0.001)
        (folder / "count").write_text(str(count + 1))
"""


def test_two_processes_never_are_inside_together(tmp_path):
    (tmp_path / "count").write_text("0")
    both = [subprocess.Popen([sys.executable, "-c", INCREMENT, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert (tmp_path / "count").read_text() == "50"
    assert listing(tmp_path) == ["count"]


# --- processes


def test_a_process_knows_itself_and_the_dead():
    me = Process.here()
    assert me.is_here
    assert not me.dead_here()
    child = subprocess.Popen([sys.executable, "-c", ""])
    assert me.start <= processes.start_of(child.pid)
    until(lambda: processes.start_of(child.pid) is None)  # dead as soon as it ended, though nobody waited for it
    child.wait()
    assert me._replace(pid=child.pid).dead_here()
    assert replace(read_nothing(), process=me._replace(machine="f" * 8, pid=child.pid)).dead_here() is False


def read_nothing():
    return module.Holder("a" * 32)


def test_names_of_temporary_files_say_who_writes_them(tmp_path):
    path = processes.temporary_of(tmp_path / "records.parquet")
    assert path.parent == tmp_path
    assert Process.of_temporary(path) == ("records.parquet", Process.here())
    assert path != processes.temporary_of(tmp_path / "records.parquet")
    for name in (".records.parquet.abc", "records.parquet", ".gitignore"):
        assert Process.of_temporary(tmp_path / name) is None
