"""The key to all other results: every score of every ideal dictionary of a compiled model.

    python scripts/ideal_table.py [--out results/ideal]

Writes table.csv, one row a score, and prints it. Five copies of each dictionary, whose planes are turned by random phases,
stand for five seeds. Two stand beside as floors: `data_points`, as many random samples as the signed axes have atoms, and
`cover`, 128 random directions of the data's covariance with dense codes, which knows nothing of planes or answers.
(docs/method.md §Ideal dictionaries)
"""

import math
from pathlib import Path
from typing import Annotated

import typer

from husai.console import exits, say

KEYS, P, SEEDS = (14, 35, 41, 42, 52), 113, 5
HOOKS = {
    "mlp_out": ("signed_axes", "3-gon", "4-gon", "8-gon", "answers", "data_points", "cover"),
    "resid_mid": ("signed_axes", "4-gon"),
}
METRICS = (
    *("explained_variance", "l0", "n_live", "fourier_overlap", "decoder_overlap", "purity", "frequency_purity"),
    *("answer_selectivity", "answer_specificity", "answer_overlap", "true_plane", "true_answer", "true_atoms"),
    *(
        "subspace_recovered",
        "subspace_cos2",
        "subspace_r2",
        "rotation",
        "ablation_removed",
        "ablation_others",
        "ablation",
    ),
    *("spliced_accuracy", "ce_recovered", "pwmcc", "max_cosine", "shifted", "self_shift", "aligned"),
)


def table(keys=KEYS, p: int = P, hooks=HOOKS):
    """Scores by dictionary, as a data frame with a column `hook dictionary` each."""
    import pandas as pd
    import torch

    from husai.activations import extract
    from husai.analysis.ideal import answer_atoms, by_projection, polygon, signed_axes
    from husai.analysis.nulls import sampler
    from husai.config import AnalysisConfig, CompiledConfig
    from husai.measure import Hook, Members, measure
    from husai.sae.dictionary import Dictionary
    from husai.sae.topk import keep_largest
    from husai.seeding import generator
    from husai.tasks import Task
    from husai.transformer.compiled import compile_model

    config = CompiledConfig.parse({"task": {"op": "add", "p": p}, "kind": "clock", "keys": keys}, "ideal_table")
    model = compile_model(config).to(torch.float32)

    def built(name: str, hook: Hook, seed: int) -> Dictionary:
        assert hook.truth is not None
        bases = [subspace.basis for subspace in hook.truth.subspaces]
        mean = hook.x.mean(0)
        phases = (torch.rand(len(bases), generator=generator("ideal-phases", seed)) * 2 * math.pi).tolist()
        if name == "signed_axes":
            return signed_axes(bases, mean, phases)
        if name == "answers":
            assert hook.answers is not None
            return answer_atoms(hook.x, hook.answers.values, p)
        if name == "data_points":
            atoms = sampler("data_points", hook.x)(4 * len(bases), generator("ideal-points", seed))
            return by_projection(atoms, mean, lambda projections: keep_largest(projections, len(bases)), name)
        if name == "cover":
            return by_projection(sampler("data", hook.x)(128, generator("ideal-cover", seed)), mean, torch.relu, name)
        return polygon(bases, mean, int(name.removesuffix("-gon")), phases)

    columns = {}
    for short, names in hooks.items():
        hook = Hook.of(extract(model, Task("add", p), short), model)
        for name in names:
            members = Members.of([built(name, hook, seed) for seed in range(SEEDS)], hook)
            result = measure(members, hook, AnalysisConfig(), final=False)
            found = {metric: interval.mean for metric, interval in result.overall().items()}
            columns[f"{short} {name}"] = {metric: found.get(metric, math.nan) for metric in METRICS}
    return pd.DataFrame(columns).rename_axis("score")


@exits
def main(out: Annotated[Path, typer.Option(help="folder for table.csv")] = Path("results/ideal")) -> int:
    """Compute and write the table."""
    found = table()
    out.mkdir(parents=True, exist_ok=True)
    found.round(4).to_csv(out / "table.csv")
    say(found.round(3).to_string())
    return 0


if __name__ == "__main__":
    typer.run(main)
