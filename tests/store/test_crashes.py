"""A process killed at every place between two file operations of the store: what is there is whole, and work goes on."""

import re
import time
from pathlib import Path

import pytest

import husai
from husai.errors import HusaiError
from husai.store.checksums import verify
from husai.store.files import CRASH_POINTS, crash_point, write_atomic
from husai.store.folders import finished, whole_folder
from husai.store.gc import find, remove
from husai.store.lease import Lease

FILE = """
import sys; from pathlib import Path; from husai.store.files import write_atomic
write_atomic(Path(sys.argv[1]), "new")
"""
FOLDER = """
import sys; from pathlib import Path; from husai.store.folders import whole_folder
with whole_folder(Path(sys.argv[1]), replace_existing=len(sys.argv) > 2) as folder:
    (folder / "sub").mkdir(); (folder / "sub" / "x").write_text("new"); (folder / "y").write_text("new")
"""
LEASE = """
import sys, time; from pathlib import Path; from husai.store.lease import Lease
with Lease.take(Path(sys.argv[1]), about="x", beat_every=0.01) as lease:
    lease.say(step=1); time.sleep(0.5)
"""
GC = """
import sys; from pathlib import Path; from husai.store.gc import find, remove
runs, results = map(Path, sys.argv[1:])
remove(find(runs, [results], unreferenced=True))
"""


def of(kind):
    return [name for name in CRASH_POINTS if name.startswith(kind)]


def clean(runs):
    """Collect what the dead left, until there is nothing more: one lease may have hidden another."""
    while (found := find(runs)).remove:
        assert remove(found)


@pytest.mark.parametrize("point", of("file"))
def test_a_file_is_old_or_new(tmp_path, killed, listing, point):
    path = tmp_path / "table"
    path.write_text("old")
    assert killed(FILE, path, at=point)
    assert path.read_text() == ("new" if point == "file-renamed" else "old")
    clean(tmp_path)
    assert listing(tmp_path) == ["table"]
    write_atomic(path, "next")
    assert path.read_text() == "next"


@pytest.mark.parametrize("point", [point for point in of("folder") if point != "folder-aside"])
def test_a_folder_is_whole_or_absent(tmp_path, killed, listing, point):
    place = tmp_path / "run"
    assert killed(FOLDER, place, at=point)
    assert finished(place) == place.exists() == (point == "folder-renamed")
    assert verify(place) == []
    clean(tmp_path)
    assert listing(tmp_path) == (["run"] if point == "folder-renamed" else [])
    if not finished(place):
        with whole_folder(place) as folder:
            (folder / "y").write_text("next")
    assert verify(place) == []


@pytest.mark.parametrize("point", of("folder"))
def test_a_folder_that_is_replaced_is_old_or_new_or_absent(tmp_path, killed, listing, point):
    place = tmp_path / "run"
    with whole_folder(place) as folder:
        (folder / "y").write_text("old")
    assert killed(FOLDER, place, "replace", at=point)
    if point == "folder-aside":
        assert not place.exists()
    else:
        assert (place / "y").read_text() == ("new" if point == "folder-renamed" else "old")
        assert finished(place)
        assert verify(place) == []
    clean(tmp_path)
    with whole_folder(place, replace_existing=True) as folder:
        (folder / "y").write_text("next")
    assert listing(tmp_path) == ["run"]
    assert verify(place) == []


@pytest.mark.parametrize("point", of("lease"))
def test_a_lease_is_free_once_its_holder_is_dead(tmp_path, killed, listing, point):
    path = tmp_path / ".leases" / "run.json"
    assert killed(LEASE, path, at=point)
    lease, end = None, time.monotonic() + 20
    while lease is None and time.monotonic() < end:
        lease = Lease.take(path, about="next")
    assert lease
    lease.release()
    clean(tmp_path)
    assert listing(path.parent) == []


@pytest.mark.parametrize("point", of("lease"))
def test_gc_removes_what_a_dead_holder_left(tmp_path, killed, listing, point):
    path = tmp_path / ".leases" / "run.json"
    assert killed(LEASE, path, at=point)
    clean(tmp_path)
    assert listing(path.parent) == []


def test_gc_leaves_no_half_run(tmp_path, killed, listing, make_run, make_suite):
    runs, results = tmp_path / "runs", tmp_path / "results"
    make_suite(results / "suite", cells=["a" * 12])
    kept, place = make_run(runs / ("a" * 12), "m"), make_run(runs / ("b" * 12), "m")
    assert killed(GC, runs, results, at="run-aside")
    assert not place.exists()
    assert finished(kept)
    clean(runs)
    assert listing(runs) == [kept.name]


def test_the_third_time_is_the_third_time(tmp_path, killed):
    code = FILE + 'write_atomic(Path(sys.argv[1]), "two")\nwrite_atomic(Path(sys.argv[1]), "three")\n'
    assert killed(code, tmp_path / "x", at="file-renamed:2")
    assert (tmp_path / "x").read_text() == "two"
    assert not killed(code, tmp_path / "x", at="file-renamed:4")
    assert (tmp_path / "x").read_text() == "three"


@pytest.mark.parametrize(
    "asked", ["nowhere", "file-written:0", "file-written:x", "file-written:", ":1", "file-written:-1"]
)
def test_a_wrong_crash_point_is_a_sentence(tmp_path, monkeypatch, listing, asked):
    monkeypatch.setenv("HUSAI_CRASH_AT", asked)
    with pytest.raises(HusaiError, match=r"HUSAI_CRASH_AT=.*must be a crash point.*file-written, file-flushed"):
        write_atomic(tmp_path / "x", "x")
    assert listing(tmp_path) == []
    monkeypatch.setenv("HUSAI_CRASH_AT", "")
    crash_point("file-written")


def test_every_crash_point_of_the_code_is_listed_and_every_listed_one_is_in_the_code():
    text = "".join(path.read_text() for path in Path(husai.__file__).parent.rglob("*.py"))
    called = re.findall(r'crash_point\("([^"]+)"\)', text)
    assert set(called) == set(CRASH_POINTS)
    assert len(called) == len(set(called)), "a name is one place"
    assert len(re.findall(r"crash_point\(", text)) == len(called) + 1  # and its definition
