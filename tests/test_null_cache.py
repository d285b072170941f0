import sys
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen

import numpy as np
import pytest
import torch

import husai
from husai.analysis.matching import max_cosine, pwmcc
from husai.analysis.nulls import DRAWN_NULLS, null_matrices, sampler
from husai.errors import HusaiError
from husai.measure import null_cache
from husai.measure.null_cache import Fingerprint, NullCache, NullKey
from husai.seeding import generator

KEY = NullKey("ambient", "d 4", ("pwmcc", "max_cosine"), False)
LIVE = (5, 3, 4)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator("test-null-cache", seed))


def both(A: torch.Tensor, B: torch.Tensor) -> tuple[float, float]:
    return pwmcc(A, B), max_cosine(A, B)


class Drawing:
    """Real draws, and what was asked of it."""

    def __init__(self, null: str = "ambient", x: torch.Tensor | None = None) -> None:
        self.draw = sampler(null, normal(50, 4) if x is None else x)
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def __call__(self, n_live: tuple[int, ...], count: int) -> np.ndarray:
        self.asked.append((n_live, count))
        return null_matrices(self.draw, n_live, both, draws=count, purpose="test-null-cache")


# --- what is drawn once ---


def test_the_second_time_nothing_is_drawn(tmp_path):
    drawing = Drawing()
    first = NullCache(tmp_path).draws(KEY, LIVE, 6, drawing)
    again = NullCache(tmp_path).draws(KEY, LIVE, 6, drawing)
    assert drawing.asked == [((3, 4, 5), 6)]
    assert np.array_equal(first, again)
    assert first.shape == (6, 3, 3, 2)


def test_kept_draws_are_those_without_a_folder(tmp_path):
    drawing = Drawing()
    computed = NullCache().draws(KEY, LIVE, 6, drawing)
    kept = NullCache(tmp_path)
    assert np.array_equal(kept.draws(KEY, LIVE, 6, drawing), computed)
    assert np.array_equal(kept.draws(KEY, LIVE, 6, drawing), computed)
    assert len(drawing.asked) == 2
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_fewer_draws_are_the_first_of_more_and_more_are_drawn_anew(tmp_path):
    drawing, cache = Drawing(), NullCache(tmp_path)
    few = cache.draws(KEY, LIVE, 2, drawing)
    many = cache.draws(KEY, LIVE, 7, drawing)
    assert np.array_equal(cache.draws(KEY, LIVE, 4, drawing), many[:4])
    assert np.array_equal(few, many[:2])
    assert [count for _, count in drawing.asked] == [2, 7]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0), (0, 2, 1)])
def test_seeds_in_another_order_share_an_entry(tmp_path, order):
    drawing, cache = Drawing(), NullCache(tmp_path)
    rising = cache.draws(KEY, (3, 4, 5), 6, drawing)
    other = cache.draws(KEY, tuple((3, 4, 5)[seed] for seed in order), 6, drawing)
    assert len(drawing.asked) == 1
    for i in range(3):
        for j in range(3):
            assert np.array_equal(other[:, i, j], rising[:, order[i], order[j]])


def test_a_directed_score_keeps_its_direction():
    """Entry [i, j] says which dictionaries it is of: ten times the atoms of i, and those of j."""

    def told(n_live: tuple[int, ...], count: int) -> np.ndarray:
        n = np.array(n_live)
        return np.tile(10 * n[:, None] + n, (count, 1, 1))

    drawn = NullCache().draws(KEY, (5, 3, 4), 2, told)
    assert drawn[0].tolist() == [[55, 53, 54], [35, 33, 34], [45, 43, 44]]


# --- what draws depend on ---


@pytest.mark.parametrize(
    "other",
    [
        NullKey("data", "d 4", KEY.scores, False),
        NullKey("ambient", "d 5", KEY.scores, False),
        NullKey("ambient", "d 4", ("max_cosine", "pwmcc"), False),
        NullKey("ambient", "d 4", KEY.scores, True),
    ],
    ids=["rung", "drawn_from", "scores", "abs"],
)
def test_everything_in_the_key_counts(tmp_path, other):
    drawing, cache = Drawing(), NullCache(tmp_path)
    cache.draws(KEY, LIVE, 2, drawing)
    cache.draws(other, LIVE, 2, drawing)
    assert len(drawing.asked) == 2


def test_numbers_of_live_atoms_and_the_code_count(tmp_path, monkeypatch):
    drawing, cache = Drawing(), NullCache(tmp_path)
    cache.draws(KEY, (3, 4, 5), 2, drawing)
    cache.draws(KEY, (3, 4, 6), 2, drawing)
    monkeypatch.setattr(null_cache, "CODE", "changed")
    cache.draws(KEY, (3, 4, 5), 2, drawing)
    assert len(drawing.asked) == 3


def test_the_code_that_draws_is_found():
    root = Path(husai.__file__).parent
    assert all((root / name).exists() for name in null_cache.DRAWING_CODE)


