"""Where a file of a product belongs: its folder filled with what is known of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date, datetime

from workers import paths
from workers.products.plan_store import Mission
from workers.products.store import Product
from workers.products.templates import Template, date_fields, key_values
from workers.products.versions import Version
from workers.settings import Settings


def place_of(product: Product, name: str, *, day: date, start_at: datetime, version: Version, keywords: str) -> str:
    """A file's path below the mission's root, in text form. Raises TemplateError for a field that nothing gives."""
    folder = Template(product.folder, of=f"folder of {product.name}").fill(
        values(day=day, start_at=start_at, version=version, keywords=keywords)
    )
    return os.path.normpath(os.path.join(folder, name)) if folder else name


def name_of(product: Product, *, day: date, start_at: datetime, version: Version, keywords: Mapping[str, str]) -> str:
    """The name of an output, in text form. Raises TemplateError for a field that nothing gives."""
    known = {**keywords, **values(day=day, start_at=start_at, version=version, keywords="")}
    return Template(product.format, of=f"product {product.name}").fill(known)


def values(*, day: date, start_at: datetime, version: Version, keywords: str) -> dict[str, str]:
    """What the fields of folders and names may ask for."""
    return {**key_values(keywords), **date_fields(day, start_at), "VERSION": str(version)}


def scratch_root(mission: Mission, settings: Settings) -> bytes:
    """The folder in which builds of a mission have their scratch folders on this host."""
    if settings.products.scratch_dir is not None:
        return os.fsencode(settings.products.scratch_dir)
    return paths.to_bytes(mission.scratch)


def below(root: str, path: bytes) -> str | None:
    """The place of a path that lies below a root, in text form; None if it lies elsewhere."""
    start = os.path.join(os.path.realpath(paths.to_bytes(root)), b"")
    real = os.path.realpath(path)
    return paths.to_text(real[len(start) :]) if real.startswith(start) else None
