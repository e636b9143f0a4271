"""Values in the types that JSON and YAML know, and as text of both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml


def to_json(value: Any) -> str:
    """``value`` as JSON text; NaN and the infinities become null."""
    return json.dumps(plain(value, finite=True), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_yaml(value: Any) -> str:
    """``value`` as YAML text, in its own order."""
    return yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=120)


def plain(value: Any, *, finite: bool = False) -> Any:
    """``value`` in the types that JSON and YAML know: arrays and tuples become lists, keys and paths text.

    ``finite`` turns NaN and the infinities, which JSON cannot hold, into None.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, finite=finite) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), finite=finite)
    if isinstance(value, list | tuple):
        return [plain(item, finite=finite) for item in value]
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, float):
        return None if finite and not math.isfinite(value) else float(value)
    if value is None or isinstance(value, bool | int):
        return value
    raise TypeError(f"A run's record cannot hold a {type(value).__name__}: {value!r}.")