def test_fingerprints_tell_what_each_rung_tells_apart():
    x = normal(40, 4)
    turned = x @ torch.linalg.qr(normal(4, 4, seed=1)).Q
    halves = [Fingerprint.of(part) for part in (x, x.clone(), x + 1.0, x.flip(0), turned, normal(40, 5))]
    same, again, moved, backwards, other, wider = halves
    assert same == again
    for rung in DRAWN_NULLS:
        assert same.under(rung) != wider.under(rung)
    assert same.under("ambient") == other.under("ambient")
    assert same.under("data") != other.under("data")
    assert same.under("data_points") != other.under("data_points")
    assert same.under("data_points") != backwards.under("data_points"), "points are drawn by their number"
    assert same.under("data_relu") == same.under("data_points"), "codes are of the samples"
    assert moved.d == same.d


@pytest.mark.parametrize("null", DRAWN_NULLS)
def test_equal_fingerprints_have_equal_draws_and_others_not(tmp_path, null):
    cache, found = NullCache(tmp_path), []
    for x in (normal(50, 4), normal(50, 4), 3 * normal(50, 4, seed=2) ** 3):
        key = NullKey(null, Fingerprint.of(x).under(null), ("pwmcc", "max_cosine"), False)
        found.append((cache.draws(key, LIVE, 3, Drawing(null, x)), NullCache().draws(key, LIVE, 3, Drawing(null, x))))
    assert all(np.array_equal(kept, computed) for kept, computed in found)
    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][0], found[2][0]) is (null == "ambient")


# --- damage, and company ---


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    """One byte of the draws, which come first in the file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 0xFF
    path.write_bytes(bytes(data))


def swap(path: Path) -> None:
    """Whole, but of another key."""
    with np.load(path) as entry:
        np.savez(path, draws=entry["draws"] + 1, key=np.array("other"))


def pickled(path: Path) -> None:
    np.savez(path, draws=np.array([{"a": 1}], dtype=object), key=np.array("other"))


@pytest.mark.parametrize("damage", [cut, flip, swap, pickled, lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_entry_is_drawn_anew_and_replaced(tmp_path, damage):
    drawing, cache = Drawing(), NullCache(tmp_path)
    first = cache.draws(KEY, LIVE, 6, drawing)
    (path,) = tmp_path.iterdir()
    damage(path)
    assert np.array_equal(cache.draws(KEY, LIVE, 6, drawing), first)
    assert np.array_equal(cache.draws(KEY, LIVE, 6, drawing), first)
    assert len(drawing.asked) == 2, "drawn anew once"


def test_an_entry_with_fewer_draws_than_its_name_says_is_not_trusted(tmp_path):
    drawing, cache = Drawing(), NullCache(tmp_path)
    cache.draws(KEY, LIVE, 2, drawing)
    (path,) = tmp_path.iterdir()
    path.rename(path.with_name(path.name.replace("-2.npz", "-9.npz")))
    assert len(cache.draws(KEY, LIVE, 5, drawing)) == 5


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HusaiError, match="cannot be written"):
        NullCache(tmp_path / "file").draws(KEY, LIVE, 2, Drawing())


def test_a_failed_draw_leaves_nothing(tmp_path):
    def fails(n_live: tuple[int, ...], count: int) -> np.ndarray:
        raise RuntimeError("drawn in vain")

    with pytest.raises(RuntimeError, match="in vain"):
        NullCache(tmp_path).draws(KEY, LIVE, 2, fails)
    assert list(tmp_path.iterdir()) == []


WORKER = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[3])
from test_null_cache import KEY, LIVE, Drawing
from husai.measure.null_cache import NullCache

drawing, cache = Drawing(), NullCache(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
np.savez(sys.argv[2], *[cache.draws(KEY, LIVE, count, drawing) for count in (2, 5, 3, 8, 5, 2)])
"""


def test_two_processes_at_once_agree(tmp_path):
    folder, here = tmp_path / "nulls", str(Path(__file__).parent)
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                Popen([sys.executable, "-c", WORKER, str(folder), str(tmp_path / name), here], stdin=PIPE, stdout=PIPE)
            )
            for name in ("one.npz", "two.npz")
        ]
        assert [worker.stdout.readline() for worker in workers if worker.stdout] == [b"ready\n"] * 2
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(b"go\n")
            worker.stdin.flush()
    assert [worker.returncode for worker in workers] == [0, 0]
    expected = NullCache().draws(KEY, LIVE, 8, Drawing())
    for name in ("one.npz", "two.npz"):
        with np.load(tmp_path / name) as found:
            for drawn in found.values():
                assert np.array_equal(drawn, expected[: len(drawn)])
    assert sorted(path.name.rsplit("-", 1)[1] for path in folder.iterdir()) == ["2.npz", "5.npz", "8.npz"]
