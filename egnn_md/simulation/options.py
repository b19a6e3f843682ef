"""Requests whose fields are the options of a command, and errors that name the option."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from egnn_md.errors import ConfigError


class OptionsModel(BaseModel):
    """Base of what a command is asked to do. Field ``log_interval`` is the option ``--log-interval``."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    noun: ClassVar[str]
    positional: ClassVar[str]  #: the field that is the command's argument
    changeable: ClassVar[frozenset[str]]  #: fields that a resumed one may change; the rest belongs to the one started

    @classmethod
    def option(cls, name: str) -> str:
        """Field ``log_interval`` as the user writes it: ``--log-interval``."""
        return name.upper() if name == cls.positional else "--" + name.replace("_", "-")

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate ``values``. Raises ConfigError with a line for every option that is wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError("\n".join(cls._explain(item) for item in error.errors())) from error

    @classmethod
    def _explain(cls, item: Any) -> str:
        message = str(item["msg"]).removeprefix("Value error, ")
        if not item["loc"]:
            return message
        name = cls.option(str(item["loc"][0]))
        if item["type"] == "missing":
            return f"{name} is missing"
        if item["type"] == "extra_forbidden":
            return f"{name} is no option of a {cls.noun} (value {item['input']!r})"
        return f"{name} {item['input']}: {message[0].lower()}{message[1:]}"

    def changed(self, values: dict[str, Any]) -> Self:
        """Copy for a resumed one with explicitly given ``values``.

        Raises:
            ConfigError: one of them differs from what was started and cannot change in the middle of it.
        """
        merged = self.parse({**self.model_dump(), **values})
        for name in values:
            old, new = getattr(self, name), getattr(merged, name)
            if name not in self.changeable and old != new:
                raise ConfigError(
                    f"{self.option(name)} {new} differs from this {self.noun}'s {old}; a resumed {self.noun} keeps its "
                    f"settings: leave it out, or {self.remedy()}"
                )
        return merged

    def remedy(self) -> str:
        """How else to get what a resumed one cannot change."""
        return "start a new one in another directory"
