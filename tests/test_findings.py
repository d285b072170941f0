"""The committed FINDINGS.md is what the records give, and no number gets in by another way."""

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest

from husai.cli import main
from husai.errors import HusaiError
from husai.report.findings import Findings, render_findings

ROOT = Path(__file__).parents[1]
NAN = float("nan")
OVERALL = {  # of every cell at step 10: metric, null → value, interval
    "a": {("pwmcc", ""): (0.8, 0.75, 0.85), ("pwmcc", "data"): (0.6, 0.59, 0.61), ("dead", ""): (0.125, 0.1, 0.15)},
    "b": {("pwmcc", ""): (0.5, 0.4, 0.6), ("pwmcc", "data"): (0.7, 0.69, 0.71), ("dead", ""): (0.0, 0.0, 0.0)},
    "c": {("pwmcc", ""): (0.6, 0.5, 0.7), ("pwmcc", "data"): (0.65, 0.6, 0.7), ("dead", ""): (0.25, NAN, NAN)},
    "a-twin": {("pwmcc", ""): (0.7, 0.68, 0.72)},
}
PLACES = {  # model, tier, k, converged
    "a": ("clock", "compiled", 1.0, True),
    "b": ("clock", "compiled", 2.0, False),
    "c": ("planted", "planted", 1.0, True),
    "a-twin": ("clock/surrogate-0", "surrogate", 1.0, True),
}


def frame() -> pd.DataFrame:
    """Four cells of three seeds, as a suite records them."""
    rows = []
    for run, figures in OVERALL.items():
        model, tier, k, converged = PLACES[run]
        place = {
            "suite": "tiny", "model": model, "hook": "blocks.0.hook_mlp_out", "tier": tier, "architecture": "topk",
            "d_sae": 16, "sparsity_param": "k", "sparsity": k, "run_id": run, "converged": converged, "verified": True,
            "task": "add", "p": 113, "n": 1, "model_seed": None, "model_seed_b": None, "data_seed_b": None,
        }  # fmt: skip
        seeds = [("explained_variance", "", (0.9 - 0.01 * seed, NAN, NAN), seed, 10) for seed in range(3)]
        start = [("pwmcc", "", (0.2, 0.19, 0.21), None, 0), ("dead", "", (0.3, NAN, NAN), None, 5)]
        start.append(("explained_variance", "", (0.89, NAN, NAN), None, 10))
        everything = [(metric, null, values, None, 10) for (metric, null), values in figures.items()]
        for metric, null, (value, low, high), seed, step in seeds + start + everything:
            figure = {"metric": metric, "null": null, "value": value, "ci_low": low, "ci_high": high}
            rows.append({**place, **figure, "init_seed": seed, "data_seed": seed, "init_seed_b": None, "step": step})
    seeds = [f"{kind}_seed{one}" for kind in ("init", "data", "model") for one in ("", "_b")]
    return pd.DataFrame(rows).astype(dict.fromkeys(seeds, "Int64"))


@pytest.fixture
def tiny(tmp_path):
    """Writes the suite `tiny` (with other records, if given) and fills a text from it."""

    def fill(text: str, records: pd.DataFrame | None = None, planes: bool = False) -> Findings:
        folder = tmp_path / "results" / "tiny"
        folder.mkdir(parents=True, exist_ok=True)
        made = frame() if records is None else records
        made.to_parquet(folder / "records.parquet")
        own = {"init_seed": 0, "data_seed": 0, "firing_rate": 0.1, "label": "sum", "k": 1.0, "purity": 1.0}
        kinds = enumerate(((True, 0.9), (True, 0.7), (True, 0.5), (False, 0.9)))
        each = [{**own, "atom": atom, "live": live, "match_mean": mean} for atom, (live, mean) in kinds]
        atoms = [{"run_id": run, **one} for run in sorted(set(made["run_id"])) for one in each]
        pd.DataFrame(atoms).to_parquet(folder / "atoms.parquet")
        subspaces = [{"label": "sum", "share": 1.0}] if planes else []
        known = {"blocks.0.hook_mlp_out": {"dim": 2 * planes, "subspaces": subspaces, "unexplained": None}}
        truth = {model: known for model, *_ in PLACES.values()}
        for name, content in (("gate", {}), ("truth", truth), ("cells", sorted(set(made["run_id"])))):
            (folder / f"{name}.json").write_text(json.dumps(content))
        template = tmp_path / "text.md.j2"
        template.write_text("{% set tiny = suite('tiny') %}\n{% set a = tiny.cell(model='clock', k=1) %}\n" + text)
        return render_findings(template, tmp_path / "results")

    return fill


