"""Read a YAML file into a pydantic model; a mistake ends in a message that names key, value and place."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from egnn_md.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe subset; a key that stands twice in one mapping is an error, not a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            seen.add(str(key))
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing, is no YAML, holds a key twice, or is no mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error}") from error
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, but holds {type(content).__name__}")
    return content


def apply_overrides(
    content: dict[str, Any], overrides: Sequence[str], option: str = "--set"
) -> dict[str, Any]:
    """A copy of ``content`` with ``section.key=value`` assignments applied; values are YAML.

    Raises:
        ConfigError: an assignment without ``=``, a value that is no YAML, or a path through a plain value.
    """
    out = _copy(content)
    for text in overrides:
        path, sign, value = text.partition("=")
        keys = path.strip().split(".")
        if not sign or not all(keys):
            raise ConfigError(f"{option} {text!r} is not of the form section.key=value")
        try:
            parsed = yaml.load(value, Loader=_StrictLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{option} {text!r}: the value is not valid YAML: {error}") from error
        place = out
        for depth, key in enumerate(keys[:-1]):
            inner = place.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(
                    f"{option} {text!r}: {'.'.join(keys[: depth + 1])} is a value, not a section"
                )
            place = inner
        place[keys[-1]] = parsed
    return out


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def validate(model: type[Model], content: dict[str, Any], source: str) -> Model:
    """Build ``model`` from ``content``.

    Args:
        model: a pydantic model, usually with ``extra="forbid"``.
        content: nested mapping.
        source: what the message calls the place (a file name).

    Raises:
        ConfigError: names every offending key with its value; an unknown key with those that exist there
            and the one that was probably meant.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_explain(model, problem) for problem in error.errors(include_url=False)]
    raise ConfigError(f"{source}: " + "\n  ".join(lines))


def _explain(model: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    path = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return unknown_key(location[-1], allowed_keys(model, location[:-1]), ".".join(location[:-1]))
    if problem["type"] == "missing":
        return f"the key {path} is missing; it is required"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict):  # a rule between several keys: its text names them
        return f"{path}: {message}" if path else message
    return f"{path} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def unknown_key(key: str, allowed: Sequence[str], section: str) -> str:
    """The sentence for a key that does not exist."""
    close = difflib.get_close_matches(key, allowed, n=1, cutoff=0.6)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    place = f"in section {section!r}" if section else "at the top level"
    return f"unknown key {key!r} {place}{hint}; allowed there: {', '.join(sorted(allowed))}"


def allowed_keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Field names of the section that ``path`` leads to."""
    for part in path:
        item = model.model_fields.get(part)
        inner = None if item is None else _section_type(item.annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for choice in typing.get_args(annotation):
            found = _section_type(choice)
            if found is not None:
                return found
    return None
