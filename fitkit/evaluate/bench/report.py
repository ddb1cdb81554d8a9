"""The JSON file of a benchmark."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fitkit.io.atomic import written_whole


def write_report(report: dict[str, Any], path: str | os.PathLike) -> Path:
    """The report as JSON.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    with written_whole(path) as part:
        part.write_text(json.dumps(_rounded(report), indent=1) + "\n", encoding="utf-8")
    return path


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value
