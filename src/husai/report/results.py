"""The results of a suite as the report sees them."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from husai.analysis.stats import Interval
from husai.analysis.verdict import stable_rungs
from husai.errors import HusaiError
from husai.report import intake

NULLS = ("ambient", "untrained", "data", "data_points")
RUNGS = (*NULLS, "plane_rotated")  # of pwmcc, where there are true planes
FILES = ("records.parquet", "atoms.parquet", "gate.json", "truth.json", "cells.json")
NAN = float("nan")
NAMES = {
    "topk": "TopK",
    "relu": "ReLU",
    "jumprelu": "JumpReLU",
    "batchtopk": "BatchTopK",
    "matryoshka": "Matryoshka",
    "gated": "Gated",
    "abstopk": "AbsTopK",
    "blocktopk": "Block TopK",
    "archetypal": "Archetypal",
    "frozen": "Frozen decoder",
    "pca": "PCA",
    "ica": "ICA",
    "nmf": "NMF",
    "kmeans": "k-means",
}
DIALS = {"l1_coefficient": "λ", "l0_coefficient": "λ", "target_l0": "L0"}


def rows_of(frame: Any) -> list[dict[str, Any]]:
    """A table's rows as dictionaries."""
    return frame.to_dict(orient="records")


def source_of(model: str) -> str:
    """The model or source that a control stands in for; any other is its own."""
    return model.split("/", 1)[0]


@dataclass(frozen=True)
class CellView:
    """One cell: its labels and its figures over all seeds."""

    run_id: str
    tier: str
    model: str
    hook: str
    architecture: str
    d_sae: int
    sparsity_param: str
    sparsity: float
    converged: bool
    among_several: bool
    records: pd.DataFrame
    precision: str = ""  # parameters/products where that is not fp32/fp32 and is known

    @property
    def short_hook(self) -> str:
        return self.hook.rsplit("hook_", 1)[-1]

    @property
    def place(self) -> str:
        """Where the SAEs were trained: the hook, after the model's name if the suite has several models or sources."""
        if not self.among_several:
            return self.short_hook
        source = source_of(self.model)
        return f"{source} {self.short_hook}" if self.hook.startswith("blocks.") else source

    @property
    def label(self) -> str:
        return ", ".join(part for part in (self.setting, self.precision, self.control) if part)

    @property
    def setting(self) -> str:
        """Architecture, width and sparsity."""
        name = NAMES.get(self.architecture, self.architecture)
        dial = DIALS.get(self.sparsity_param, self.sparsity_param)
        return f"{name} {self.d_sae}" + ("" if dial == "d_sae" else f", {dial}={self.sparsity:g}")

    @property
    def control(self) -> str:
        """Kind and seed of what stands in for the activations, such as `surrogate-0`; '' for the activations themselves."""
        return self.model.rsplit("/", 1)[1] if self.tier in ("surrogate", "permuted") else ""

    @cached_property
    def steps(self) -> int:
        return max(self.records["step"].tolist())

    @cached_property
    def overall(self) -> dict[tuple[int, str, str], list[Interval]]:
        """Figures over all seeds by step, metric and null: one record each, unless the table is damaged."""
        rows = self.records[self.records["init_seed"].isna()]
        found: dict[tuple[int, str, str], list[Interval]] = {}
        keys = ("step", "metric", "null", "value", "ci_low", "ci_high")
        for step, metric, null, *figure in zip(*(rows[key].tolist() for key in keys), strict=True):
            found.setdefault((step, metric, null), []).append(Interval(*figure))
        return found

    @cached_property
    def _overall(self) -> dict[str, dict[str, dict[int, Interval]]]:
        """Figures over all seeds by metric, null and step."""
        levels: dict[str, dict[str, dict[int, Interval]]] = {}
        for (step, metric, null), found in self.overall.items():
            levels.setdefault(metric, {}).setdefault(null, {})[step] = found[-1]
        return levels

    def value(self, metric: str, null: str = "", step: int | None = None) -> Interval:
        """A figure over all seeds at `step` (default: the end); nan where it was not computed."""
        levels = self._overall.get(metric, {}).get(null, {})
        return levels.get(self.steps if step is None else step, Interval(NAN, NAN, NAN))

    def nulls(self, metric: str, step: int | None = None) -> dict[str, Interval]:
        """Every chance level of a figure over all seeds at `step` (default: the end), by name."""
        at, levels = self.steps if step is None else step, self._overall.get(metric, {})
        return {null: found[at] for null, found in levels.items() if null and at in found}

    def curve(self, metric: str, null: str = "") -> tuple[list[int], list[Interval]]:
        """The figure at every step it was taken at."""
        found = self._overall.get(metric, {}).get(null, {})
        steps = sorted(found)
        return steps, [found[step] for step in steps]

    def matrix(self, metric: str) -> np.ndarray:
        """S×S matrix of a pairwise score at the end; the diagonal is 1."""
        rows = self.records
        rows = rows[(rows["metric"] == metric) & (rows["step"] == self.steps) & rows["init_seed_b"].notna()]
        first, second = (list(zip(rows[f"init_seed{s}"], rows[f"data_seed{s}"], strict=True)) for s in ("", "_b"))
        seeds = sorted({*first, *second})
        matrix = np.eye(len(seeds))
        for a, b, value in zip(first, second, rows["value"], strict=True):
            matrix[seeds.index(a), seeds.index(b)] = matrix[seeds.index(b), seeds.index(a)] = value
        return matrix

    def per_seed(self, metric: str) -> np.ndarray:
        """A score of single SAEs at the end, by seed; empty if the score is one of pairs or was not computed."""
        own = cast(pd.DataFrame, self.records[self.records["metric"] == metric])
        found = {
            (row["init_seed"], row["data_seed"]): row["value"]
            for row in rows_of(own[own["init_seed"].notna() & own["init_seed_b"].isna()])
            if (row["step"], row["null"]) == (self.steps, "")
        }
        return np.array([found[seeds] for seeds in sorted(found)])

    @cached_property
    def seed_pairs(self) -> list[tuple[int, int]]:
        """Init and data seed of every SAE, in the order of `matrix` and `per_seed`."""
        single = self.records.loc[self.records["init_seed"].notna(), ["init_seed", "data_seed"]].drop_duplicates()
        return sorted((int(row["init_seed"]), int(row["data_seed"])) for row in rows_of(single))

    @cached_property
    def seeds(self) -> int:
        return len(self.per_seed("explained_variance"))

    @property
    def verified(self) -> bool:
        return bool(self.records["verified"].all())

    @property
    def title(self) -> str:
        return f"{source_of(self.model)}, {self.short_hook}, {self.label}"

    @property
    def slug(self) -> str:
        parts = (
            self.place.replace(" ", "_"),
            self.architecture,
            self.d_sae,
            "" if self.sparsity_param == "d_sae" else f"{self.sparsity_param}{self.sparsity:g}",
            self.precision.replace("/", "-"),
            self.control,
        )
        return intake.file_name("_".join(str(part) for part in parts if part))


