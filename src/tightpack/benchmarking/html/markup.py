"""HTML and SVG elements as strings, escaped."""

from __future__ import annotations

from html import escape

Value = str | float | None


def tag(name: str, *children: str, **attributes: Value) -> str:
    """An element. Children are markup already: text goes through `text` first.

    Attributes that are None are left out; class_ and stroke_width become class and stroke-width; numbers are
    rounded to hundredths, which is finer than a screen.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{''.join(children)}</{name}>"


def text(value: object) -> str:
    return escape(str(value))


def number(value: float) -> str:
    """A coordinate: hundredths, and no more digits than needed."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _attribute(value: str | float) -> str:
    return escape(value, quote=True) if isinstance(value, str) else number(value)
