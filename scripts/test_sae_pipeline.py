"""The whole SAE pipeline in five stages on one transformer, each with a pass mark; exit 0 if all five pass.

    python scripts/test_sae_pipeline.py --transformer-checkpoint results/reference/add-p113-0

[1/5] load transformer (accuracy > .95) · [2/5] extract activations · [3/5] train SAE (L0 within k ± k/8, EV > .8,
dead < 20%) · [4/5] fourier_overlap (> .3 and above the untrained SAE) · [5/5] save and load (difference < 1e-6).
"""

from typing import Annotated

import typer

from husai.console import exits

OVERRIDES = "key=value settings on top of the config, such as training.steps=1500"


@exits
def main(
    transformer_checkpoint: Annotated[str, typer.Option(help="reference name, run folder or weights file")],
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES)] = None,
    config: Annotated[str, typer.Option(help="a YAML file, or a shipped name")] = "topk_8x",
    hook: Annotated[str, typer.Option(help="short (resid_post) or full hook name")] = "resid_post",
    layer: Annotated[int | None, typer.Option(help="layer of a short hook name; the last by default")] = None,
    op: Annotated[str | None, typer.Option(help="operation of a bare weights file")] = None,
) -> int:
    """Run the five stages."""
    from husai.config import SAEConfig
    from husai.pipeline import run_pipeline
    from husai.resources import find_config

    steps = [] if any(item.startswith("training.steps=") for item in overrides or []) else ["training.steps=400"]
    chosen = SAEConfig.load(find_config(config, "examples"), [*steps, *(overrides or [])])
    return 1 if run_pipeline(transformer_checkpoint, chosen, hook, layer, op) else 0


if __name__ == "__main__":
    typer.run(main)
