"""Families of Prometheus metrics, made out of rows of label values and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

Rows = Iterable[tuple[Sequence[str], float]]


def gauge(name: str, sentence: str, labels: Sequence[str], rows: Rows) -> GaugeMetricFamily:
    """A family of numbers that go up and down; `sentence` is its help text."""
    family = GaugeMetricFamily(name, sentence, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def counter(name: str, sentence: str, labels: Sequence[str], rows: Rows) -> CounterMetricFamily:
    """A family of numbers that only grow; Prometheus sees it as `<name>_total`."""
    family = CounterMetricFamily(name, sentence, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family