def rows(findings: Findings) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(findings.numbers)))


def test_the_committed_findings_are_what_the_records_give(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["husai"])
    out, numbers = tmp_path / "FINDINGS.md", tmp_path / "findings.csv"
    places = ["--template", ROOT / "docs" / "findings.md.j2", "--results", ROOT / "results"]
    with pytest.raises(SystemExit) as end:
        main(["findings", *map(str, [*places, "--out", out, "--numbers", numbers])])
    assert end.value.code == 0
    assert out.read_bytes() == (ROOT / "FINDINGS.md").read_bytes()
    assert numbers.read_bytes() == (ROOT / "results" / "findings.csv").read_bytes()


def test_every_committed_number_is_traced_to_a_row_of_the_records():
    with (ROOT / "results" / "findings.csv").open(newline="", encoding="utf-8") as handle:
        traced = list(csv.DictReader(handle))
    lines = (ROOT / "FINDINGS.md").read_text(encoding="utf-8").splitlines()
    tables = {
        name: pd.read_parquet(ROOT / "results" / name / "records.parquet") for name in {r["suite"] for r in traced}
    }
    assert [int(row["number"]) for row in traced] == sorted(int(row["number"]) for row in traced)
    for row in traced:
        assert row["text"] in lines[int(row["line"]) - 1]
        records = tables[row["suite"]]
        own = records[(records["run_id"] == row["run_id"]) & (records["step"] == int(row["step"]))]
        assert len(own)
        if row["value"]:
            asked = own[(own["metric"] == row["metric"]) & (own["null"] == row["null"])]
            if row["init_seed"]:
                seeds = (asked["init_seed"] == int(row["init_seed"])) & (asked["data_seed"] == int(row["data_seed"]))
                asked = asked[seeds & pd.isna(asked["init_seed_b"])]
            else:
                asked = asked[pd.isna(asked["init_seed"])]
            assert asked["value"].item() == float(row["value"])


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("a.value('pwmcc')", "0.800"),
        ("a.value('pwmcc', digits=1)", "0.8"),
        ("a.value('pwmcc', step=0)", "0.200"),
        ("a.value('pwmcc', null='data')", "0.600"),
        ("a.value('pwmcc', null='surrogate_trained')", "0.700"),
        ("a.surrogate.value('pwmcc')", "0.700"),
        ("a.interval('pwmcc')", "0.800 [0.750, 0.850]"),
        ("a.low('pwmcc')", "0.750"),
        ("a.high('pwmcc')", "0.850"),
        ("a.percent('dead', digits=1)", "12.5%"),
        ("a.seeds", "3"),
        ("a.steps", "10"),
        ("a.setting", "TopK 16, k=1"),
        ("tiny.cells().count", "3"),
        ("tiny.cells(k=1).count", "2"),
        ("tiny.cells(k=[1, 2], tier='compiled').count", "2"),
        ("tiny.cells(control='surrogate-0').count", "1"),
        ("tiny.cells().converged.share", "67%"),
        ("tiny.cells().exceeding('pwmcc', 'data').count", "1"),
        ("tiny.cells().short_of('pwmcc', 'data').count", "1"),
        ("tiny.cells(model='clock', k=1).exceeding('pwmcc', 'data', 'surrogate_trained').count", "1"),
        ("tiny.cells().over('pwmcc', 0.6).count", "2"),
        ("tiny.cells().without(tiny.cells().converged).names", "clock, mlp_out, TopK 16, k=2 *"),
        ("tiny.cells(model='clock').settings", "TopK 16, k=1; TopK 16, k=2 *"),
        ("tiny.cells().exceeding('dead', 'data').names if false else 'none'", "none"),
        ("tiny.cells().least('pwmcc')", "0.500"),
        ("tiny.cells().highest('pwmcc', null='data').interval('pwmcc')", "0.500 [0.400, 0.600]"),
        ("tiny.cells().mean('pwmcc', digits=4)", "0.6333"),
        ("a.seed_least('explained_variance', digits=2)", "0.88"),
        ("a.seed_most('explained_variance', digits=2)", "0.90"),
        ("a.atoms_over('match_mean', 0.7)", "67%"),
        ("tiny.cells().correlation('pwmcc', 'dead')", "0.50"),
        ("tiny.cells().surely('pwmcc', over=0.45).count", "2"),
        ("tiny.cells().surely('pwmcc', under=0.75).count", "2"),
        ("tiny.cells().surely('dead', over=0.05).count", "1"),
        ("tiny.cells().fallen('dead', 0.15).count", "2"),
        ("tiny.cells().fallen('pwmcc', 0).count", "3"),
        (
            "tiny.cells().unlike('pwmcc', 'data', 1.3).names",
            "clock, mlp_out, TopK 16, k=1; clock, mlp_out, TopK 16, k=2 *",
        ),
        ("'yes' if tiny.cells(k=1).include(a) else 'no'", "yes"),
        ("'yes' if tiny.cells(k=2).include(a) else 'no'", "no"),
        ("'yes' if a.differs(tiny.cell(model='clock', k=2), 'pwmcc') else 'no'", "yes"),
    ],
)
def test_a_placeholder_is_filled_from_its_record(tiny, asked, text):
    assert tiny("It is {{ " + asked + " }}.").text == f"It is {text}."


