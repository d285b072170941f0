import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from husai.errors import HusaiError
from husai.tasks import OPS, Task, discrete_logs, is_prime, primitive_root


def row(task: Task, a: int, b: int) -> int:
    return int(((task.a == a) & (task.b == b)).nonzero()[0, 0])


def label(op: str, a: int, b: int, p: int = 7) -> int:
    task = Task(op, p)
    return int(task.labels[row(task, a, b)])


def test_labels_by_hand():
    assert label("add", 5, 4) == 2  # 9 = 7 + 2
    assert label("sub", 2, 5) == 4  # -3 = -7 + 4
    assert label("mul", 3, 5) == 1  # 15 = 14 + 1
    assert label("div", 3, 5) == 2  # 5 * 2 = 10 = 7 + 3
    assert label("squares", 3, 5) == 6  # 9 + 25 = 28 + 6


def test_whole_tables_at_p_5():
    assert Task("add", 5).labels.reshape(5, 5).tolist() == [
        [0, 1, 2, 3, 4],
        [1, 2, 3, 4, 0],
        [2, 3, 4, 0, 1],
        [3, 4, 0, 1, 2],
        [4, 0, 1, 2, 3],
    ]
    assert Task("mul", 5).labels.reshape(5, 5)[2:4].tolist() == [[0, 2, 4, 1, 3], [0, 3, 1, 4, 2]]
    assert Task("squares", 5).labels.reshape(5, 5)[1].tolist() == [1, 2, 0, 0, 2]


@given(st.sampled_from(OPS), st.sampled_from([5, 7, 11, 13]), st.data())
def test_labels_solve_their_equation(op, p, data):
    a, b = data.draw(st.integers(0, p - 1)), data.draw(st.integers(1 if op == "div" else 0, p - 1))
    c = label(op, a, b, p)
    assert 0 <= c < p
    undone = {"add": c - b - a, "sub": c + b - a, "mul": c - a * b, "div": c * b - a, "squares": c - a * a - b * b}
    assert undone[op] % p == 0


@pytest.mark.parametrize("alias", ["a2+b2", "a²+b²", "a^2+b^2"])
def test_alias_names_the_same_task(alias):
    assert Task(alias, 7) == Task("squares", 7)


def test_grid_runs_over_a_then_b():
    task = Task("add", 5)
    assert list(zip(task.a.tolist(), task.b.tolist(), strict=True))[:7] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (0, 4),
        (1, 0),
        (1, 1),
    ]


def test_div_leaves_out_b_zero_and_nothing_else():
    task = Task("div", 7)
    assert len(task.a) == 7 * 6
    assert set(task.b.tolist()) == {1, 2, 3, 4, 5, 6}
    assert set(task.a.tolist()) == {0, 1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("op", "p", "message"),
    [
        ("pow", 7, "op: 'pow' is unknown; allowed are add, sub, mul, div, squares"),
        ("add", 9, "p: 9 is not allowed; p must be a prime from 5 to 997"),
        ("add", 3, "p: 3 is not allowed"),
        ("add", 1009, "p: 1009 is not allowed"),
        ("add", -7, "p: -7 is not allowed"),
        ("add", 7.0, "p: 7.0 is not allowed"),
    ],
)
def test_bad_task_is_refused_by_name(op, p, message):
    with pytest.raises(HusaiError) as caught:
        Task(op, p)
    assert message in str(caught.value)


def test_primes():
    assert [n for n in range(-2, 30) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]


def test_primitive_roots_from_tables():
    assert {p: primitive_root(p) for p in (5, 7, 11, 23, 41, 59, 113)} == {
        5: 2,
        7: 3,
        11: 2,
        23: 5,
        41: 6,
        59: 2,
        113: 3,
    }


def test_discrete_logs_by_hand():
    # Powers of 3 mod 7: 1, 3, 2, 6, 4, 5.
    assert discrete_logs(7).tolist() == [-1, 0, 2, 1, 4, 5, 3]


