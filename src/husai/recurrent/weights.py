"""Recurrent networks on disk: safetensors under torch.nn's names, with the cell and the walks in the header."""

import json
from pathlib import Path
from typing import get_args

from safetensors.torch import save_file
from torch import Tensor

from husai.config import WalksConfig
from husai.errors import HusaiError
from husai.recurrent.model import READOUT, Cell, Recurrent, shapes
from husai.recurrent.walks import Walks
from husai.transformer.weights import tensors_hash

HEADER = "cell"  # the key in a header that tells a recurrent network's file


def save_recurrent(model: Recurrent, path: Path) -> None:
    """Write the parameters as safetensors; the file says by itself which cell it is and on which walks it is read."""
    metadata = {HEADER: model.cell, "walks": model.walks.config.model_dump_json()}
    save_file({name: value.contiguous() for name, value in model.params.items()}, path, metadata=metadata)


def from_tensors(tensors: dict[str, Tensor], header: dict[str, str], where: str) -> Recurrent:
    """The network in a file whose header names a cell.

    Raises HusaiError naming `where` and what is missing, unknown, of another shape, or not finite.
    """
    cell = next((known for known in get_args(Cell) if known == header[HEADER]), None)
    if cell is None:
        raise HusaiError(f"{where}: its header names cell '{header[HEADER]}'; allowed are {', '.join(get_args(Cell))}")
    if READOUT not in tensors or tensors[READOUT].ndim != 2:
        raise HusaiError(
            f"{where}: has no matrix '{READOUT}' of d_hidden rows and p columns; a recurrent network has one"
        )
    d_hidden, p = tensors[READOUT].shape
    expected = shapes(cell, p, d_hidden)
    for name, shape in expected.items():
        if name not in tensors:
            raise HusaiError(f"{where}: has no '{name}'; expected are {', '.join(expected)}")
        if tuple(tensors[name].shape) != shape:
            raise HusaiError(f"{where}: '{name}' has shape {tuple(tensors[name].shape)}; expected {shape}")
        if not bool(tensors[name].isfinite().all()):
            raise HusaiError(f"{where}: '{name}' holds NaN or infinity; weights must be finite")
    try:
        plain = json.loads(header.get("walks", "null"))
    except json.JSONDecodeError:
        plain = None
    walks = Walks(p, WalksConfig.parse(plain, f"{where}, walks in its header"))
    return Recurrent({name: tensors[name].float() for name in expected}, cell, walks, name=where)


def recurrent_hash(model: Recurrent) -> str:
    """12 hex digits that identify a network by what it computes and on which walks, whatever it is called."""
    return tensors_hash(model.params, f"{model.cell} {model.walks.config.model_dump_json()}")
