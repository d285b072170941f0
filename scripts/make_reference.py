"""Train the reference models that are shipped in results/reference: seeds in order, keeping those that pass the gate.

A kept model has at least three key frequencies and shares at most half of its keys (counted in the smaller set) with
every kept model of the same task. The same seed gives other keys on other machines, so the weights are shipped, and
this script says how they came about. Finished models are left alone.

    python scripts/make_reference.py [--out results/reference]
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from husai.config import load_trainable
from husai.models import save_weights
from husai.resources import find_config, reference_dir
from husai.store.folders import finished
from husai.workflow import train_model

WANTED = (("add-p113", 3), ("mul-p113", 1), ("add-p59", 1), ("sub-p113", 1), ("squares-p113", 1), ("gru-p101", 1))
MIN_KEYS = 3
MAX_SEEDS = 20


def distinct(keys: set[int], kept: list[set[int]]) -> bool:
    """Whether `keys` shares at most half of its frequencies with every kept set."""
    return all(len(keys & other) <= min(len(keys), len(other)) / 2 for other in kept)


def make(name: str, count: int, out: Path) -> bool:
    """Fill `name-0` … `name-<count − 1>`; returns whether enough models passed."""
    config = load_trainable(find_config(name, "models"))
    kept: list[set[int]] = []
    for seed in range(MAX_SEEDS):
        if len(kept) == count:
            return True
        place = out / f"{name}-{len(kept)}"
        if finished(place):
            kept.append(set(json.loads((place / "gate.json").read_text())["key_frequencies"]))
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            run = train_model(config.with_seed(seed), folder, attempts=1)
            keys = set(run.report.key_frequencies)
            good = run.report.passed and len(keys) >= MIN_KEYS and distinct(keys, kept)
            print(f"{name} seed {seed}: keys {sorted(keys)} {'kept' if good else run.report.failures() or 'not kept'}")
            if good:
                save_weights(run.model, folder / "model.safetensors")
                for checkpoint in folder.glob("*_*.safetensors"):
                    checkpoint.unlink()
                shutil.copytree(folder, place)
                kept.append(keys)
    return len(kept) == count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=reference_dir(), help="folder to fill")
    out = parser.parse_args().out
    passed = [make(name, count, out) for name, count in WANTED]  # a list, so that one failure does not stop the rest
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
