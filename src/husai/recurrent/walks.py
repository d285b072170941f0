"""Fixed walks on Z_p, of which every step is the whole grid of (state, input). (docs/method.md §Recurrent networks)

Among all walks in one state, each input comes equally often. So at every step the pairs (state before, input) are the
grid of the operation `add`, in another order and with other histories, and all Fourier code that works on a grid of pairs
works on walks.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from husai.config import WalksConfig
from husai.errors import HusaiError
from husai.seeding import generator
from husai.tasks import GroupView, Task

MAX_SAMPLES = 2**20


@dataclass(frozen=True)
class Walks:
    """`repeats`·p² walks: at time 0 an input names the first state, at times 1 … `length` one adds to the state before.

    Samples are the steps from time 1 on, walk by walk, in time order. As a grid of pairs: `a` is the state before the
    step, `b` its input, `labels` the state after. Equal configs make equal walks. Raises HusaiError for a modulus that
    `husai.tasks.Task` refuses, or more than 2^20 samples.
    """

    p: int
    config: WalksConfig

    def __post_init__(self) -> None:
        samples = Task("add", self.p).p ** 2 * self.config.repeats * self.config.length
        if samples > MAX_SAMPLES:
            raise HusaiError(
                f"walks: {self.config.repeats} · {self.p}² walks of {self.config.length} steps are {samples} samples; "
                f"at most {MAX_SAMPLES} are allowed"
            )

    @property
    def op(self) -> str:
        """What a step computes."""
        return "add"

    @property
    def variables(self) -> tuple[str, str]:
        """What truths at a hook call the two operands of a step: the state before it and its input."""
        return "previous", "input"

    @cached_property
    def inputs(self) -> Int[Tensor, "walks time"]:
        """What the network reads, from time 0 on."""
        p, copies, stream = self.p, self.p * self.config.repeats, generator("walks", self.config.seed)
        state = torch.arange(p).repeat_interleave(copies)
        inputs = [state]
        for _ in range(self.config.length):
            shuffled = torch.randperm(len(state), generator=stream)
            by_state = shuffled[state[shuffled].argsort(stable=True)]  # walks of one state adjacent, in random order
            step = torch.empty_like(state)
            step[by_state] = torch.arange(p).repeat(copies)
            inputs.append(step)
            state = (state + step) % p
        return torch.stack(inputs, dim=1)

    @cached_property
    def states(self) -> Int[Tensor, "walks time"]:
        """The running sum mod p after every input, from time 0 on."""
        return self.inputs.cumsum(1) % self.p

    @cached_property
    def a(self) -> Int[Tensor, "samples"]:
        return self.states[:, :-1].flatten()

    @cached_property
    def b(self) -> Int[Tensor, "samples"]:
        return self.inputs[:, 1:].flatten()

    @cached_property
    def labels(self) -> Int[Tensor, "samples"]:
        return self.states[:, 1:].flatten()

    @cached_property
    def walk(self) -> Int[Tensor, "samples"]:
        """The walk of every sample."""
        return torch.arange(len(self.inputs)).repeat_interleave(self.config.length)

    @cached_property
    def time(self) -> Int[Tensor, "samples"]:
        """The time of every sample, from 1; two adjacent samples of one walk are one step apart."""
        return torch.arange(1, self.config.length + 1).repeat(len(self.inputs))

    @cached_property
    def group(self) -> GroupView:
        tokens = torch.arange(self.p)
        return GroupView(self.p, torch.arange(len(self.a)), self.a, self.b, self.labels, tokens, tokens)
