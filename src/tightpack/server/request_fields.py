"""Field types of request bodies whose rules JSON Schema alone cannot say, with errors a person can act on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_PROMPTS = 2048
MAX_STOP_STRINGS = 64
_INT32_MAX = 2**31 - 1

TokenId = Annotated[int, Field(ge=0, le=_INT32_MAX)]
Count = Annotated[int, Field(ge=0, le=_INT32_MAX)]


def _is_token_ids(value: Any) -> bool:
    # type(), since True is an int.
    return isinstance(value, list) and all(type(token) is int for token in value)


def _parse_prompt(value: Any) -> list[str] | list[list[int]]:
    """One or many prompts, as text or as token ids, to a list of one kind."""
    prompts: Any = [value] if isinstance(value, str) or (_is_token_ids(value) and value) else value
    if isinstance(prompts, list) and prompts:
        if len(prompts) > MAX_PROMPTS:
            raise PydanticCustomError("invalid_value", "at most 2048 prompts a request")
        if all(isinstance(prompt, str) for prompt in prompts) or all(map(_is_token_ids, prompts)):
            return prompts
    raise PydanticCustomError(
        "invalid_type",
        "must be a string, a list of strings, a list of token ids or a list of such lists, none empty",
    )


_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}

Prompts = Annotated[
    Any,
    BeforeValidator(_parse_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_PROMPTS},
                _IDS_SCHEMA,
                {"type": "array", "items": _IDS_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPTS},
            ],
        }
    ),
]


def _parse_stop(value: Any) -> list[str]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("invalid_type", "must be a string or a list of strings")
    if not all(stops):
        raise PydanticCustomError("invalid_value", "must not hold an empty string")
    if len(stops) > MAX_STOP_STRINGS:
        raise PydanticCustomError("invalid_value", "at most 64 stop strings")
    return stops


StopStrings = Annotated[
    list[str],
    BeforeValidator(_parse_stop),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOP_STRINGS},
                {"type": "null"},
            ],
        }
    ),
]


def _parse_logit_bias(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PydanticCustomError("invalid_type", "must be an object from token id to bias")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise PydanticCustomError("invalid_value", "key {key} is not a token id", {"key": repr(key[:40])})
        if type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise PydanticCustomError(
                "invalid_value", "the bias of token {key} must be a number in [-100, 100]", {"key": key}
            )
        biases[int(key)] = float(bias)
    return biases


LogitBias = Annotated[
    dict[int, float],
    BeforeValidator(_parse_logit_bias),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "propertyNames": {"pattern": "^[0-9]{1,10}$"},
                    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                },
                {"type": "null"},
            ]
        }
    ),
]


def _flatten_content(value: Any) -> str:
    """Content as one string; text parts are joined by line feeds."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("invalid_type", "must be a string or a non-empty list of text parts")
    texts: list[str] = []
    for position, part in enumerate(value):
        where = {"position": position}
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise PydanticCustomError("invalid_type", "part {position} must be an object with a type", where)
        if part["type"] != "text":
            raise PydanticCustomError(
                "unsupported_value",
                "part {position} is of type {kind}, which is not supported; only 'text' is",
                where | {"kind": repr(part["type"][:40])},
            )
        unknown = sorted(part.keys() - {"type", "text"})
        if unknown:
            raise PydanticCustomError(
                "unknown_parameter",
                "part {position} has an unknown field {name}; a text part has type and text",
                where | {"name": repr(unknown[0][:40])},
            )
        if not isinstance(part.get("text"), str):
            raise PydanticCustomError("invalid_type", "part {position} needs a string as its text", where)
        texts.append(part["text"])
    return "\n".join(texts)


Content = Annotated[
    str,
    BeforeValidator(_flatten_content),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                        "additionalProperties": False,
                    },
                },
            ],
        }
    ),
]


def unsupported(*neutral: Any) -> Any:
    """A parameter of OpenAI's API that is refused, but for null and the values that mean "without it"."""

    def refuse(value: Any) -> None:
        # Compared with types, since False == 0.
        if value is not None and not any(type(value) is type(one) and value == one for one in neutral):
            allowed = " or ".join(["null", *(repr(one) for one in neutral)])
            raise PydanticCustomError(
                "unsupported_parameter",
                "is not supported; leave it out ({allowed} is accepted)",
                {"allowed": allowed},
            )

    return Annotated[
        Any,
        BeforeValidator(refuse),
        WithJsonSchema({"enum": [None, *neutral]}),
        Field(description="Not supported; only the values listed are accepted."),
    ]
