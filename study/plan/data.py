"""The images of a study: one data set, or, of a sweep, as many as its combinations have."""

from __future__ import annotations

from collections.abc import Mapping

from trainables.data.images import Dataset
from trainables.data.load import DataSource

# One data set that all cells are on, or each by where it comes from.
Data = Dataset | Mapping[DataSource, Dataset]


def data_of(data: Data, source: DataSource) -> Dataset:
    """The data set of a cell that takes its images from ``source``."""
    return data if isinstance(data, Dataset) else data[source]


def one_of(data: Data) -> Dataset:
    """The only one, or the first."""
    return data if isinstance(data, Dataset) else next(iter(data.values()))


def all_of(data: Data) -> list[Dataset]:
    """Each once."""
    return [data] if isinstance(data, Dataset) else list(data.values())
