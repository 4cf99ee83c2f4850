"""`headrace products`: derived data built and kept up to date, with versions and provenance."""

from __future__ import annotations

import click

from producers.cli.products_approve import approve
from producers.cli.products_ask import coverage, graph, provenance, show
from producers.cli.products_build import build, ingest, watch
from producers.cli.products_import import import_
from producers.cli.products_keep import clean, clear_dependencies, forget, fsck, latest
from producers.cli.products_load import load
from producers.cli.products_plan import explain, plan
from producers.cli.products_quarantine import quarantine
from producers.cli.products_releases import releases
from producers.cli.products_requests import backfill, reprocess, requests, retry
from producers.cli.products_status import builds, status


@click.group()
def products() -> None:
    """What a file is, and every product derived from it: built, versioned, explained, and never forgotten."""


for _command in (
    load, show, import_, ingest, quarantine, plan, build, explain, retry, approve, reprocess, backfill, requests,
    status, builds, watch, provenance, coverage, graph, fsck, releases, clean, forget, clear_dependencies, latest,
):  # fmt: skip
    products.add_command(_command)
