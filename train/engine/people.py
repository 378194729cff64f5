"""What people say of the test images: their votes, corrected labels and near twins, from the CSV of train/humans.py.

    id               of the image, as in `data`
    official_index   its place in the official archive
    label            the official label, 0..9
    corrected        the label by majority of a study's five workers, where they were asked; -1: they had none
    duplicate        how near its nearest twin among the training images is: 0 exact, 1 the same shot, 2 very similar,
                     which only a second look tells apart; empty: it has none
    h0..h9           how many of some fifty people called it each class
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from train.engine import data, predict
from train.engine.command import UserError, count_of, one_line

VOTES = [f"h{k}" for k in range(len(data.CLASSES))]
COLUMNS = ["id", "official_index", "label", "corrected", "duplicate", *VOTES]


@dataclass(frozen=True)
class People:
    """Of N images: corrected int64 (N,), -1 for no majority; twin bool (N,); votes float64 (N, 10), rows of sum 1."""

    corrected: torch.Tensor
    twin: torch.Tensor
    votes: torch.Tensor


def read(file, test, limit=None):
    """The People of the test images, a Dataset, in its order; limit: of its first images only.

    A twin of any judgement counts: ciFAIR, whose list it is, replaced them all. UserError, in one line, for a file
    that is another's, or lacks some of the images.
    """
    try:
        table = pd.read_csv(file, dtype={"id": str})
    except (OSError, ValueError) as error:
        raise UserError(f"--humans {file} cannot be read as a CSV ({one_line(error)})")
    if missing := [name for name in COLUMNS if name not in table]:
        raise UserError(f"--humans {file} lacks the columns {', '.join(missing)}: train/humans.py makes it")
    ids = table["id"]
    for wrong, what in [(ids[~ids.isin(test.ids)], "not of a test image"), (ids[ids.duplicated()], "given again"),
                        (test.ids[~pd.Index(test.ids).isin(ids)], "missing")]:
        if len(wrong):
            raise UserError(f"--humans {file}: {count_of(len(wrong), 'id')} {what}, the first is {list(wrong)[0]}")

    table = table.sort_values("id")[COLUMNS[2:]].apply(pd.to_numeric, errors="coerce")
    if (different := table["label"].to_numpy() != test.labels.numpy()).any():
        count = count_of(int(different.sum()), "image")
        raise UserError(f"--humans {file}: not the official label of {count}, the first is {test.ids[different][0]}")
    votes = table[VOTES].to_numpy(np.float64)
    if not (np.isfinite(votes) & (votes >= 0)).all() or not votes.sum(1).all():
        raise UserError(f"--humans {file}: h0 to h9 should be counts of votes, at least one an image")
    if not table["corrected"].isin(range(-1, len(data.CLASSES))).all():
        raise UserError(f"--humans {file}: corrected should be 0 to 9, or -1 for no majority")

    table, votes = table[:limit], torch.tensor(votes[:limit])
    people = People(torch.tensor(table["corrected"].to_numpy(np.int64)),
                    torch.tensor(table["duplicate"].notna().to_numpy()), votes / votes.sum(1, keepdim=True))
    if people.twin.all() or (people.corrected < 0).all():
        raise UserError(f"--humans: of these {len(table):,} images none is left without near twins, or with a majority")
    return people


def figures(logits, labels, people):
    """Answers beside what people say, as plain numbers.

    top1_corrected on the corrected labels, less those without a majority; top1_apart on the official labels of the
    images without a near twin; nll and nll_votes, the cross-entropies in nats against official labels and votes;
    agreement and label_agreement, the people in percent who would give the network's answer and the official label.
    """
    decided, apart = people.corrected >= 0, ~people.twin
    agreement, label_agreement = (100 * people.votes.gather(1, classes[:, None]).mean().item()
                                  for classes in (logits.argmax(1), labels))
    return {
        "top1": predict.accuracy(logits, labels),
        "top1_corrected": predict.accuracy(logits[decided], people.corrected[decided]),
        "undecided": len(labels) - decided.sum().item(),
        "top1_apart": predict.accuracy(logits[apart], labels[apart]), "twins": people.twin.sum().item(),
        "nll": predict.nll(logits, labels), "nll_votes": predict.nll(logits, people.votes),
        "agreement": agreement, "label_agreement": label_agreement,
    }
