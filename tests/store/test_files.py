import pytest

from husai.errors import HusaiError
from husai.store.files import write_atomic


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_replaces_whole_files(tmp_path):
    path = tmp_path / "new" / "state.json"
    write_atomic(path, "one")
    write_atomic(path, "two")
    assert path.read_text() == "two"
    assert listing(path.parent) == ["state.json"]
    with pytest.raises(HusaiError, match=r"x: cannot be written"):
        write_atomic(path / "x", "three")
