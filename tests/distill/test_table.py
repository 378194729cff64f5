"""distillation_labels.csv: written and read to the last bit, joined by id, and refused when it is wrong."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
import toy

from distill.table import COLUMNS, check_rows, read_labels, read_table, seen_folds, write_labels
from train import ROOT, UserError
from train.data import cifar10

CLASSES = list(cifar10.CLASSES)


def dataset_of(count=40, unlabelled=0):
    """A Dataset of toy images, of which the last so many have no label."""
    images, labels = (array[:count] for array in toy.arrays("train"))
    return cifar10.as_dataset(images, np.where(np.arange(count) < count - unlabelled, labels, -1), "toy")


def good(dataset):
    """The logits of teachers that know their trade."""
    noise = torch.randn(len(dataset), 10, generator=torch.Generator().manual_seed(1))
    return noise + 5 * cifar10.one_hot(dataset.labels)


@pytest.fixture
def written(tmp_path):
    """(dataset, logits, path of their CSV)."""
    dataset = dataset_of()
    write_labels(tmp_path / "labels.csv", dataset.ids, dataset.labels.numpy(), good(dataset), [3, 0])
    return dataset, good(dataset), tmp_path / "labels.csv"


def edit(path, change):
    change(pd.read_csv(path, dtype={"id": str})).to_csv(path, index=False, float_format="%.9g")


def test_header_and_float32_round_trip(written):
    dataset, logits, path = written
    header = "id,label,airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck,seen_folds"
    assert path.read_text().splitlines()[0] == header
    assert torch.equal(read_labels(path, dataset), logits)
    extreme = torch.tensor([1 / 3, 1e-38, 3.4e38, -0.1, 16777217.0, 2**-20, np.pi, 0.1, 1e10, 7.5]).expand(40, 10)
    write_labels(path, dataset.ids, dataset.labels.numpy(), extreme.clone())
    assert np.array_equal(pd.read_csv(path)[CLASSES].to_numpy(np.float32), extreme.numpy())


def test_the_released_labels_are_those_of_cifar10():
    file = ROOT / "weights" / "distillation_labels.csv.gz"
    rows = read_table(file)
    lines = sorted(f"{name} {label}" for name, label in zip(rows["id"], rows["label"], strict=True))
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == cifar10.OFFICIAL["train"]
    check_rows(file, rows, rows["label"].to_numpy())
    assert seen_folds(file) == (0, 1, 2, 3, 4)


def test_a_compressed_file_of_shuffled_rows_gives_the_same_logits(written):
    dataset, logits, path = written
    pd.read_csv(path, dtype=str).sample(frac=1, random_state=0).to_csv(f"{path}.gz", index=False)
    assert torch.equal(read_labels(f"{path}.gz", dataset), logits) and seen_folds(f"{path}.gz") == (0, 3)


def test_rows_of_other_images_are_refused_unless_they_are_known(written):
    dataset, logits, path = written
    assert torch.equal(read_labels(path, dataset.select(slice(30)), known=set(dataset.ids)), logits[:30])
    with pytest.raises(UserError, match="10 rows are of no training image"):
        read_labels(path, dataset.select(slice(30)))


# ---------------------------------------------------------------- the folds that the teachers have seen


@pytest.mark.parametrize("change, folds", [
    (lambda table: table, (0, 3)), (lambda table: table.assign(seen_folds="4 0 1"), (0, 1, 4)),
    (lambda table: table.assign(seen_folds=2), (2,)), (lambda table: table.assign(seen_folds=""), (0, 1, 2, 3, 4)),
    (lambda table: table.drop(columns="seen_folds"), (0, 1, 2, 3, 4)),
])
def test_the_seen_folds_of_a_file(written, change, folds):
    dataset, logits, path = written
    edit(path, change)
    assert seen_folds(path) == folds and torch.equal(read_labels(path, dataset), logits)


@pytest.mark.parametrize("values", ["0 5", "0,3", "none", np.array(["0 3"] * 39 + ["0 1 2 3"])])
def test_seen_folds_that_are_none_or_differ_are_refused(written, values):
    _, _, path = written
    edit(path, lambda table: table.assign(seen_folds=values))
    with pytest.raises(UserError, match="seen_folds should be the same in all rows, such as `0 1 2 3`"):
        seen_folds(path)


# ---------------------------------------------------------------- what is no logit


def test_probabilities_are_no_logits_but_their_logarithms_are(written):
    dataset, logits, path = written
    softened, labels = (logits / 4).softmax(1), dataset.labels.numpy()
    for wrong in (logits.softmax(1), 100 * logits.softmax(1), softened, softened.mul(10).round() / 10,
                  softened.mul(100).round()):
        write_labels(path, dataset.ids, labels, wrong)
        with pytest.raises(UserError, match="probabilities, not logits|whole numbers"):
            read_labels(path, dataset)
    for good in (softened.log(), logits + 30):
        write_labels(path, dataset.ids, labels, good)
        assert torch.equal(read_labels(path, dataset), good)


# ---------------------------------------------------------------- mistakes


def with_cell(column, value):
    def change(table):
        table[column] = table[column].astype(object)
        table.loc[3, column] = value
        return table

    return change


@pytest.mark.parametrize("change, message", [
    (lambda table: table.drop(index=5), "1 of 40 training images have no row"),
    (lambda table: pd.concat([table, table.iloc[:2]]), "2 ids occur more than once"),
    (with_cell("cat", "nan"), "1 rows hold a logit that is not finite"),
    (with_cell("cat", "1e300"), "1 rows hold a logit that is not finite"),
    (with_cell("cat", "meow"), "not a number"),
    (lambda table: table.assign(label=(table["label"] + (table.index == 3)) % 10), "1 rows state another label"),
    (with_cell("label", ""), "1 rows state another label"),
    (lambda table: table.assign(label=table["label"] + 0.5), "40 rows state another label"),
    (lambda table: table.assign(**{name: (table["label"] == k).astype(int) for k, name in enumerate(CLASSES)}),
     "whole numbers"),
    (lambda table: table[COLUMNS[:2] + COLUMNS[:1:-1]], "columns should be"),
    (lambda table: table.assign(**-table[CLASSES]), "no better than chance"),
])
def test_a_wrong_file_is_refused_by_name(written, change, message):
    dataset, _, path = written
    edit(path, change)
    with pytest.raises(UserError, match=message) as caught:
        read_labels(path, dataset)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_logits_have_to_be_better_than_guessing_by_three_standard_deviations():
    """Of 1,000 images guessing gets 100 right, with a standard deviation of sqrt(1,000 x 0.1 x 0.9) = 9.49."""
    labels = np.arange(1000) % 10
    for right, passes in ((128, False), (129, True)):
        answers = (labels + (np.arange(1000) >= right)) % 10
        rows = pd.DataFrame(np.eye(10)[answers] - 0.5, columns=CLASSES).assign(label=labels)
        if passes:
            check_rows("labels.csv", rows, labels)
        else:
            with pytest.raises(UserError, match="for 128 of 1,000 images, no better than chance"):
                check_rows("labels.csv", rows, labels)


def test_a_file_of_more_rows_than_any_is_not_read_to_its_end(written, monkeypatch):
    dataset, logits, path = written
    monkeypatch.setattr("distill.table.MOST", 39)
    with pytest.raises(UserError, match="has more than 39 rows"):
        read_labels(path, dataset)
    monkeypatch.setattr("distill.table.MOST", 40)
    assert torch.equal(read_labels(path, dataset), logits)


@pytest.mark.parametrize("row", ["", "," * 12])
def test_a_blank_row_of_a_spreadsheet_is_called_that(written, row):
    dataset, _, path = written
    path.write_text(f"{path.read_text()}{row}\n")
    with pytest.raises(UserError, match="no id in 1 row, the first in line 42: delete blank rows"):
        read_labels(path, dataset)


@pytest.mark.parametrize("name, content", [
    ("labels.csv", b""), ("labels.csv", b"\x00\xff\xfe binary"), ("labels.csv.gz", b"no gzip"),
    ("labels.csv.gz", bytes.fromhex("1f8b0800000000000003")),
    ("labels.csv.zip", b"PK\3\4 cut off"), ("labels.csv.xz", b"\xfd7zXZ\0 cut off"), ("labels.tar", b"\0" * 100),
])
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content):
    with pytest.raises(UserError, match="does not exist"):
        read_labels(tmp_path / name, dataset_of())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError):
        read_labels(tmp_path / name, dataset_of())


def test_images_without_a_label_have_an_empty_cell_and_ask_for_images_where_they_are_unknown(tmp_path):
    dataset, path = dataset_of(40, unlabelled=4), tmp_path / "labels.csv"
    write_labels(path, dataset.ids, dataset.labels.numpy(), good(dataset))
    assert pd.read_csv(path)["label"].isna().sum() == 4
    assert torch.equal(read_labels(path, dataset), good(dataset))
    labelled = dataset.select(dataset.labels.numpy() >= 0)
    with pytest.raises(UserError, match="4 rows are of images without labels, .* --images"):
        read_labels(path, labelled)
