"""distillation_labels.csv: written and read to the last bit, joined by id, and refused when it is wrong."""

import numpy as np
import pandas as pd
import pytest
import torch

import toy
from distill.table import COLUMNS, read_labels, write_labels
from train.engine import data
from train.engine.command import UserError


def dataset_of(count=40, unlabelled=0):
    """A Dataset of toy images, of which the last so many have no label."""
    images, labels = (array[:count] for array in toy.arrays("train"))
    return data.as_dataset(images, np.where(np.arange(count) < count - unlabelled, labels, -1), "toy")


def good(dataset):
    """The logits of teachers that know their trade."""
    noise = torch.randn(len(dataset), 10, generator=torch.Generator().manual_seed(1))
    return noise + 5 * data.one_hot(dataset.labels)


@pytest.fixture
def written(tmp_path):
    """(dataset, logits, path of their CSV)."""
    dataset = dataset_of()
    write_labels(tmp_path / "labels.csv", dataset.ids, dataset.labels.numpy(), good(dataset))
    return dataset, good(dataset), tmp_path / "labels.csv"


def edit(path, change):
    change(pd.read_csv(path, dtype={"id": str})).to_csv(path, index=False, float_format="%.9g")


def test_header_and_float32_round_trip(written):
    dataset, logits, path = written
    assert path.read_text().splitlines()[0] == "id,label,airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
    assert torch.equal(read_labels(path, dataset), logits)
    extreme = torch.tensor([1 / 3, 1e-38, 3.4e38, -0.1, 16777217.0, 2**-20, np.pi, 0.1, 1e10, 7.5]).expand(40, 10)
    write_labels(path, dataset.ids, dataset.labels.numpy(), extreme.clone())
    assert np.array_equal(pd.read_csv(path)[list(data.CLASSES)].to_numpy(np.float32), extreme.numpy())


def test_shuffled_rows_give_the_same_logits(written):
    dataset, logits, path = written
    edit(path, lambda table: table.sample(frac=1, random_state=0))
    assert torch.equal(read_labels(path, dataset), logits)


def test_rows_of_other_images_are_allowed_unless_named(written):
    dataset, logits, path = written
    assert torch.equal(read_labels(path, dataset.select(slice(30))), logits[:30])
    with pytest.raises(UserError, match="10 rows are of no training image"):
        read_labels(path, dataset.select(slice(30)), only=dataset.ids[:30])


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
    (with_cell("cat", "inf"), "1 rows hold a logit that is not finite"),
    (with_cell("cat", "1e300"), "1 rows hold a logit that is not finite"),
    (with_cell("cat", "meow"), "not a number"),
    (lambda table: table.assign(label=(table["label"] + (table.index == 3)) % 10), "1 rows state another label"),
    (with_cell("label", ""), "1 rows state another label"),
    (lambda table: table.assign(label=table["label"] + 0.5), "40 rows state another label"),
    (lambda table: table.assign(**{name: (table["label"] == k).astype(int) for k, name in enumerate(data.CLASSES)}),
     "whole numbers"),
    (lambda table: table[COLUMNS[:2] + COLUMNS[:1:-1]], "columns should be"),
    (lambda table: table.drop(columns="ship"), "columns should be"),
    (lambda table: table.assign(**dict(zip(data.CLASSES, -table[list(data.CLASSES)].to_numpy().T))),
     "no better than chance"),
])
def test_a_wrong_file_is_refused_by_name(written, change, message):
    dataset, _, path = written
    edit(path, change)
    with pytest.raises(UserError, match=message) as caught:
        read_labels(path, dataset)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe binary", b'id\n"unclosed'])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    with pytest.raises(UserError, match="does not exist"):
        read_labels(tmp_path / "labels.csv", dataset_of())
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(UserError):
        read_labels(tmp_path / "labels.csv", dataset_of())


def test_images_without_a_label_have_an_empty_cell(tmp_path):
    dataset, path = dataset_of(12, unlabelled=4), tmp_path / "labels.csv"
    write_labels(path, dataset.ids, dataset.labels.numpy(), good(dataset))
    assert pd.read_csv(path)["label"].isna().sum() == 4
    assert torch.equal(read_labels(path, dataset, only=dataset.ids), good(dataset))


@pytest.mark.parametrize("named", [True, False])
def test_rows_without_a_label_that_the_run_does_not_have_ask_for_images(tmp_path, named):
    """Whether the ids that may stand in the file are named or not; a row of a stranger is another mistake."""
    dataset, path = dataset_of(40, unlabelled=4), tmp_path / "labels.csv"
    write_labels(path, dataset.ids, dataset.labels.numpy(), good(dataset))
    known = dataset.select(dataset.labels.numpy() >= 0)
    with pytest.raises(UserError, match="4 rows are of images without labels, .* --images") as caught:
        read_labels(path, known, only=known.ids if named else None)
    assert str(path) in str(caught.value) and "no training image" not in str(caught.value)
