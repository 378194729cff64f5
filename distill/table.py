"""distillation_labels.csv: `id`, `label` and ten logits for each image, written and read with suspicion."""

import numpy as np
import pandas as pd
import torch

from train.engine import checkpoint, data
from train.engine.command import UserError

COLUMNS = ["id", "label", *data.CLASSES]


def write_labels(path, ids, labels, logits):
    """Write the CSV: `id`, `label` (empty for an image that has none, -1 in `labels`), ten logits.

    Nine digits are float32 to the last bit.
    """
    table = pd.DataFrame(np.asarray(logits, dtype=np.float32), columns=data.CLASSES)
    table.insert(0, "label", pd.array(np.asarray(labels), dtype="Int64"))
    table.loc[table["label"] < 0, "label"] = pd.NA
    table.insert(0, "id", ids)
    checkpoint.write_text(path, table.to_csv(index=False, float_format="%.9g"))


def read_labels(path, dataset, only=None):
    """Teacher logits float32 (N, 10) for the images of a Dataset, joined by id from the CSV at `path`.

    only: the ids that may stand in the file (None: any). Raises UserError for columns other than the design's, rows
    that are missing, doubled, not finite or of another label, rows of images without labels that the Dataset does not
    have, logits that are whole numbers, and answers that agree with the labels no better than chance.
    """
    try:
        table = pd.read_csv(path, dtype={"id": str})
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: `make labels` writes it")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a table of labels: {error}")
    if list(table.columns) != COLUMNS:
        raise UserError(
            f"{path}: the columns should be {','.join(COLUMNS)} and are {','.join(map(str, table.columns))}"
        )
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise UserError(f"{path}: {len(twice):,} ids occur more than once, the first is {twice.iloc[0]}")
    without = table["id"][table["label"].isna() & ~table["id"].isin(dataset.ids if only is None else only)]
    if len(without):
        raise UserError(f"{path}: {len(without):,} rows are of images without labels, the first is {without.iloc[0]}: "
                        f"it was made with --images, so name the same file by --images here")
    if only is not None and not table["id"].isin(only).all():
        strange = table["id"][~table["id"].isin(only)]
        raise UserError(f"{path}: {len(strange):,} rows are of no training image, the first is {strange.iloc[0]}")
    rows = table.set_index("id").reindex(dataset.ids)
    absent = dataset.ids[~np.isin(dataset.ids, table["id"])]
    if len(absent):
        raise UserError(
            f"{path}: {len(absent):,} of {len(dataset):,} training images have no row, the first is {absent[0]}"
        )
    check_rows(path, rows, dataset.labels.numpy())
    return torch.from_numpy(rows[list(data.CLASSES)].to_numpy(np.float32))


def check_rows(path, rows, labels):
    """UserError unless the rows, in the order of `labels` (N,) with -1 for none, are plausible teacher logits."""
    try:
        logits = rows[list(data.CLASSES)].to_numpy(np.float64)
        stated = pd.to_numeric(rows["label"]).fillna(-1).to_numpy(np.int64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: a logit or label is not a number: {error}")
    for wrong, what in [
        (~(np.abs(logits) <= np.finfo(np.float32).max).all(1), "hold a logit that is not finite"),
        (stated != labels, "state another label than the image has"),
    ]:
        if wrong.any():
            raise UserError(f"{path}: {wrong.sum():,} rows {what}, the first is {rows.index[wrong][0]}")
    if (logits == np.round(logits)).all():
        raise UserError(f"{path}: all logits are whole numbers: these look like hard labels, not a teacher's answers")
    known = labels >= 0
    right, count = (logits.argmax(1) == labels)[known].sum(), known.sum()
    # Three deviations of guessing among ten classes.
    if count and right <= count / 10 + 3 * np.sqrt(count * 0.09):
        raise UserError(
            f"{path}: the largest logit is the label for {right:,} of {count:,} images, no better than chance"
        )
