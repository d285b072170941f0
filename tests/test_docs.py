"""Numbers in the docs are those of the committed results."""

import math
import re
from pathlib import Path

import pytest

from husai.config import SAE_CONFIGS, SAETrainingConfig
from husai.report.results import CellView, SuiteResults

ROOT = Path(__file__).parents[1]


def test_the_fields_that_the_docs_name_for_earlier_work_exist():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    table = text[text.index("| there | here |") :].split("\n\n")[0]
    named = set(re.findall(r"`(training|sae)\.(\w+)`", table))
    assert len(named) >= 10
    kinds = {"training": (SAETrainingConfig,), "sae": tuple(SAE_CONFIGS.values())}
    for part, field in named:
        assert any(field in kind.model_fields for kind in kinds[part]), f"{part}.{field}"


def ladder_rows() -> list[list[str]]:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    section = text[text.index("## What the ladder shows") :]
    table = section[section.index("| source | SAE |") :].split("\n\n")[0]
    return [[part.strip() for part in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"(?<![\w.])-?\d*\.\d+", text)]


def highest(cell: CellView, twin: CellView | None, metric: str) -> tuple[str, float]:
    levels = {null: level.mean for null, level in cell.nulls(metric).items()}
    if twin is not None:
        levels["surrogate_trained"] = twin.value(metric).mean
    return max(((name, level) for name, level in levels.items() if not math.isnan(level)), key=lambda pair: pair[1])


def test_the_ladder_in_the_docs_is_the_one_that_was_measured():
    results = SuiteResults.load(ROOT / "results" / "ladder")
    cells = [cell for cell in results.cells if not cell.control]
    rows = ladder_rows()
    assert len(rows) == len(cells)
    for (source, sae, fit, agreement, rung, *others), cell in zip(rows, cells, strict=True):
        twin = results.surrogate_of(cell)
        assert (source, sae) == (cell.place, cell.label + ("" if cell.converged else " *"))
        assert numbers(fit) == pytest.approx([cell.value("explained_variance").mean], abs=6e-4)
        assert numbers(agreement) == pytest.approx(list(cell.value("pwmcc")), abs=6e-4)
        name, level = highest(cell, twin, "pwmcc")
        assert rung.startswith(name)
        assert numbers(rung) == pytest.approx([level], abs=6e-4)
        atoms = "true_atoms" if math.isnan(cell.value("gt_mcc").mean) else "gt_mcc"
        for metric, shown in zip((atoms, "subspace_recovered", "rotation"), others, strict=True):
            value = cell.value(metric).mean
            expected = [] if math.isnan(value) else [value, highest(cell, twin, metric)[1]]
            assert numbers(shown) == pytest.approx(expected, abs=6e-4), (source, sae, metric)
