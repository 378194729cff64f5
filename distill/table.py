"""distillation_labels.csv: `id`, `label`, ten logits and `seen_folds` for each image, and strict checks on reading.

seen_folds, such as `0 1 2 3`, are the folds whose labels the teachers have learned from. A student that holds out
another fold has a real validation; one that holds out one of these does not. Without that column, all count as seen.
"""

import zlib
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from train import UserError, one_line
from train.data import cifar10
from train.data.unlabelled import refuse
from train.engine import checkpoint
from train.engine.command import count_of

COLUMNS = ["id", "label", *cifar10.CLASSES]
SEEN = "seen_folds"
ALL_FOLDS = tuple(range(cifar10.FOLDS))
MOST = 1_000_000  # rows: a small .csv.gz may unpack to any number


def write_labels(path: str | Path, ids: Sequence[str], labels: Sequence[int], logits: torch.Tensor,
                 seen_folds: Collection[int] = ALL_FOLDS) -> None:
    """Write the CSV: label is empty for an image that has none (-1). Nine digits are float32 to the last bit."""
    table = pd.DataFrame(np.asarray(logits, dtype=np.float32), columns=cifar10.CLASSES)
    table.insert(0, "label", pd.array(np.asarray(labels), dtype="Int64"))
    table.loc[table["label"] < 0, "label"] = pd.NA
    table.insert(0, "id", ids)
    table[SEEN] = " ".join(map(str, sorted(seen_folds)))
    checkpoint.write_text(path, table.to_csv(index=False, float_format="%.9g"))


def read_table(path: str | Path) -> pd.DataFrame:
    """The CSV (or .csv.gz) with the columns of `write_labels`; UserError for another file."""
    try:
        table = pd.read_csv(path, dtype={"id": str, SEEN: str}, skip_blank_lines=False,
                            compression="gzip" if Path(path).suffix == ".gz" else None, nrows=MOST + 1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: `make labels` writes it") from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a table of labels: {one_line(error)}") from None
    if len(table) > MOST:
        raise UserError(f"{path} has more than {MOST:,} rows")
    if list(table) not in (COLUMNS, [*COLUMNS, SEEN]):
        raise UserError(f"{path}: the columns should be {','.join(COLUMNS)},{SEEN} and are {','.join(table)}")
    blank = table["id"].isna()
    if blank.any():
        raise UserError(f"{path}: no id in {count_of(int(blank.sum()), 'row')}, the first in line {blank.argmax() + 2}"
                        f": delete blank rows, which spreadsheets add at the end")
    return table


def seen_folds(path: str | Path) -> tuple[int, ...]:
    """The folds that the teachers of a CSV have seen; all if the column is missing. UserError for other values."""
    table = read_table(path)
    if SEEN not in table or table[SEEN].isna().all():  # a spreadsheet may have emptied the column
        return ALL_FOLDS
    folds = table[SEEN].fillna("").unique()
    if len(folds) != 1 or not set(folds[0].split()) <= set(map(str, ALL_FOLDS)):
        raise UserError(f"{path}: {SEEN} should be the same in all rows, such as `0 1 2 3`")
    return tuple(sorted(map(int, folds[0].split())))


def read_labels(path: str | Path, dataset: cifar10.Dataset, known: Collection[str] | None = None) -> torch.Tensor:
    """Teacher logits float32 (N, 10) for the images of a Dataset, joined by id from the CSV at `path`.

    known: the ids that may be in the file, by default those of the Dataset. Raises UserError for rows that are
    missing, repeated or of other images, and for what `check_rows` refuses.
    """
    table = read_table(path)
    ids, strange = table["id"], ~table["id"].isin(dataset.ids if known is None else known)
    refuse(path, ids[ids.duplicated()], "ids occur more than once")
    refuse(path, ids[strange & table["label"].isna()], "rows are of images without labels",
           ": it was made with --images, so name the same file by --images here")
    refuse(path, ids[strange], "rows are of no training image")
    refuse(path, dataset.ids[~pd.Index(dataset.ids).isin(ids)], f"of {len(dataset):,} training images have no row")
    rows = table.set_index("id").reindex(dataset.ids)
    check_rows(path, rows, dataset.labels.numpy())
    return torch.from_numpy(rows[list(cifar10.CLASSES)].to_numpy(np.float32))


def check_rows(path: str | Path, rows: pd.DataFrame, labels: np.ndarray) -> None:
    """UserError unless the rows, in the order of `labels` (N,) with -1 for none, are plausible teacher logits.

    Refuses values that are not finite, hard labels, probabilities, wrong labels, and predictions no better than chance.
    """
    try:
        logits = rows[list(cifar10.CLASSES)].to_numpy(np.float64)
        stated = pd.to_numeric(rows["label"]).fillna(-1).to_numpy(np.float64)  # 3.7 is no label
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: a logit or label is not a number: {error}") from None
    finite = (np.abs(logits) <= np.finfo(np.float32).max).all(1)
    refuse(path, rows.index[~finite], "rows hold a logit that is not finite")
    refuse(path, rows.index[stated != labels], "rows state another label than the image has")
    if (logits == np.round(logits)).all():
        raise UserError(f"{path}: all logits are whole numbers: these look like hard labels, not a teacher's logits")
    # Rounded to one digit, probabilities add up to anything from 0.7 to 1.3; in percent, to nearly the same.
    sums = logits.sum(1)
    if logits.min() >= 0 and (logits.max() < 1.01 or np.ptp(sums) <= 0.02 * sums.mean()):
        raise UserError(f"{path}: no value is negative, and the rows add up to about {sums.mean():.4g}: these look "
                        f"like probabilities, not logits; take their logarithms")
    labelled = labels >= 0
    right, count = (logits.argmax(1) == labels)[labelled].sum(), labelled.sum()
    # Three standard deviations of guessing among ten classes.
    if count and right <= count / 10 + 3 * np.sqrt(count * 0.09):
        raise UserError(f"{path}: the largest logit is the label for {right:,} of {count:,} images, no better than "
                        f"chance")
