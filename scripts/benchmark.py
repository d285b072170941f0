"""Speed as a ratio against peers, measured side by side in one run.

    python scripts/benchmark.py [transformer|sae|matching|sweep] [--rounds 7] [--device cpu] [--out results/benchmarks]

Without a name, `transformer` and `sae`.

`transformer`: one full-batch training step (forward, float64 cross-entropy at the last position, backward, AdamW) of our
last-position path and of TransformerLens' HookedTransformer on the same weights, for both layouts. The two are
interleaved, the figure is the median over rounds, and their losses must agree.
`sae`: one step of every architecture against SAELens, dictionary_learning and sparsify (`pip install husai[bench]`); see
benchmark_sae.py beside this. With `--device cuda`: SAEs per GPU-hour against SAELens run one by one; see benchmark_gpu.py.
`matching`: time, memory and gap of one-to-one matchings of up to 65,536 atoms; see benchmark_matching.py.
`sweep`: what a sweep adds to bare training, how fast it sees that all is finished, and what Ray gains; see benchmark_sweep.py.
"""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from benchmark_gpu import benchmark as gpu
from benchmark_gpu import require_device
from benchmark_matching import benchmark as matching
from benchmark_sae import benchmark as sae
from benchmark_sae import interleaved
from benchmark_sweep import benchmark as sweep

from husai.console import exits, say

AGREEMENT = 1e-4
What = Literal["transformer", "sae", "both", "matching", "sweep"]


def transformer_steps(layout: str, p: int) -> dict[str, Callable[[], float]]:
    """One training step of ours and of HookedTransformer, on equal weights."""
    import torch

    from husai.config import TransformerConfig
    from husai.optimise import cross_entropy
    from husai.seeding import generator
    from husai.tasks import Task
    from husai.transformer.model import Transformer, init_params, last_logits
    from husai.transformer.weights import to_transformer_lens

    task = Task("add", p)
    tokens, labels = task.tokens(layout), task.labels
    config = TransformerConfig.parse({"layout": layout})
    params = init_params(config, p, generator=generator("benchmark", 0))
    hooked = to_transformer_lens(Transformer(params, layout, p))
    params = {name: value.requires_grad_() for name, value in params.items()}

    def stepper(logits: Callable[[], torch.Tensor], parameters: list[torch.Tensor]) -> Callable[[], float]:
        optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98), fused=True)

        def step() -> float:
            loss = cross_entropy(logits(), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            return loss.item()

        return step

    return {
        "ours": stepper(lambda: last_logits(params, tokens), list(params.values())),
        "HookedTransformer": stepper(lambda: hooked(tokens)[:, -1], list(hooked.parameters())),
    }


def transformer(rounds: int, p: int, out: Path) -> bool:
    """Both layouts; False if the losses disagree."""
    import torch

    from husai.store.files import write_atomic

    table: list[dict[str, Any]] = []
    for layout in ("abe", "husai"):
        medians, losses = interleaved(transformer_steps(layout, p), rounds)
        gap = abs(losses["ours"] - losses["HookedTransformer"])
        ratio = medians["HookedTransformer"] / medians["ours"]
        table.append(
            {"layout": layout, "p": p, "ms": {k: 1e3 * v for k, v in medians.items()}, "ratio": ratio, "gap": gap}
        )
        say(
            f"{layout}: ours {1e3 * medians['ours']:.0f} ms, HookedTransformer "
            f"{1e3 * medians['HookedTransformer']:.0f} ms a full-batch step: {ratio:.1f}x (losses differ by {gap:.1e})"
        )
        if gap > AGREEMENT:
            say(f"{layout}: the losses disagree, so the times mean nothing")
            return False
    hardware = {"machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}
    write_atomic(
        out / "transformer.json",
        json.dumps({"hardware": hardware, "torch": torch.__version__, "rows": table}, indent=2) + "\n",
    )
    return True


@exits
def main(
    what: Annotated[
        Literal["transformer", "sae", "both", "matching", "sweep"], typer.Argument(help="what to measure")
    ] = "both",
    rounds: Annotated[int, typer.Option(min=5, help="timed rounds; the median counts")] = 7,
    p: Annotated[int, typer.Option(help="modulus")] = 113,
    device: Annotated[str, typer.Option(help="where SAEs are trained: cpu, cuda or cuda:N")] = "cpu",
    out: Annotated[Path, typer.Option(help="folder for the tables")] = Path("results/benchmarks"),
) -> int:
    """Run the benchmarks and write their tables."""
    require_device(device)
    if what == "matching":
        return 0 if matching(out) else 1
    if what == "sweep":
        return 0 if sweep(out) else 1
    fine = what == "sae" or transformer(rounds, p, out)
    if what != "transformer":
        fine = (sae(rounds, out) if device == "cpu" else gpu(device, rounds, out)) and fine
    return 0 if fine else 1


if __name__ == "__main__":
    typer.run(main)
