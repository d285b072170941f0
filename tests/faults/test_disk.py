"""A disk that is full, files that may not grow, folders that cannot be written: a sentence, and nothing half-written."""

import subprocess

import pytest

SIZES = (16, 100, 300, 1000, 3000, 12000, 20000)  # bytes beyond which no file may grow; tables have more


def failed_cleanly(arena, sweep):
    """Bad input (2) or failed cells (1) in sentences; what is there is whole."""
    code = sweep.wait()
    assert code in (1, 2), sweep.text
    assert sweep.sentences
    assert arena.temporary() == []
    return code


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=pytest.mark.handful if size == 1000 else ()) for size in SIZES]
)
def test_files_that_may_not_grow(whole, arena, size):
    sweep = arena.start(fsize=size, FAULTS_LOG="")
    failed_cleanly(arena, sweep)
    assert any("cannot be written" in said and "File too large" in said for said in sweep.sentences), sweep.text
    arena.finish()
    arena.clean()
    whole.check(arena, "files may not grow (RLIMIT_FSIZE)")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, by its size in KiB and the folder it becomes; `grow` makes room."""
    mounted = []

    def mount(folder, kib):
        folder.mkdir(parents=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", folder], capture_output=True)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted: {done.stderr.decode().strip()}")
        mounted.append(folder)

    def grow(folder):
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)

    mount.grow = grow
    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


ROOMS = [*(("runs", kib) for kib in (4, 40, 120, 250)), *(("results", kib) for kib in (8, 40, 70))]


@pytest.mark.parametrize(("which", "kib"), ROOMS)
def test_a_full_disk(whole, arena, small_disk, which, kib):
    small_disk(arena.place / which, kib)
    sweep = arena.start()
    failed_cleanly(arena, sweep)
    assert any("No space left on device" in said for said in sweep.sentences), sweep.text
    small_disk.grow(arena.place / which)
    arena.finish()
    arena.clean()
    whole.check(arena, "disk full (tmpfs)")


def test_a_full_disk_with_two_processes(whole, arena, small_disk):
    small_disk(arena.store, 200)
    failed_cleanly(arena, arena.start(jobs=2))
    small_disk.grow(arena.store)
    arena.finish()
    arena.clean()
    whole.check(arena, "disk full (tmpfs)")


@pytest.mark.parametrize("which", ["runs", pytest.param("results", marks=pytest.mark.handful)])
def test_a_folder_that_cannot_be_written(whole, arena, which):
    """A file in its parent's place, which stops even root."""
    (arena.place / "file").write_text("mine")
    setattr(arena, which, f"file/{which}")
    sweep = arena.start()
    code = failed_cleanly(arena, sweep)
    assert code == 2, sweep.text
    (said,) = sweep.sentences
    assert "cannot be written (Not a directory)" in said
    assert (arena.place / "file").read_text() == "mine"
    setattr(arena, which, which)
    arena.finish()
    whole.check(arena, "folder cannot be written")
