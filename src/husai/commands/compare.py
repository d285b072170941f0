"""`husai compare`: how far saved SAEs agree, beside chance."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from husai import console
from husai.console import exits, say

if TYPE_CHECKING:
    from husai.comparison import Comparison


@exits
def compare(
    saes: Annotated[
        list[Path],
        typer.Argument(help="SAE folders of SAELens, sparsify or dictionary_learning, or folders that hold some"),
    ],
    model: Annotated[
        str | None,
        typer.Option(help="MODEL whose grid tells live atoms and draws nulls: a reference name, a run folder"),
    ] = None,
    hook: Annotated[str | None, typer.Option(help="hook; by default the one that the SAEs were trained on")] = None,
    source_hook: Annotated[
        str | None, typer.Option(help="hook that transcoders encode, where they do not say it")
    ] = None,
    op: Annotated[
        str | None, typer.Option(help="operation of a bare weights file: add, sub, mul, div, squares")
    ] = None,
    shard_dir: Annotated[Path | None, typer.Option(help="store of activations, in place of a model")] = None,
    target_shard_dir: Annotated[
        Path | None, typer.Option(help="store of what transcoders reconstruct, row by row that of --shard-dir")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="draws of each null; default 100 up to 256 live atoms, 20 to 1024, else 2")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for compare.json, matrix.csv, atoms.csv, matrix.png and matrix.pdf")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON and nothing else")] = False,
) -> None:
    """How far do saved SAEs agree, and what does it mean? Any of three formats, any number of atoms."""
    from husai.comparison import compare as compare_saes
    from husai.errors import HusaiError
    from husai.runs import load_model
    from husai.sae.formats import sae_folders
    from husai.sae.weights import load_sae
    from husai.samples import samples_of_model, samples_of_store
    from husai.shards import open_store

    if model is not None and shard_dir is not None:
        raise HusaiError("compare: takes activations from --model or from --shard-dir, not from both")
    if model is None and (hook or op or source_hook):
        raise HusaiError("compare: --hook, --source-hook and --op say how a --model is read, and there is none")
    if target_shard_dir is not None and shard_dir is None:
        raise HusaiError("compare: --target-shard-dir stands beside --shard-dir, which is missing")
    folders = sae_folders(saes)
    names, opened = [str(folder) for folder in folders], [load_sae(folder) for folder in folders]
    with console.warnings_said(), console.progress(json) as bar:
        samples = None
        if model is not None:
            samples = samples_of_model(opened, names, load_model(model, op), hook, source_hook)
        elif shard_dir is not None:
            target = None if target_shard_dir is None else open_store(target_shard_dir)
            samples = samples_of_store(opened, names, open_store(shard_dir), target)
        line = bar.add_task("comparing", total=None, figures="")
        found = compare_saes(opened, names, samples, draws=draws, progress=lambda what: bar.update(line, figures=what))
    written = []
    if out is not None:
        from husai.report.comparison import write_comparison

        data = console.plain(found.to_json())
        counts = [count.tolist() for count in found.counts]
        written = write_comparison(data, found.labels, list(found.measures), counts, out)
    if json:
        return console.show_json(found.to_json())
    _show(found)
    for path in written:
        say(str(path))
    return None


def _show(found: "Comparison") -> None:
    table = Table(title="SAEs", title_justify="left", box=None, pad_edge=False)
    for name in ("", "SAE", "architecture", "atoms", "live", "in no other", "in all others"):
        table.add_column(name, justify="left" if name in ("", "SAE", "architecture") else "right", overflow="fold")
    for i, (name, count) in enumerate(zip(found.labels, found.counts, strict=True)):
        alone, everywhere = (f"{(count == times).mean():.1%}" for times in (0, len(found.names) - 1))
        row = (str(i), name, found.kinds[i], str(found.d_sae[i]), str(found.n_live[i]), alone, everywhere)
        table.add_row(*map(Text, row))
    console.out.print(table)
    say()
    table = Table(title="Agreement of pairs", title_justify="left", box=None, pad_edge=False)
    for name in ("measure", "mean", "95% interval", "chance"):
        table.add_column(name, justify="right" if name == "mean" else "left")
    for name, one in found.measures.items():
        interval = (
            ""
            if one.agreement.interval.low != one.agreement.interval.low
            else f"[{one.agreement.interval.low:.3f}, {one.agreement.interval.high:.3f}]"
        )
        chance = ", ".join(f"{null} {level.mean:.3f}" for null, level in one.nulls.items())
        table.add_row(*map(Text, (name, f"{one.agreement.interval.mean:.3f}", interval, chance)))
    console.out.print(table)
    say()
    told = [one for name, one in found.sentences.items() if name == "pwmcc" or found.measures[name].judged]
    for sentence in told:
        say(sentence)
    for note in found.notes:
        say(note)