def test_a_difference_of_two_cells_adds_their_errors(tiny):
    """Half widths .05 and .10 with 3 seeds each: Welch's degrees of freedom are 2 · 1.25² / (1 + 1/16) = 2.94."""
    made = tiny("{{ a.minus(tiny.cell(model='clock', k=2), 'pwmcc') }}")
    assert made.text == "0.300 [0.216, 0.384]"
    assert [(row["run_id"], row["what"]) for row in rows(made)] == [("a", "difference"), ("b", "difference")]


FAIR = {"data": 0.6, "data_points": 0.6, "plane_rotated": 0.76}  # of cell a, whose pwmcc is .8 [.75, .85]


def with_fair_rungs() -> pd.DataFrame:
    """The four cells, a with all fair rungs of pwmcc, each an interval of ± .01."""
    made = frame()
    like = made[(made["run_id"] == "a") & (made["metric"] == "pwmcc") & (made["null"] == "data")]
    rungs = [like.assign(null=name, value=v, ci_low=v - 0.01, ci_high=v + 0.01) for name, v in FAIR.items()]
    return pd.concat([made.drop(like.index), *rungs])


@pytest.mark.parametrize(("planes", "count"), [(False, "1"), (True, "0")])
def test_true_planes_turned_at_random_are_a_rung_where_there_are_planes(tiny, planes, count):
    made = tiny("{{ tiny.cells(model='clock', k=1).exceeding('pwmcc').count }}", with_fair_rungs(), planes=planes)
    assert made.text == count
    (row,) = rows(made)
    assert row["null"] == "data data_points surrogate_trained" + " plane_rotated" * planes


