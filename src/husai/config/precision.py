"""Which numbers a training keeps and which it computes with."""

from typing import Annotated, Literal

from pydantic import AfterValidator

from husai.config.base import Size

Dtype = Literal["fp32", "bf16", "fp16"]
PAIRS = (("fp32", "fp32"), ("fp32", "bf16"), ("fp32", "fp16"), ("fp16", "fp16"), ("bf16", "bf16"))
LONG = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
DtypeName = Annotated[str, AfterValidator(lambda name: LONG.get(name, name))]


def require_pair(master: str, compute: str, *, scaled: bool) -> None:
    """Raises ValueError unless parameters in `master` and products in `compute` are a pair that trains here.

    scaled: whether the gradients are, without which fp16 loses the small ones.
    """
    if (master, compute) not in PAIRS:
        allowed = ", ".join("/".join(pair) for pair in PAIRS)
        raise ValueError(f"dtype/lower_dtype {master}/{compute} is not supported; allowed are {allowed}")
    if compute == "fp16" and not scaled:
        raise ValueError(
            f"{master}/fp16 needs scaled gradients, since fp16 loses those below 6e-8; set adam_trick, or gradient_scale"
        )


def gradient_scale(given: Size | None, *, adam_trick: bool, batch_size: int) -> float:
    """What the loss is multiplied by: as given, or with the Adam trick a sixteenth of the batch, as a power of two.

    The gradient of a mean over the batch is 1/batch_size of a sample's, so that this scale leaves it in the middle of fp16's
    range: a unit error gives 1/8, and a parameter's gradient overflows only 65504/scale.
    """
    if given is not None:
        return given
    return float(2 ** max(0, batch_size.bit_length() - 5)) if adam_trick else 1.0
