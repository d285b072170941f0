"""Numbers in the docs are those of the committed results, and examples run."""

import math
import re
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
import yaml

from husai.analysis.conformance import conformance
from husai.config import SAE_CONFIGS, SAETrainingConfig, read_yaml
from husai.report.results import CellView, SuiteResults
from husai.resources import find_config

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


def blocks(name):
    """Fenced blocks of a page in order: language, the file it is written to or '', content."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_suite_in_the_page_on_sweeps_is_the_shipped_one():
    shown = next(yaml.safe_load(content) for language, _, content in blocks("sweeps.md") if language == "yaml")
    shipped = read_yaml(find_config("width-and-k", "suites"))
    assert shown == {key: value for key, value in shipped.items() if key != "analysis"}


def command(line, capsys):
    """Runs one `husai` line in this process; returns what it printed."""
    from husai.cli import main

    program, *arguments = line.split()
    assert program == "husai"
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    printed = capsys.readouterr()
    assert end.value.code in (0, None), f"{line}: {printed.err}"
    return printed.out


@pytest.mark.filterwarnings("ignore")
def test_every_example_of_bringing_ones_own_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("husai.suite.write_report", lambda _results, _out: [])  # drawing takes longer than the cells
    monkeypatch.setattr("torch.set_num_threads", lambda _count: None)  # cells take every core, which tests share
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(sys, "argv", ["husai"])
    there: dict[str, object] = {}
    printed: dict[str, str] = {}
    for language, file, content in blocks("bring_your_own.md"):
        if file:
            (tmp_path / file).write_text(content)
        elif language == "python":
            exec(content, there)
        else:
            assert language == "bash", language
            for line in content.splitlines():
                printed[line] = command(line, capsys)
    assert {"runs", "scores", "tiny", "acts", "results"} <= {path.name for path in tmp_path.iterdir()}
    trained = next(text for line, text in printed.items() if "--config mine.yaml" in line)
    assert "Architecture: log_penalty:LogPenalty, d_sae 64, coefficient 0.5" in trained
    table = pd.read_csv(tmp_path / "scores" / "scores.csv", keep_default_na=False)
    of_both = table[(table["metric"] == "explained_variance") & (table["sae"] == "")]
    assert of_both["value"].item() > 0.8
    assert set(table["sae"]) == {"", "runs/mine/seed-0-0", "runs/mine/seed-1-1"}
    assert len(table[(table["metric"] == "pwmcc") & (table["sae_b"] != "")]) == 1
    on_store = next(text for line, text in printed.items() if line.endswith("--shard-dir acts") and "score" in line)
    assert "pwmcc" in on_store
    assert "fourier_overlap" not in on_store
    records = pd.read_parquet(tmp_path / "results" / "mine" / "records.parquet")
    assert set(records["architecture"]) == {"log_penalty:LogPenalty", "topk"}
    assert set(records[records["architecture"] != "topk"]["sparsity_param"]) == {"coefficient"}


def test_the_conformance_table_in_the_docs_is_what_the_code_gives():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SAELens' own imports
        from sae_lens.synthetic.evals import mean_correlation_coefficient

    report = conformance(mean_correlation_coefficient)
    section = (ROOT / "docs" / "method.md").read_text(encoding="utf-8").split("### Conformance")[1]
    head, _, *lines = section[section.index("| case |") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    definitions = [cell.strip().replace("`", "") for cell in head.strip("|").split("|")][2:-1]
    assert definitions == list(report.expected)
    assert [row[:2] for row in rows] == [[case.name, case.asks] for case in report.cases]
    columns = [*report.expected.values(), report.found]
    for i, row in enumerate(rows):
        assert row[2:] == ["refused" if one[i].error else f"{one[i].value:.3g}".replace("-", "−") for one in columns]
