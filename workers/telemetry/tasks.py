"""The telemetry room's tasks: a message, one verb."""

from __future__ import annotations

from workers.app import handles
from workers.messages import IngestFile, Message, TakeInventory
from workers.settings import Settings
from workers.telemetry import ingest, inventory


@handles(IngestFile)
def ingest_file(message: IngestFile, settings: Settings) -> list[Message]:
    """Bring one file's new records into the database."""
    return ingest.ingest_file(message, settings)


@handles(TakeInventory)
def take_inventory(message: TakeInventory, settings: Settings) -> list[Message]:
    """Bring a host's inventory up to date, and ask for what is to be read."""
    return inventory.take_inventory(message, settings)
