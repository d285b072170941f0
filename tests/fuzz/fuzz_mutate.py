"""Hostile input, made of valid input: what may happen to bytes, to plain data, to tensors in a file and to a table."""

import copy
import json
import struct
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

HUGE = (10**10, 10**12, 10**15, 10**30, 2**63, -(10**12))
SCALARS: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1000, 0.0, -0.5, 0.5, 1e-300, 1e300, *HUGE),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "null", "1e-3", "0x10", "2020-13-45", "a" * 3000),
    *("../../x", "/tmp/x", "..", "é" * 5, "日本", "\u202e", "😀", "%s%n", "{}", "x\ny", "topk", "relu", "add-p59-0"),
)
COMPOUND: tuple[Any, ...] = ([], {}, [[]], [None], [1, "a", {}], {"": 0}, {"a": {"b": []}}, [0] * 50)


def nested(levels: int) -> Any:
    tree: Any = 1
    for level in range(levels):
        tree = [tree] if level % 2 else {"a": tree}
    return tree


def values() -> st.SearchStrategy[Any]:
    deep = st.sampled_from([30, 70]).map(nested)
    return st.one_of(
        st.sampled_from(SCALARS),
        st.sampled_from(COMPOUND).map(copy.deepcopy),
        st.integers(-3, 40),
        st.text(max_size=8),
        deep,
    )


@st.composite
def damaged_bytes(draw: Any, content: bytes) -> bytes:
    """Cut short, with bytes flipped, taken out, doubled, put in, or replaced altogether."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "flip", "drop", "double", "insert", "random", "empty"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    length = draw(st.integers(1, 64))
    if how == "flip":
        damaged = bytearray(content)
        near_start = draw(st.booleans())
        for _ in range(draw(st.integers(1, 4))):
            place = draw(st.integers(0, min(len(content), 300) - 1 if near_start else len(content) - 1))
            damaged[place] = draw(st.integers(0, 255))
        return bytes(damaged)
    return {
        "cut": content[:at],
        "drop": content[:at] + content[at + length :],
        "double": content[: at + length] + content[at:],
        "insert": content[:at] + draw(st.binary(max_size=32)) + content[at:],
        "random": draw(st.binary(max_size=200)),
        "empty": b"",
    }[how]


def places(tree: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within plain data."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way for key, value in inside for way in ((*here, key), *places(value, (*here, key)))]


@st.composite
def damaged_data(draw: Any, data: Any, most: int = 3) -> Any:
    """Plain data with some values replaced, dropped, doubled, swapped, or under another key."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, most))):
        ways = places(data)
        if not ways:
            return draw(values())
        way = draw(st.sampled_from(ways))
        holder = data
        for key in way[:-1]:
            holder = holder[key]
        last = way[-1]
        how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "rename", "swap", "extra"]))
        if how == "replace":
            holder[last] = draw(values())
        elif how == "drop":
            del holder[last]
        elif how == "swap":
            holder[last] = {"list": [holder[last]], "map": {"a": holder[last]}, "text": str(holder[last])}[
                draw(st.sampled_from(["list", "map", "text"]))
            ]
        elif isinstance(holder, list):
            holder.insert(last, copy.deepcopy(holder[last]) if how == "rename" else draw(values()))
        elif how == "rename":
            holder[draw(st.sampled_from([f"{last}x", str(last)[:-1], "", "k", "model", "name", str(last).upper()]))] = (
                holder.pop(last)
            )
        else:
            holder[draw(st.sampled_from(["extra", "d_sae", "steps", "p", "0"]))] = draw(values())
    return data


def safetensors_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@st.composite
def damaged_tensors(draw: Any, content: bytes) -> bytes:
    """A safetensors file with its bytes, its header's length, or what the header says of a tensor changed."""
    how = draw(st.sampled_from(["bytes", "length", "header", "header", "header", "names", "values"]))
    if how == "bytes":
        return draw(damaged_bytes(content))
    if how == "length":
        length = draw(st.sampled_from([0, 1, 2**31, 2**40, 2**63, 2**64 - 1]))
        return struct.pack("<Q", length) + content[8:]
    header, data = safetensors_parts(content)
    names = [name for name in header if name != "__metadata__"]
    name = draw(st.sampled_from(names))
    if how == "values":
        start, end = header[name]["data_offsets"]
        special = draw(
            st.sampled_from([b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x00\x00\x00\x00"])
        )
        data = data[:start] + special * ((end - start) // 4) + data[end:]
    elif how == "names":
        other = draw(st.sampled_from([*names, "", "x" * 2000, "../../x", "W_enc", "\x00"]))
        header[other] = header.pop(name)
    else:
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__"]))
        shape = header[name]["shape"]
        shapes = [shape[::-1], [*shape, 1], shape[1:], [0, *shape], [2**40, 2**20], [-1, *shape], [2**63], "a", [1.5]]
        replaced = {
            "dtype": st.sampled_from(["F64", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "U8", "F128", "", 3]),
            "shape": st.sampled_from(shapes),
            "data_offsets": st.sampled_from([[0, 0], [0, 2**50], [2**63, 2**63], [8, 0], [-4, 4], [0], "ab", [4, 8]]),
            "__metadata__": values(),
        }
        if field == "__metadata__":
            header[field] = draw(damaged_data(header.get(field, {"format": "pt"})))
        else:
            header[name][field] = draw(replaced[field])
    text = json.dumps(header, default=str).encode(errors="replace")
    return struct.pack("<Q", len(text)) + text + data


@st.composite
def damaged_frame(draw: Any, table: pd.DataFrame) -> pd.DataFrame:
    """A table with a column dropped, renamed, of another type or holding other values, or with rows dropped or doubled."""
    table = table.copy()
    column = draw(st.sampled_from([*table.columns]))
    how = draw(
        st.sampled_from(["drop", "rename", "text", "none", "number", "nan", "huge", "rows", "empty", "double", "some"])
    )
    if how == "drop":
        return table.drop(columns=column)
    if how == "rename":
        return table.rename(columns={column: draw(st.sampled_from(["x", "", "value2"]))})
    if how in ("empty", "rows", "double"):
        kept = {"empty": 0, "rows": draw(st.integers(1, len(table))), "double": len(table)}[how]
        chosen = table.sample(kept, random_state=draw(st.integers(0, 99)))
        return pd.concat([table, table]) if how == "double" else chosen
    if how == "some":  # of the rows, those of one value of a column
        return table[table[column] != draw(st.sampled_from([*table[column].dropna().unique()] or [0]))]
    filled: dict[str, Any] = {
        "text": draw(st.sampled_from(["x", "", "../../x", "nan", "a" * 500])),
        "none": None,
        "number": draw(st.sampled_from([0, -1, 3.5, 10**9])),
        "nan": np.nan,
        "huge": draw(st.sampled_from([1e300, -1e300, np.inf, 2**62])),
    }
    table[column] = pd.Series([filled[how]] * len(table), index=table.index)
    return table
