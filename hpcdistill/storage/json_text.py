"""JSON that every reader accepts."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON; numbers that are not finite become null, since JSON has no NaN and no infinity.

    Args:
        value: dicts, lists, tuples, strings, numbers, booleans and None.
        indent: spaces of each level; without it, everything is on one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
