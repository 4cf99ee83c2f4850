"""Versions x.y.z of files and codes (interface, quality, revision), and which one a rebuilt output gets."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Part = Literal["interface", "quality", "revision"]

_TEXT = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class Version(NamedTuple):
    """interface (from 1): what reads the file must change; quality: better data; revision: a small repair."""

    interface: int
    quality: int
    revision: int

    def __str__(self) -> str:
        return f"{self.interface}.{self.quality}.{self.revision}"

    def bumped(self, part: Part) -> Version:
        """The next version in one part; lower parts begin anew."""
        if part == "interface":
            return Version(self.interface + 1, 0, 0)
        if part == "quality":
            return Version(self.interface, self.quality + 1, 0)
        return Version(self.interface, self.quality, self.revision + 1)

    def differs_in(self, other: Version) -> Part | None:
        """The highest part in which two versions differ."""
        for part, mine, its in zip(("interface", "quality", "revision"), self, other, strict=True):
            if mine != its:
                return part  # type: ignore[return-value]
        return None


def parse(text: str) -> Version:
    """A version out of `x.y.z`. Raises ValueError for anything else, and for interface 0."""
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no version; write it as 1.0.0")
    version = Version(*(int(part) for part in match.groups()))
    if version.interface < 1:
        raise ValueError(f"{text!r}: the interface part of a version counts from 1")
    return version


def bump_of(difference: Part | None) -> Part:
    """What an input or a code that differs in a part makes of an output: no more than a quality bump."""
    return "revision" if difference == "revision" else "quality"


def output_version(highest: Version | None, *, interface: int, bump: Part) -> Version:
    """The version of a new output.

    `highest` is the highest one there is of this product, day and key, `interface` what the code says its outputs
    have. A first output, and the first of a new interface, is X.0.0; everything else is a bump of the highest.
    """
    if highest is None or highest.interface < interface:
        return Version(interface, 0, 0)
    return highest.bumped(bump)
