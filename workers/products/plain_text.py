"""Names as they are shown in pages and pictures: on one line, without characters that XML forbids."""

from __future__ import annotations


def plain(text: str) -> str:
    """A control character becomes its picture (a newline ␊), anything else that cannot be printed �."""
    return "".join(
        chr(0x2400 + ord(c)) if ord(c) < 32 else "�" if not c.isprintable() and c != " " else c for c in text
    )


def shortened(text: str, longest: int) -> str:
    """The same, cut to so many characters."""
    text = plain(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
