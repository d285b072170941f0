"""Modular operations: the grid of inputs, its labels, its splits, and the group in which each operation is a sum.

Every operation here becomes addition in some cyclic group Z_n: `add` and `sub` in Z_p over the tokens themselves,
`mul` and `div` in Z_{p-1} over discrete logarithms, `squares` (a² + b²) in Z_p over squared tokens. `GroupView` holds
those coordinates; everything Fourier in this project is written once, against it.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from husai.errors import HusaiError

OPS = ("add", "sub", "mul", "div", "squares")
ALIASES = {"a2+b2": "squares", "a²+b²": "squares", "a^2+b^2": "squares"}
LAYOUTS = ("abe", "husai")
MIN_P = 5
MAX_P = 997


def is_prime(n: int) -> bool:
    """Trial division; the moduli of this project are small."""
    return n >= 2 and all(n % d for d in range(2, int(n**0.5) + 1))


def primitive_root(p: int) -> int:
    """The smallest generator of the multiplicative group mod the prime `p` (3 for 113)."""
    factors = [q for q in range(2, p) if (p - 1) % q == 0 and is_prime(q)]
    return next(g for g in range(1, p) if all(pow(g, (p - 1) // q, p) != 1 for q in factors))


def discrete_logs(p: int) -> Int[Tensor, "p"]:
    """`logs[x]` with g^logs[x] = x mod p for the smallest primitive root g; `logs[0]` is -1, since 0 has none."""
    logs = torch.full((p,), -1)
    value, root = 1, primitive_root(p)
    for exponent in range(p - 1):
        logs[value] = exponent
        value = value * root % p
    return logs


@dataclass(frozen=True)
class GroupView:
    """Coordinates in Z_n in which the operation is `u + v = s`.

    n: order of the group.
    rows: indices of the grid rows that the group covers (all of them, or the nonzero pairs of mul and div).
    u, v, s: coordinates of a, of b (negated for sub and div) and of the answer on those rows; s = (u + v) mod n.
    token_coordinate: (p,) the coordinate of each token as `a`; -1 where it has none.
    answer_tokens: (n,) the answer token at each coordinate, which orders the logits' columns.
    """

    n: int
    rows: Int[Tensor, "rows"]
    u: Int[Tensor, "rows"]
    v: Int[Tensor, "rows"]
    s: Int[Tensor, "rows"]
    token_coordinate: Int[Tensor, "p"]
    answer_tokens: Int[Tensor, "n"]

    @property
    def uniform(self) -> bool:
        """Whether u and v run evenly over the group (false for `squares`, where characters are not orthogonal)."""
        return len(self.token_coordinate.unique()) == len(self.token_coordinate)


@dataclass(frozen=True)
class Task:
    """One modular operation. Rows of the grid run over a, then b; `div` leaves out b = 0.

    Raises HusaiError for an unknown op or a modulus that is not a prime from 5 to 997.
    """

    op: str
    p: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "op", ALIASES.get(self.op, self.op))
        if self.op not in OPS:
            raise HusaiError(f"op: '{self.op}' is unknown; allowed are {', '.join(OPS)}")
        if not isinstance(self.p, int) or not MIN_P <= self.p <= MAX_P or not is_prime(self.p):
            raise HusaiError(
                f"p: {self.p} is not allowed; p must be a prime from {MIN_P} to {MAX_P}, such as 59 or 113"
            )

    @property
    def variables(self) -> tuple[str, str]:
        """What truths at a hook call the two operands."""
        return "a", "b"

    @cached_property
    def a(self) -> Int[Tensor, "pairs"]:
        return self._pairs[:, 0]

    @cached_property
    def b(self) -> Int[Tensor, "pairs"]:
        return self._pairs[:, 1]

    @cached_property
    def _pairs(self) -> Int[Tensor, "pairs 2"]:
        values = torch.arange(self.p)
        return torch.cartesian_prod(values, values[1:] if self.op == "div" else values)

    @cached_property
    def labels(self) -> Int[Tensor, "pairs"]:
        """The answer token of every grid row."""
        a, b, p = self.a, self.b, self.p
        if self.op == "add":
            return (a + b) % p
        if self.op == "sub":
            return (a - b) % p
        if self.op == "mul":
            return a * b % p
        if self.op == "squares":
            return (a * a + b * b) % p
        inverse = torch.tensor([pow(int(x), p - 2, p) for x in range(p)])
        return a * inverse[b] % p

    def tokens(self, layout: str) -> Int[Tensor, "pairs pos"]:
        """Input tokens of every grid row; the answer is read at the last position and is never among them.

        `abe`: [a, b, =] with vocabulary p + 1. `husai`: [BOS, a, +, b, =] with vocabulary p + 4.
        """
        p = self.p

        def fixed(token: int) -> Tensor:
            return torch.full_like(self.a, token)

        if layout == "abe":
            return torch.stack([self.a, self.b, fixed(p)], dim=1)
        if layout == "husai":
            bos, equals, plus = p, p + 2, p + 3
            return torch.stack([fixed(bos), self.a, fixed(plus), self.b, fixed(equals)], dim=1)
        raise HusaiError(f"layout: '{layout}' is unknown; allowed are {', '.join(LAYOUTS)}")

    @cached_property
    def group(self) -> GroupView:
        p, tokens = self.p, torch.arange(self.p)
        if self.op in ("mul", "div"):
            logs, n = discrete_logs(p), p - 1
            rows = ((self.a > 0) & (self.b > 0)).nonzero()[:, 0]
            u, v = logs[self.a[rows]], logs[self.b[rows]]
            coordinate, answers = logs, logs[1:].argsort() + 1
        else:
            n, rows = p, torch.arange(len(self.a))
            coordinate = tokens * tokens % p if self.op == "squares" else tokens
            u, v, answers = coordinate[self.a], coordinate[self.b], tokens
        if self.op in ("sub", "div"):
            v = -v % n
        return GroupView(n, rows, u, v, (u + v) % n, coordinate, answers)

    def split(self, frac_train: float, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Grid rows for training and for testing, drawn without regard to the mirror pair (b, a)."""
        order = torch.randperm(len(self.a), generator=generator)
        cut = int(frac_train * len(order))
        return order[:cut], order[cut:]

    def mirror_free(self, train: Tensor, test: Tensor) -> Tensor:
        """The test rows whose mirror (b, a) is not in training: where symmetry alone gives nothing away."""
        seen = torch.zeros(self.p, self.p, dtype=torch.bool)
        seen[self.a[train], self.b[train]] = True
        return test[~seen[self.b[test], self.a[test]]]
