"""``gtsrb``: German traffic signs, the final benchmark (Stallkamp et al. 2012)."""

import csv
import io
import logging
from functools import partial
from pathlib import Path

from trainables.data.archives import Archive
from trainables.data.images import DataError
from trainables.data.sources.base import Raw, Source, register
from trainables.data.sources.decoding import decoded
from trainables.data.sources.torchvision_sets import fetched
from trainables.data.sources.trees import FolderTree, images_below

logger = logging.getLogger(__name__)

CLASSES = tuple(f"{number:05d}" for number in range(43))  # as the folders are named
SERVER = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
TRAINING = ("GTSRB_Final_Training_Images.zip", "f33fd80ac59bff73c82d25ab499e03a3")
# The two that torchvision fetches, by name and checksum inside of a function of its own.
TEST = (
    ("GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185"),
    ("GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
)


def _read(size: int, root: Path, download: bool) -> Raw:
    """The 39,209 + 12,630 images of the final benchmark, 15-250 pixels, stretched to squares (not cropped).

    torchvision's own training part is the smaller set of the online competition (GTSRB-Training_fixed, 26,640 images).
    The papers use the final one, so this fetches that; a folder filled by torchvision is read, with a warning.
    """
    base = root / "gtsrb"
    if download:
        fetched("gtsrb", root, True, "the archives of the final benchmark", partial(_download, root))
    tree = FolderTree(base)
    train_top, test_top, answers = "GTSRB/Final_Training/Images", "GTSRB/Final_Test/Images", "GT-final_test.csv"
    if not tree.has(train_top) and tree.has("GTSRB/Training"):
        train_top = "GTSRB/Training"
        logger.warning(
            "gtsrb: %s holds the competition's training part (26,640 images), not the final one (39,209) that papers "
            "use; add --download to fetch it",
            base / train_top,
        )
    missing = [item for item in (train_top, test_top, answers) if not tree.has(item)]
    if missing:
        raise DataError(f"gtsrb: {missing[0]} is missing in {base}; add --download, or put the unpacked archives there")

    train = [
        (f"{train_top}/{name}/{file}", label)
        for label, name in enumerate(CLASSES)
        if tree.has(f"{train_top}/{name}")
        for file in images_below(tree, f"{train_top}/{name}")[0]
    ]
    rows = csv.DictReader(io.StringIO(tree.read(answers).decode("utf-8-sig")), delimiter=";", skipinitialspace=True)
    try:
        test = [(f"{test_top}/{row['Filename']}", int(row["ClassId"])) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"gtsrb: {base / answers} needs the columns Filename and ClassId ({error!r})") from error
    if absent := sorted(set(range(len(CLASSES))) - {label for _, label in train}):
        raise DataError(f"gtsrb: class folder {CLASSES[absent[0]]} in {base / train_top} is missing or empty")
    return decoded("gtsrb", "gtsrb", size, root, tree, train, test, CLASSES, crop=False)


def _download(root: Path) -> None:
    from torchvision import datasets

    datasets.GTSRB(root, split="test", download=True)
    base = root / "gtsrb"
    if not (base / "GTSRB/Final_Training/Images").is_dir():
        archive, checksum = TRAINING
        datasets.utils.download_and_extract_archive(SERVER + archive, download_root=str(base), md5=checksum)


def _archives() -> tuple[Archive, ...]:
    return tuple(Archive(SERVER + name, f"gtsrb/{name}", md5) for name, md5 in (TRAINING, *TEST))


GTSRB = register(
    "gtsrb",
    Source(
        description="GTSRB: 39,209 + 12,630 German traffic signs, resized to 32 px, 43 classes",
        image_size=32,
        num_classes=43,
        flip=False,
        # Identity, as in BackdoorBench.
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        read=_read,
        sizes=(39_209, 12_630),
        archives=_archives,
        files=("gtsrb/GTSRB/*Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv"),
    ),
)
