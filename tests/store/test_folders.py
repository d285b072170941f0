import errno
import json
import os
import subprocess
import sys

import pytest

from husai.errors import HusaiError
from husai.store.checksums import DONE, verify
from husai.store.folders import finished, whole_folder
from husai.transformer.weights import save_weights


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole_and_done(tmp_path):
    place = tmp_path / "deep" / "run"
    with whole_folder(place) as folder:
        (folder / "metrics.json").write_text("{}")
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("x")
        assert not place.exists()
        assert not (folder / DONE).exists()
        assert folder.parent == place.parent  # one file system, so that the rename is atomic
    assert finished(place)
    assert listing(place) == ["DONE", "checksums.json", "metrics.json", "sub"]
    assert (place / "sub" / "x").read_text() == "x"
    assert listing(tmp_path / "deep") == ["run"]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), HusaiError("bad input")])
def test_a_failure_leaves_nothing_and_passes_on(tmp_path, error):
    def fill():
        with whole_folder(tmp_path / "some" / "where" / "run") as folder:
            (folder / "half").write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        fill()
    assert caught.value is error
    assert listing(tmp_path) == []


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path):
    place = tmp_path / "run"

    def fill():
        with whole_folder(place) as folder:
            (folder / "half").write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(HusaiError) as caught:
        fill()
    assert str(caught.value) == f"{place}: cannot be written (No space left on device)"
    assert listing(tmp_path) == []


def test_a_disk_that_fills_up_while_weights_are_saved(tmp_path, fresh, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("husai.transformer.weights.save_file", full)

    def fill():
        with whole_folder(tmp_path / "run") as folder:
            save_weights(fresh(), folder / "model.safetensors")

    with pytest.raises(HusaiError, match="No space left on device"):
        fill()
    assert listing(tmp_path) == []


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HusaiError, match=r"file/run: cannot be written"), whole_folder(tmp_path / "file" / "run"):
        pytest.fail("must not be entered")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_finished_run_is_not_overwritten(tmp_path):
    place = tmp_path / "run"
    with whole_folder(place) as folder:
        (folder / "first").write_text("1")
    with pytest.raises(HusaiError, match="run: already holds a finished run; choose another"), whole_folder(place):
        pytest.fail("must not be entered")
    assert listing(place) == ["DONE", "checksums.json", "first"]


@pytest.mark.parametrize("kind", ["folder with a file", "file"])
def test_foreign_files_are_not_overwritten(tmp_path, kind):
    place = tmp_path / "run"
    if kind == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "thesis.tex").write_text("mine")
    with pytest.raises(HusaiError, match="run: exists and is not an empty folder"), whole_folder(place):
        pytest.fail("must not be entered")
    assert (place if kind == "file" else place / "thesis.tex").read_text() == "mine"


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "run").mkdir()
    with whole_folder(tmp_path / "run"):
        pass
    assert finished(tmp_path / "run")


def test_replacing_keeps_the_old_run_until_the_new_one_is_whole(tmp_path):
    place = tmp_path / "run"
    with whole_folder(place) as folder:
        (folder / "old").write_text("1")

    def fail():
        with whole_folder(place, replace_existing=True):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert listing(place) == ["DONE", "checksums.json", "old"]
    with whole_folder(place, replace_existing=True) as folder:
        (folder / "new").write_text("2")
    assert listing(place) == ["DONE", "checksums.json", "new"]


# --- several writers


def write(folder, config="a", **known):
    (folder / "config.yaml").write_text(config)
    (folder / "provenance.json").write_text(json.dumps({"finished": "now", **known}))


def test_of_two_writers_of_one_run_the_first_stays(tmp_path):
    place = tmp_path / "run"
    with whole_folder(place) as late:
        with whole_folder(place) as early:
            write(early, run_id="x", seconds=1)
        write(late, run_id="x", seconds=2)
    assert json.loads((place / "provenance.json").read_text())["seconds"] == 1
    assert verify(place) == []
    assert listing(tmp_path) == ["run"]


@pytest.mark.parametrize("other", [{"config": "b"}, {"run_id": "y"}, {"model_name": "m"}])
def test_of_two_writers_of_different_runs_the_second_is_told(tmp_path, other):
    place = tmp_path / "run"

    def fill():
        with whole_folder(place) as late:
            with whole_folder(place) as early:
                write(early, run_id="x")
            write(late, **({"run_id": "x"} | other))

    with pytest.raises(HusaiError, match="run: already holds a finished run"):
        fill()
    assert (place / "config.yaml").read_text() == "a"
    assert listing(tmp_path) == ["run"]


def test_what_a_stranger_put_there_meanwhile_stays(tmp_path):
    place = tmp_path / "run"

    def fill():
        with whole_folder(place) as folder:
            write(folder)
            place.mkdir()
            (place / "thesis.tex").write_text("mine")

    with pytest.raises(HusaiError, match="run: exists and is not an empty folder"):
        fill()
    assert listing(place) == ["thesis.tex"]
    assert listing(tmp_path) == ["run"]


RACE = """
import json, sys, time
from pathlib import Path
from husai.errors import HusaiError
from husai.store.folders import finished, whole_folder
folder, me, made = Path(sys.argv[1]), sys.argv[2], 0
(folder / me).write_text("")
while len(list(folder.glob("[01]"))) < 2:
    time.sleep(0.001)
for n in range(30):
    place = folder / "runs" / f"run{n}"
    try:
        with whole_folder(place) as inside:
            (inside / "config.yaml").write_text("a")
            (inside / "provenance.json").write_text(json.dumps({"run_id": place.name, "by": me}))
            (inside / "weights").write_text(me * 1000)
        made += 1
    except HusaiError as error:
        assert "already holds a finished run" in str(error), error
    assert finished(place)
print(made)
"""


def test_two_processes_that_write_the_same_runs_make_each_once(tmp_path):
    both = [
        subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path), me], stdout=subprocess.PIPE, text=True)
        for me in "01"
    ]
    made = [int(process.communicate(timeout=120)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(made) >= 30
    assert listing(tmp_path / "runs") == sorted(f"run{n}" for n in range(30))
    for place in (tmp_path / "runs").iterdir():
        assert verify(place) == []
        assert (place / "weights").read_text() == json.loads((place / "provenance.json").read_text())["by"] * 1000


def test_a_failing_writer_does_not_take_the_folder_from_under_another(tmp_path):
    place = tmp_path / "runs" / "one"

    def fail():
        with whole_folder(tmp_path / "runs" / "two"), whole_folder(place):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert listing(tmp_path) == []


def test_what_is_written_cannot_be_read_back_wrong(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("husai.store.folders.flush", full)

    def fill():
        with whole_folder(tmp_path / "run") as folder:
            write(folder)

    with pytest.raises(HusaiError, match="run: cannot be written \\(No space left on device\\)"):
        fill()
    assert listing(tmp_path) == []
