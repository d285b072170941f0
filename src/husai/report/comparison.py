"""A comparison of SAEs on paper: its matrices drawn, and written as tables. Computes nothing."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np

from husai.errors import HusaiError
from husai.report.figures.canvas import STYLE, heat_map

SHORT = 28  # letters of a name beside a matrix; of longer ones the middle is left out
PAGE = 11.0  # inches that the matrices of a row fill at most
FEW = 8  # SAEs up to which a matrix has large fields
DIRECTED = {"reappearance": "\n(row's atoms in column's)"}  # measures whose two directions differ


def write_comparison(
    data: Mapping[str, Any], labels: Sequence[str], measures: Sequence[str], counts: Sequence[Sequence[int]], out: Path
) -> list[Path]:
    """`compare.json`, `matrix.csv` (pwmcc), `atoms.csv` and `matrix.png|pdf` in `out`; returns the files.

    data: what `compare.json` holds. labels: of the SAEs, in the figure. measures: the matrices in it that are drawn. counts:
    for every atom of every SAE, in how many others it reappears. Raises HusaiError if they cannot be written.
    """
    names = data["saes"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "compare.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _table(out / "matrix.csv", ["sae", *names], [[n, *row] for n, row in zip(names, data["pwmcc"], strict=True)])
        atoms = [[name, i, times] for name, own in zip(names, counts, strict=True) for i, times in enumerate(own)]
        _table(out / "atoms.csv", ["sae", "live_atom", "reappears_in"], atoms)
        drawn = _draw(data, labels, measures, out)
    except OSError as error:
        raise HusaiError(f"{out}: cannot be written ({error.strerror or error})") from None
    return [out / "compare.json", out / "matrix.csv", out / "atoms.csv", *drawn]


def _table(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([head, *rows])


def _draw(data: Mapping[str, Any], labels: Sequence[str], measures: Sequence[str], out: Path) -> list[Path]:
    """One matrix a measure, in as many rows as the page needs, each with its mean and chance levels underneath."""
    side = max(1.6, (0.34 if len(labels) <= FEW else 0.26) * len(labels))
    rows = -(-len(measures) // max(1, int(PAGE / side)))
    columns = -(-len(measures) // rows)
    short = [name if len(name) <= SHORT else f"{name[: SHORT // 2 - 1]}…{name[-SHORT // 2 :]}" for name in labels]
    written = []
    with plt.rc_context(cast(Any, STYLE)):
        size = (side * columns + 1.4, (side + 0.9) * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
        for ax in axes.flat[len(measures) :]:
            ax.set_axis_off()
        for ax, name in zip(axes.flat, measures, strict=False):
            found = data["measures"][name]
            chance = [f"{null.replace('_', ' ')} {level['mean']:.2f}" for null, level in found["nulls"].items()]
            heat_map(ax, np.array(data[name]), "\n".join([f"mean {found['mean']:.2f}", *chance]))
            ax.set_title(name.replace("_", " ") + DIRECTED.get(name, ""))
        for line in axes:
            line[0].set_yticks(range(len(short)), [f"{name}  {i}" for i, name in enumerate(short)])
        for suffix in ("png", "pdf"):
            written.append(out / f"matrix.{suffix}")
            figure.savefig(written[-1], dpi=200, metadata={"CreationDate": None} if suffix == "pdf" else None)
        plt.close(figure)
    return written
