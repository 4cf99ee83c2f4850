"""Working out what a file is: by its name first, by the site's inspectors else; whoever cannot be sure says why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workers import paths
from workers.products.identify import Identity, Known, Names
from workers.products.inspectors import Inspectors, Spec
from workers.products.plan_store import Mission
from workers.products.store import Product


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a file cannot be taken in: `reason` is a word for filters, `message` a sentence for people."""

    reason: str
    message: str
    candidates: tuple[str, ...] = ()
    suggestion: str | None = None


class Identifier:
    """A mission's names and inspectors; keeps the inspectors' process between files. One thread at a time."""

    def __init__(self, mission: Mission, products: Sequence[Product], *, inspector_seconds: float) -> None:
        self.products = {product.id: product for product in products}
        self._names = Names(
            Known(one.id, one.name, one.format, one.covers, one.inspector is not None)  # type: ignore[arg-type]
            for one in products
        )
        folder = paths.to_bytes(mission.inspectors)
        specs = [
            Spec(
                one.id, one.name, one.level, one.format,
                Path(os.fsdecode(folder), one.inspector["folder"], one.inspector["file"]),
                one.inspector["arguments"], mission.name,
            )
            for one in products
            if one.inspector is not None and one.inspector.get("is_active", True)
        ]  # fmt: skip
        self._inspectors = Inspectors(specs, timeout_seconds=inspector_seconds) if specs else None

    def identify(self, path: bytes, name: str) -> Identity | Refusal:
        """What a file is, of all products of the mission."""
        found = self._names.candidates(name)
        problems: list[str] = []
        if not found and self._inspectors is not None:
            findings = self._inspectors.ask(path)
            found = [one.identity for one in findings if one.identity is not None]
            problems = [f"{one.product}: {one.problem}" for one in findings if one.problem is not None]
        if len(found) == 1:
            return found[0]
        if found:
            names = tuple(one.product for one in found)
            return Refusal(
                "ambiguous", f"{name} may be of {' or '.join(names)}; make their formats or inspectors differ, then"
                " `headrace products quarantine retry`", names,
            )  # fmt: skip
        if problems:
            return Refusal("inspector", f"no product takes {name}, and inspectors failed: " + "; ".join(problems))
        suggestion = self._names.suggest(name)
        hint = f"; {suggestion}" if suggestion else ""
        return Refusal("no_product", f"no product takes a file named {name}{hint}", (), suggestion)

    def as_product(self, path: bytes, name: str, product: int) -> Identity | Refusal:
        """What a file is that has to be of one product."""
        found = [one for one in self._names.candidates(name) if one.product_id == product]
        problems: list[str] = []
        if not found and self._inspectors is not None and self.products[product].inspector is not None:
            findings = self._inspectors.ask(path, only=(product,))
            found = [one.identity for one in findings if one.identity is not None]
            problems = [str(one.problem) for one in findings if one.problem is not None]
        if found:
            return found[0]
        why = f": {'; '.join(problems)}" if problems else ""
        return Refusal("not_the_product", f"{name} is no file of {self.products[product].name}{why}")

    def close(self) -> None:
        """End the inspectors' process."""
        if self._inspectors is not None:
            self._inspectors.close()


_kept: dict[tuple[int, int], tuple[object, Identifier]] = {}


def identifier(mission: Mission, products: Sequence[Product], *, inspector_seconds: float) -> Identifier:
    """The identifier of a mission, kept while its definition stays the same."""
    key = (os.getpid(), mission.id)
    fingerprint = (mission, tuple(repr(product) for product in products))
    kept = _kept.get(key)
    if kept is not None and kept[0] == fingerprint:
        return kept[1]
    if kept is not None:
        kept[1].close()
    made = Identifier(mission, products, inspector_seconds=inspector_seconds)
    _kept[key] = (fingerprint, made)
    return made


def forget() -> None:
    """Close what is kept (a test's end)."""
    for _, one in _kept.values():
        one.close()
    _kept.clear()


def incomplete(path: bytes, product: Product) -> Refusal | None:
    """Why a settled file is not a whole one of its product; None if it is."""
    size = os.stat(path).st_size
    if size < product.min_bytes:
        return Refusal(
            "truncated", f"{size} bytes, where {product.name} has at least {product.min_bytes}; deliver it again whole",
            (product.name,),
        )  # fmt: skip
    if product.trailer:
        with open(path, "rb") as file:
            file.seek(max(0, size - len(product.trailer)))
            if file.read() != product.trailer:
                return Refusal(
                    "truncated", f"it does not end with {product.trailer!r}, as files of {product.name} do; deliver it"
                    " again whole", (product.name,),
                )  # fmt: skip
    return None
