"""Plain values as JSON, both ways: what a solution and its tests may hand each other. Standard library only.

Nothing that is read is ever executed, and what arrives are exact builtin types: no object of the solution's making,
with an equality of its own, gets to where answers are compared.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False  # typing itself takes longer to import than most programs run
if TYPE_CHECKING:
    from typing import Any

_GROUPS = {"l": list, "t": tuple, "s": set, "f": frozenset}


class Unplain(TypeError):
    """A value of another kind than None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict."""


def dump(value: Any) -> str:
    return json.dumps(_plain(value))


def load(text: str) -> Any:
    return _built(json.loads(text))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["b", bytes(value).hex()]
    if isinstance(value, dict):
        return ["d", [[_plain(k), _plain(v)] for k, v in value.items()]]
    for name, group in _GROUPS.items():
        if isinstance(value, group):
            return [name, [_plain(v) for v in value]]
    raise Unplain(f"a {type(value).__name__} cannot pass between a solution and its tests")


def _built(value: Any) -> Any:
    if not isinstance(value, list):
        if isinstance(value, dict):
            raise Unplain("malformed")
        return value
    match value:
        case ["c", float() | int() as real, float() | int() as imaginary]:
            return complex(real, imaginary)
        case ["b", str() as text]:
            return bytes.fromhex(text)
        case ["d", list() as items]:
            return {_built(k): _built(v) for k, v in items}
        case [str() as name, list() as items] if name in _GROUPS:
            return _GROUPS[name](_built(v) for v in items)
    raise Unplain("malformed")
