"""The command line of a build: dbprocessing's own unless the code's words say where inputs and output go."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workers import paths
from workers.products.templates import TemplateError

_FIELD = re.compile(r"\{(\w+)(?::([^{}]+))?\}")
_PATH_FIELDS = ("INPUT", "INPUTS", "OUTPUT")


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input as the command line has it; `path` is its path on disk."""

    id: int
    product: str
    path: bytes


def command(
    executable: bytes, words: Sequence[str], *, values: Mapping[str, str], inputs: Sequence[InputFile],
    output: bytes | None, expand: bool = False,
) -> list[bytes]:  # fmt: skip
    """`executable words... inputs... output`, with the fields in the words filled.

    A word `{INPUTS}` stands for all inputs, `{INPUTS:product}` for those of one product, `{OUTPUT}` for the output;
    what they say is not appended again. With `expand`, ~ and $VARIABLES are, too, as dbprocessing does. Raises
    TemplateError for a field that nobody knows.
    """
    made: list[bytes] = [executable]
    said: set[str] = set()
    for word in words:
        alone = _FIELD.fullmatch(word)
        if alone and alone.group(1) in ("INPUTS", "INPUT"):
            said.add("INPUTS")
            made += [one.path for one in inputs if alone.group(2) in (None, one.product)]
            continue
        made.append(_filled(word, values, inputs, output, said, expand=expand))
    if "INPUTS" not in said:
        made += [one.path for one in inputs]
    if output is not None and "OUTPUT" not in said:
        made.append(output)
    return made


def _filled(
    word: str, values: Mapping[str, str], inputs: Sequence[InputFile], output: bytes | None, said: set[str], *,
    expand: bool,
) -> bytes:  # fmt: skip
    def fill(match: re.Match[str]) -> str:
        name, product = match.group(1), match.group(2)
        if name == "OUTPUT" and output is not None:
            said.add("OUTPUT")
            return os.fsdecode(output)
        if name in ("INPUT", "INPUTS"):
            said.add("INPUTS")
            return " ".join(os.fsdecode(one.path) for one in inputs if product in (None, one.product))
        if name not in values or product is not None:
            known = ", ".join(sorted({*values, *_PATH_FIELDS}))
            raise TemplateError(f"argument {word!r}: nothing is called {match.group(0)}; known: {known}")
        return os.fsdecode(paths.to_bytes(values[name]))

    text = _FIELD.sub(fill, word.replace("{{", "\0").replace("}}", "\1")).replace("\0", "{").replace("\1", "}")
    if expand:
        text = os.path.expanduser(os.path.expandvars(text))
    return os.fsencode(text)
