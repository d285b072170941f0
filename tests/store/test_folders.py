import errno
import os

import pytest

from husai.errors import HusaiError
from husai.store.checksums import DONE
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