def test_missing_planes_are_refused_where_the_truth_has_some(tiny):
    without = with_fair_rungs()[lambda f: f["null"] != "plane_rotated"]
    with pytest.raises(HusaiError, match="no record of pwmcc by plane_rotated"):
        tiny("{{ tiny.cells(model='clock', k=1).exceeding('pwmcc').count }}", without, planes=True)


def test_a_figure_of_one_sae_names_its_seeds(tiny):
    (row,) = rows(tiny("{{ a.seed_least('explained_variance', digits=2) }}"))
    assert (row["text"], row["value"], row["init_seed"], row["data_seed"]) == ("0.88", "0.88", "2", "2")


def test_numbers_are_listed_in_the_order_of_the_text_with_their_rows(tiny):
    made = tiny("One: {{ a.name }}, {{ a.interval('pwmcc', digits=2) }}.\n\nTwo: {{ tiny.cells().converged.count }}.\n")
    first, *counted = rows(made)
    assert first == {
        "number": "1", "line": "1", "text": "0.80 [0.75, 0.85]", "what": "interval", "suite": "tiny", "run_id": "a",
        "cell": "clock, mlp_out, TopK 16, k=1", "metric": "pwmcc", "null": "", "step": "10", "value": "0.8",
        "ci_low": "0.75", "ci_high": "0.85", "counted": "", "init_seed": "", "data_seed": "",
    }  # fmt: skip
    assert {(row["number"], row["line"], row["text"], row["what"]) for row in counted} == {
        ("2", "3", "2", "count: converged")
    }
    assert {row["run_id"]: row["counted"] for row in counted} == {"a": "yes", "b": "no", "c": "yes"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{{ a.value('pwmc') }}",
            (
                "{{ a.value('pwmc') }}",
                "line 3: clock, mlp_out, TopK 16, k=1: has no metric 'pwmc'; there are dead, explained_variance, pwmcc",
            ),
        ),
        (
            "\n{{ a.value('pwmcc', null='dota') }}",
            "line 4: .*no record of pwmcc by dota at step 10; nulls '', data and",
        ),
        ("{{ a.value('pwmcc', step=5) }}", "no record of pwmcc at step 5; .* steps 0, 10 are there"),
        ("{{ tiny.cell(model='clock').seeds }}", "2 cells of 'tiny' have model clock: clock.*k=1; clock.*k=2"),
        ("{{ tiny.cell(k=3).seeds }}", "no cell has k 3; there are 1, 2"),
        ("{{ tiny.cell(colour=3).seeds }}", "no cell has colour 3; labels are model, .* and k"),
        ("{{ tiny.cell(model='planted').surrogate.seeds }}", "no cell is trained on its surrogate"),
        ("{{ tiny.cell(model='planted').interval('dead') }}", "dead at step 10 has no interval"),
        ("{{ tiny.cells().over('pwmcc', 2).least('pwmcc') }}", "no cell is left .pwmcc at least 2"),
        ("{{ a.minus(a, 'pwmcc') }}", "cannot be told apart from itself"),
        ("{{ a.seed_least('pwmcc') }}", "has no pwmcc of single SAEs"),
        ("{{ a.atoms_over('colour', 0.5) }}", "has no colour of live atoms"),
        ("{{ tiny.cells(model='clock').correlation('pwmcc', 'dead') }}", "of 2 cells have no rank correlation"),
        ("{{ tiny.cells().correlation('pwmcc', 'pwmcc', null='data') }}", "unexpected keyword"),
        ("{{ a.symmetry() }}", "has no symmetry figures"),
        ("{{ suite('none').cell().seeds }}", "none: is not a suite's results folder"),
        ("{{ suite('../tiny').cell().seeds }}", "is not the name of a folder"),
        ("{{ missing }}", "line 3: 'missing' is undefined"),
        ("{{ a.missing }}", "no attribute 'missing'"),
        ("{{ a._view }}", "unsafe"),
        ("{{ a.value( }}", "line 3: unexpected"),
        ("{{ a.value('pwmcc', nul='data') }}", "unexpected keyword argument 'nul'"),
        ("{{ a }}", "a placeholder gives a Cell"),
        (
            "{% do claim(a.value('pwmcc').amount < 0.5, 'it is low') %}",
            "line 3: the records no longer bear out that it is low",
        ),
    ],
)
def test_what_has_no_record_is_refused_with_what_there_is(tiny, text, message):
    with pytest.raises(HusaiError, match=message):
        tiny(text)