@pytest.mark.parametrize("p", [7, 13, 113])
def test_discrete_log_of_a_product_is_the_sum(p):
    logs, x = discrete_logs(p), torch.arange(1, p)
    assert torch.equal(logs[x[:, None] * x[None] % p], (logs[x][:, None] + logs[x][None]) % (p - 1))
    assert logs[1:].sort().values.tolist() == list(range(p - 1))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("p", [5, 13])
def test_group_view_turns_the_op_into_a_sum(op, p):
    task = Task(op, p)
    view = task.group
    assert view.n == (p - 1 if op in ("mul", "div") else p)
    assert torch.equal(view.s, (view.u + view.v) % view.n)
    assert torch.equal(view.answer_tokens[view.s], task.labels[view.rows])
    assert torch.equal(view.u, view.token_coordinate[task.a[view.rows]])
    of_b = view.token_coordinate[task.b[view.rows]]
    assert torch.equal(view.v, -of_b % view.n if op in ("sub", "div") else of_b)
    assert view.uniform == (op != "squares")


@pytest.mark.parametrize("op", ["mul", "div"])
def test_group_of_a_product_covers_the_nonzero_pairs(op):
    task = Task(op, 7)
    view = task.group
    assert len(view.rows) == 36
    assert int(task.a[view.rows].min()) == int(task.b[view.rows].min()) == 1
    assert sorted(view.answer_tokens.tolist()) == [1, 2, 3, 4, 5, 6]
    assert view.token_coordinate[0] == -1


def test_group_of_squares_by_hand():
    view = Task("squares", 7).group
    assert view.token_coordinate.tolist() == [0, 1, 4, 2, 2, 4, 1]


def test_tokens_by_hand():
    task = Task("add", 5)
    at = row(task, 3, 1)
    assert task.tokens("abe")[at].tolist() == [3, 1, 5]
    bos, equals, plus = 5, 7, 8
    assert task.tokens("husai")[at].tolist() == [bos, 3, plus, 1, equals]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("layout", "vocabulary"), [("abe", 14), ("husai", 17)])
def test_no_position_holds_the_label(op, layout, vocabulary):
    task = Task(op, 13)
    tokens, labels = task.tokens(layout), task.labels
    assert int(tokens.max()) < vocabulary
    assert len(tokens[:, -1].unique()) == 1  # the read position says nothing about the row
    for position in range(tokens.shape[1]):
        # By chance a or b equals the label for 1 row in p (squares: up to 2 in p); a leak would equal it in all.
        assert float((tokens[:, position] == labels).double().mean()) < 3 / 13
    present = (tokens == labels[:, None]).any(1)
    assert torch.equal(present, (labels == task.a) | (labels == task.b))


def test_unknown_layout_is_refused():
    with pytest.raises(HusaiError, match="layout: 'gpt' is unknown; allowed are abe, husai"):
        Task("add", 5).tokens("gpt")


def test_split_parts_the_grid_in_two():
    train, test = Task("add", 5).split(0.3, generator=torch.Generator().manual_seed(0))
    assert len(train) == 7  # 30% of 25, rounded down
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(25))


def test_split_depends_on_its_generator_alone():
    task = Task("add", 11)
    first, again, other = (task.split(0.5, generator=torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_mirror_free_by_hand():
    task = Task("add", 5)
    train = torch.tensor([row(task, 0, 1), row(task, 4, 4)])
    test = torch.tensor([row(task, *pair) for pair in [(1, 0), (2, 3), (3, 2), (2, 2)]])
    kept = task.mirror_free(train, test)
    assert [(int(task.a[i]), int(task.b[i])) for i in kept] == [(2, 3), (3, 2), (2, 2)]


def test_mirror_free_of_div_keeps_rows_whose_mirror_does_not_exist():
    task = Task("div", 5)
    train, test = torch.tensor([row(task, 3, 2)]), torch.tensor([row(task, 0, 2), row(task, 2, 3)])
    assert task.mirror_free(train, test).tolist() == [row(task, 0, 2)]
