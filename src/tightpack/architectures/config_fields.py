"""Reading a Hugging Face config.json: what is missing or of the wrong kind is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
    """A model configuration that cannot be honoured; the message names the field and what would be right."""


class Fields:
    """Typed access to a configuration. A field that is absent or null takes `default`; with no default it is
    required."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def integer(self, name: str, default: int | None = None, *, maximum: int | None = None) -> int:
        """A positive whole number. `maximum` guards sizes that are allocated before any tensor is looked
        at."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
            raise ConfigError(f"config field {name!r} must be a positive whole number, not {value!r}")
        if maximum is not None and value > maximum:
            raise ConfigError(f"config field {name!r} is {value:,}, beyond any model ({maximum:,})")
        return int(value)

    def optional_integer(self, name: str) -> int | None:
        """A positive whole number, or None where the field is absent or null."""
        return None if self._config.get(name) is None else self.integer(name)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite positive number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"config field {name!r} must be a positive number, not {value!r}")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A finite positive number, or None where the field is absent or null."""
        return None if self._config.get(name) is None else self.number(name)

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"config field {name!r} must be true or false, not {value!r}")
        return value

    def choice(self, name: str, valid: Mapping[str, Any], default: str | None = None) -> Any:
        """The entry of `valid` that the field names."""
        value = self._value(name, default)
        if not isinstance(value, str) or value not in valid:
            raise ConfigError(f"config field {name!r} is {value!r}; supported: {', '.join(sorted(valid))}")
        return valid[value]

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id, a list of ids, or nothing."""
        value = self._config.get(name)
        ids = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ConfigError(f"config field {name!r} must be a token id or a list of them, not {value!r}")
        return ids

    def refuse(self, name: str, *harmless: Any) -> None:
        """Raise unless the field is absent, null or one of `harmless`."""
        value = self._config.get(name)
        if value is not None and value not in harmless:
            wanted = " or ".join(repr(h) for h in harmless) or "nothing"
            raise ConfigError(f"config field {name!r} is {value!r}; supported: {wanted}")

    def _value(self, name: str, default: Any) -> Any:
        value = self._config.get(name)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"config field {name!r} is missing")
        return value
