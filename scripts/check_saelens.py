"""Open every SAE below a folder with SAELens itself and compare its output with ours.

python scripts/check_saelens.py results/smoke/runs
"""

import sys
import warnings
from pathlib import Path

import torch

from husai import load_sae

TOLERANCE = 1e-5


def main(folder: Path) -> int:
    warnings.filterwarnings("ignore")
    import sae_lens

    places = sorted(path.parent for path in folder.rglob("cfg.json"))
    failed = 0
    for place in places:
        theirs, ours = sae_lens.SAE.load_from_disk(place), load_sae(place)
        x = torch.randn(64, ours.d_in, generator=torch.Generator().manual_seed(0)) * 10
        with torch.no_grad():
            codes = theirs.encode(x)
            gap = max(
                float((codes - ours.encode(x)).abs().max()),
                float((theirs(x) - ours.reconstruct(x)).abs().max()),
            )
        if not gap < TOLERANCE * float(x.abs().max()):
            failed += 1
            print(f"{place}: SAELens' output differs by {gap:.2g}")
    print(f"{len(places) - failed} of {len(places)} SAE folders open in SAELens with equal outputs.")
    return 1 if failed or not places else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
