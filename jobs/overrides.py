"""`--set a.b=value`: fields of a spec that the command line replaces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.errors import SpecError


def overridden(values: dict[str, Any], override: str) -> dict[str, Any]:
    """What a YAML file held, with one field replaced: "a.b=value", the value in YAML."""
    name, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name):
        raise SpecError("--set", override, "write it as a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    quoted = text.strip()[:1] in {"'", '"', "{", "["}
    if isinstance(value, str | dict | list) and not quoted:
        value = text  # a bare word: YAML would end it at " #" and split it at ": "
    *path, last = name.split(".")
    values = dict(values)
    inner = values
    for key in path:
        inner[key] = dict(inner[key]) if isinstance(inner.get(key), Mapping) else {}
        inner = inner[key]
    inner[last] = value
    return values
