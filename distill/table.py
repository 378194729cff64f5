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
    ids, strange = table["id"], ~table["id"].isin(dataset.ids if only is None else only)
    refuse(path, ids[ids.duplicated()], "ids occur more than once")
    refuse(path, ids[strange & table["label"].isna()], "rows are of images without labels",
           ": it was made with --images, so name the same file by --images here")
    if only is not None:
        refuse(path, ids[strange], "rows are of no training image")
    refuse(path, dataset.ids[~pd.Index(dataset.ids).isin(ids)], f"of {len(dataset):,} training images have no row")
    rows = table.set_index("id").reindex(dataset.ids)
    check_rows(path, rows, dataset.labels.numpy())
    return torch.from_numpy(rows[list(data.CLASSES)].to_numpy(np.float32))


def check_rows(path, rows, labels):
    """UserError unless the rows, in the order of `labels` (N,) with -1 for none, are plausible teacher logits."""
    try:
        logits = rows[list(data.CLASSES)].to_numpy(np.float64)
        stated = pd.to_numeric(rows["label"]).fillna(-1).to_numpy(np.float64)  # 3.7 is no label
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: a logit or label is not a number: {error}")
    finite = (np.abs(logits) <= np.finfo(np.float32).max).all(1)
    refuse(path, rows.index[~finite], "rows hold a logit that is not finite")
    refuse(path, rows.index[stated != labels], "rows state another label than the image has")
    if (logits == np.round(logits)).all():
        raise UserError(f"{path}: all logits are whole numbers: these look like hard labels, not a teacher's answers")
    known = labels >= 0
    right, count = (logits.argmax(1) == labels)[known].sum(), known.sum()
    # Three deviations of guessing among ten classes.
    if count and right <= count / 10 + 3 * np.sqrt(count * 0.09):
        raise UserError(
            f"{path}: the largest logit is the label for {right:,} of {count:,} images, no better than chance"
        )


def refuse(where, ids, what, advice=""):
    """UserError that tells how many `ids` are wrong, and the first, when there are any."""
    if len(ids):
        raise UserError(f"{where}: {len(ids):,} {what}, the first is {list(ids)[0]}{advice}")
