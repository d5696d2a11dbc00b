"""What is wrong with a spec, in the words of the person who wrote it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, kinds: Mapping[str, type[BaseModel]]) -> list[str]:
    """Pydantic's findings as "field = value: what is wrong, and what would be right", one a field."""
    said: dict[str, list[str]] = {}
    choices = " or ".join(map(repr, kinds))
    for found in error.errors(include_url=False):
        kind = str(found["loc"][0]) if found["loc"] else ""
        path = list(found["loc"][1:] if kind in kinds else found["loc"])
        # Of a union pydantic names the member it tried; that is no part of the field's name.
        path = [part for part in path if not re.search(r"[\[\]]|^(str|int|float)$", str(part))]
        name = ".".join(map(str, path)) or "spec"
        value = found["input"]
        shown = "" if isinstance(value, dict | list) else f" = {value!r}"
        context = found.get("ctx", {})
        match found["type"]:
            case "missing":
                field, text = name, "missing; this key is required"
            case "extra_forbidden":
                field, text = name + shown, f"unknown key; {_known(kinds[kind], path)}"
            case "union_tag_not_found":
                field, text = "kind", f"missing; choose {choices}"
            case "union_tag_invalid":
                field, text = f"kind = {context['tag']!r}", f"unknown; choose {choices}"
            case "value_error":
                field, text = name + shown, str(context["error"])
            case _:
                field, text = name + shown, f"{found['msg'][0].lower()}{found['msg'][1:]}"
        said.setdefault(field, []).append(text)
    return [f"{field}: {' or '.join(dict.fromkeys(texts))}" for field, texts in said.items()]


def _known(kind: type[BaseModel], path: list[Any]) -> str:
    """The remedy for an unknown key: the nearest of the keys that may stand there, or all of them."""
    kinds = [kind]
    for part in path[:-1]:
        if isinstance(part, int):
            continue
        annotations = [k.model_fields[part].annotation for k in kinds if part in k.model_fields]
        kinds = [kind for annotation in annotations for kind in _models_in(annotation)]
    known = sorted({name for kind in kinds for name in kind.model_fields})
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known here are {', '.join(known)}"


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)
