"""A test part whose classes stand in a table beside it, as in Kaggle's copy of the German traffic signs (GTSRB).

That copy has Train/0 ... Train/42, the test images together in Test/, and Test.csv with the columns ClassId and Path
(Test/00000.png).
"""

import csv
import io
from collections.abc import Sequence
from pathlib import PurePosixPath

from trainables.data.images import DataError
from trainables.data.sources.trees import Tree


def table_of(tree: Tree, top: str) -> str | None:
    """The table of the test part ``top``: a file beside it with its name and ``.csv``, in any case."""
    return next((file for file in tree.files("") if file.casefold() == f"{top}.csv".casefold()), None)


def labelled(name: str, tree: Tree, table: str, top: str, classes: Sequence[str]) -> list[tuple[str, int]]:
    """(path, label) of every row of ``table``, in its order; ``top`` is the folder of the images.

    Raises:
        DataError: the table cannot be read, lacks a column or names a class that has no training images.
    """
    where = f"{tree.label}/{table}"
    labels = {name_of_class: label for label, name_of_class in enumerate(classes)}
    # Folders 00000 ... 00042 are numbered in the table without zeros.
    numbers = {int(name_of_class): label for name_of_class, label in labels.items() if name_of_class.isdecimal()}
    found = []
    try:
        text = tree.read(table).decode("utf-8-sig")
        for row in csv.DictReader(io.StringIO(text), skipinitialspace=True):
            named, path = row["ClassId"], row["Path"]
            label = labels.get(named)
            if label is None and named.isdecimal():
                label = numbers.get(int(named))
            if label is None:
                raise DataError(f"{name}: {where} has the class {named!r}, which is not among the training classes")
            parts = PurePosixPath(path.replace("\\", "/")).parts
            # Paths begin with the name of the folder, perhaps in other letters than it has here.
            inner = parts[1:] if len(parts) > 1 and parts[0].casefold() == top.casefold() else parts
            found.append(("/".join((top, *inner)), label))
    except (KeyError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: {where} needs the columns ClassId and Path, separated by commas") from error
    return found