def rungs_of(cell: CellView, surrogate: CellView | None = None, metric: str = "pwmcc") -> dict[str, Interval]:
    """The ladder of a cell's figure at the end, as far as it was computed. surrogate: the cell trained on one."""
    trained = {} if surrogate is None else {"surrogate_trained": surrogate.value(metric)}
    return {name: level for name, level in (cell.nulls(metric) | trained).items() if level.mean == level.mean}


@dataclass(frozen=True)
class SuiteResults:
    """Everything a report reads: the cells that `cells.json` lists, as far as they are finished.

    gates: the gate report of every model; none for a synthetic source. truth: by model or source and hook. precisions: of the
    cells that were not trained in fp32, by run id.
    """

    folder: Path
    records: pd.DataFrame
    atoms: pd.DataFrame
    gates: dict[str, dict[str, Any]]
    truth: dict[str, dict[str, Any]]
    precisions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "SuiteResults":
        """Raises HusaiError if a table is missing or damaged."""
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise HusaiError(f"{folder}: is not a suite's results folder (no {missing[0]})")
        tables = [
            intake.read_parquet(folder / name, columns)
            for name, columns in zip(FILES[:2], (intake.RECORDS, intake.ATOMS), strict=True)
        ]
        texts = [intake.read_text(folder / name) for name in FILES[2:]]
        records, atoms = (cast(pd.DataFrame, table[table["run_id"].isin(texts[2])]) for table in tables)
        if len(records) == 0:
            raise HusaiError(f"{folder}: holds no finished cell of its suite yet")
        intake.require_consistent(records, atoms, texts[1], folder)
        return cls(folder, records, atoms, texts[0], texts[1], _low_precisions(folder / "costs.parquet"))

    @property
    def name(self) -> str:
        return str(self.records["suite"].iloc[0])

    @property
    def seeds(self) -> int:
        """SAEs of a cell, the most."""
        return max(len(cell.seed_pairs) for cell in self.cells)

    @cached_property
    def cells(self) -> list[CellView]:
        """Cells by model (in the suite's order), hook, width, architecture and sparsity, controls after what they stand for."""
        keys = ["hook", "d_sae", "architecture", "sparsity_param", "sparsity", "model", "run_id", "converged", "tier"]
        several = len(self.sources) > 1
        found = [
            CellView(
                str(run),
                str(tier),
                str(model),
                str(hook),
                str(kind),
                int(d),
                str(name),
                float(value),
                bool(done),
                several,
                rows,
                self.precisions.get(str(run), ""),
            )  # pyright: ignore
            for (hook, d, kind, name, value, model, run, done, tier), rows in self.records.groupby(keys, sort=True)  # pyright: ignore
        ]
        return sorted(found, key=lambda cell: self.models.index(cell.model))

    @cached_property
    def models(self) -> list[str]:
        """Names of models, sources and their controls, in the suite's order."""
        return list(self.truth)

    @cached_property
    def sources(self) -> list[str]:
        """The same without controls."""
        return list(dict.fromkeys(map(source_of, self.models)))

    @cached_property
    def _alike(self) -> dict[tuple[str, str], list[CellView]]:
        """Cells of one place and setting: the source's own and its controls'."""
        found: dict[tuple[str, str], list[CellView]] = defaultdict(list)
        for cell in self.cells:
            found[cell.place, cell.setting].append(cell)
        return found

    @cached_property
    def recipes(self) -> list[list[CellView]]:
        """Cells, without controls, that differ in their model and in precision at most: models of one task, tier and hook."""
        groups: dict[tuple[str, ...], list[CellView]] = {}
        for cell in self.cells:
            if not cell.control:
                row = cell.records.iloc[0]
                groups.setdefault((str(row["task"]), str(row["p"]), cell.tier, cell.hook, cell.setting), []).append(
                    cell
                )
        return list(groups.values())

    def surrogate_of(self, cell: CellView) -> CellView | None:
        """The same SAEs trained on a surrogate of the cell's samples, of the lowest seed; None if there is no such cell.

        None too if the suite has several entries of this setting, whose cells cannot be told apart.
        """
        same = self._alike[cell.place, cell.setting]
        if cell.control or sum(not c.control for c in same) != 1:
            return None
        surrogates = [c for c in same if c.tier == "surrogate"]
        return min(surrogates, key=lambda c: int(c.control.rsplit("-", 1)[1]), default=None)

    def rungs(self, cell: CellView, metric: str = "pwmcc") -> dict[str, Interval]:
        """Every chance level of a figure at the end, with what SAEs trained on a surrogate reach."""
        return rungs_of(cell, self.surrogate_of(cell), metric)

    def stable(self, cell: CellView) -> tuple[str, ...]:
        """The rungs that pwmcc of a cell must exceed before its features are called stable."""
        truth = self.truth.get(cell.model, {}).get(cell.hook, {})
        return stable_rungs(bool(truth.get("subspaces")))

    def level(self, cell: CellView, metric: str, null: str) -> tuple[CellView, str]:
        """The cell and the null whose record is this chance level of `cell`: another cell for `surrogate_trained`.

        Raises HusaiError if the suite has no cell trained on the surrogate of this one's samples.
        """
        if null != "surrogate_trained":
            return cell, null
        twin = self.surrogate_of(cell)
        if twin is None:
            raise HusaiError(
                f"{cell.title}: has no surrogate_trained of {metric}, since no cell is trained on its surrogate"
            )
        return twin, ""

    def array(self, cell: CellView, name: str) -> np.ndarray | None:
        """One array of a cell; None where it was not computed. Raises HusaiError as `read_arrays`."""
        return intake.read_arrays(self._arrays_of(cell)).get(name)

    def _arrays_of(self, cell: CellView) -> Path:
        return self.folder / "arrays" / f"{cell.run_id}.npz"

    def tuning(self, cell: CellView) -> list[tuple[np.ndarray, dict[str, Any]]]:
        """Codes over (a, b) of a few atoms of a cell's first member, each with its row of the atom table.

        Raises HusaiError as `read_arrays`, or if they are not there or not of that member.
        """
        path, atoms = self._arrays_of(cell), self.first_seed_atoms(cell)
        arrays = intake.read_arrays(path)
        maps, shown = arrays.get("tuning_maps"), arrays.get("tuning_atoms")
        if maps is None or shown is None or len(maps) != len(shown) or 0 in maps.shape:
            raise HusaiError(f"{path}: must hold tuning_maps and tuning_atoms, as many of one as of the other")
        if missing := [int(atom) for atom in shown if int(atom) not in atoms]:
            raise HusaiError(f"{path}: shows atom {missing[0]}, which atoms.parquet does not have")
        return [(codes, atoms[int(atom)]) for codes, atom in zip(maps, shown, strict=True)]

    def first_seed_atoms(self, cell: CellView) -> dict[int, dict[str, Any]]:
        """Rows of the atom table of a cell's first member, by atom. Raises HusaiError if it has none."""
        own = rows_of(self.atoms[self.atoms["run_id"] == cell.run_id])
        if not own:
            raise HusaiError(f"{self.folder / FILES[1]}: has no row of run {cell.run_id}")
        first = own[0]["init_seed"], own[0]["data_seed"]
        return {int(row["atom"]): row for row in own if (row["init_seed"], row["data_seed"]) == first}


def _low_precisions(costs: Path) -> dict[str, str]:
    """Parameters/products of the runs not in fp32, such as `fp32/bf16`. Earlier tables do not say; they are of fp32."""
    table = intake.read_parquet(costs, intake.COSTS) if costs.is_file() else pd.DataFrame()
    known = rows_of(table[table["precision"].notna()]) if "precision" in table else []
    return {row["run_id"]: row["precision"] for row in known if row["precision"] != "fp32/fp32"}