def test_a_record_that_is_there_twice_is_refused(tiny):
    twice = pd.concat([frame(), frame()[lambda f: f["metric"] == "dead"]])
    with pytest.raises(HusaiError, match="2 records of dead at step 10"):
        tiny("{{ a.value('dead') }}", twice)


@pytest.mark.parametrize(
    "prose",
    ["in 3 of them", "{{ 0.75 }}", "{{ a.value('pwmcc').text }}", "{{ '0.8' }}", "`0.75`", "L0", "## 2 answers",
     "[0.8](results/x.md)", "{{ a.value('pwmcc').amount }}", "{% for i in [4] %}{{ i }}{% endfor %}"],
)  # fmt: skip
def test_a_digit_outside_of_a_placeholder_is_refused(tiny, prose):
    with pytest.raises(HusaiError, match="is no placeholder; a result is filled from a record"):
        tiny(f"Fine.\n\n{prose}\n")


@pytest.mark.parametrize(
    "prose",
    ["at `p = 113`", "`add-p113-0`", "[Paulo and Belrose 2025](https://arxiv.org/abs/2501.16615)", "1. first\n2. second",
     "```\nhusai plan --half-width 0.01\n```", "[there](docs/p1.md)", "<!-- 2 -->", "{# 3 #}", "`k = {{ 4 }}`"],
)  # fmt: skip
def test_digits_that_are_no_result_have_their_places(tiny, prose):
    assert tiny(f"So {{{{ a.seeds }}}}:\n\n{prose}\n").text.startswith("So 3:\n")


def test_a_changed_record_is_seen(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["husai"])
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        with pytest.raises(SystemExit) as end:
            main(["findings", "--template", "text.md.j2", *flags])
        return end.value.code, capsys.readouterr().err

    text = "Seeds agree to {{ a.value('pwmcc', digits=2) }}.\n"
    tiny(text)
    code, error = run("--check")
    assert (code, "FINDINGS.md: is missing" in error) == (1, True)
    assert run() == (0, "")
    assert run("--check") == (0, "")
    assert (tmp_path / "FINDINGS.md").read_text() == "Seeds agree to 0.80.\n"

    changed = frame()
    changed.loc[(changed["run_id"] == "a") & (changed["value"] == 0.8), "value"] = (
        0.8001  # the text stays, its row does not
    )
    tiny(text, changed)
    code, error = run("--check")
    assert (code, "findings.csv, line 2" in error) == (1, True)
    changed.loc[changed["value"] == 0.8001, "value"] = 0.81
    tiny(text, changed)
    code, error = run("--check")
    assert code == 1
    assert "FINDINGS.md, line 1: is 'Seeds agree to 0.80.', but the records give 'Seeds agree to 0.81.'" in error
    assert error.count("\n") == 1
    (tmp_path / "text.md.j2").unlink()
    code, error = run("--check")
    assert (code, "text.md.j2: is no template that can be read" in error) == (2, True)


def test_a_verdict_is_the_sentence_of_the_tables_with_its_rungs(tiny):
    made = tiny("{{ a.verdict() }}")
    assert made.text == "pwmcc 0.800 [0.750, 0.850] exceeds every rung: data, surrogate_trained."
    assert [(row["run_id"], row["null"]) for row in rows(made)] == [("a", ""), ("a", "data"), ("a-twin", "")]
