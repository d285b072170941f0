"""Which finished runs of a store have seeds that another run needs. (docs/sweeps.md §Adding seeds)"""

from pathlib import Path

from husai.config import SAEConfig
from husai.errors import HusaiError
from husai.sae.looks import Earlier, Pair, looks_of
from husai.store.checksums import verify
from husai.store.files import reason
from husai.store.folders import finished

FAMILIES = ".families"


def register(run: Path, family: str) -> None:
    """Note that a run, finished or not yet, belongs to those that differ from each other in their seeds alone.

    Raises HusaiError if the note cannot be written.
    """
    note = run.parent / FAMILIES / family / run.name
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    except OSError as error:
        raise HusaiError(f"{note}: cannot be written ({reason(error)})") from None


def earlier_seeds(runs: Path, family: str, config: SAEConfig, looks: tuple[int, ...]) -> Earlier | None:
    """Seeds of `config` that runs of its family have finished, with their SAEs at all of `looks`; None if there are none.

    A training that may end early ends when all its seeds may, so that its seeds are no others'.
    """
    if config.training.stop != "fixed" or config.sae.fitted:
        return None
    wanted = set(zip(config.init_seeds, config.data_seeds, strict=True))
    places: dict[Pair, tuple[Path, int]] = {}
    for note in sorted((runs / FAMILIES / family).glob("*")):
        run = runs / note.name
        if wanted <= places.keys() or not finished(run) or not set(looks) <= looks_of(run) or verify(run):
            continue
        try:
            known = SAEConfig.load(run / "config.yaml")
        except HusaiError:
            continue
        for index, pair in enumerate(zip(known.init_seeds, known.data_seeds, strict=True)):
            if pair in wanted:
                places.setdefault(pair, (run, index))
    return Earlier(places) if places else None
