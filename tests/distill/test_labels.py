"""distillation_labels.csv: written and read to the last bit, joined by id, and refused when it is wrong."""

import numpy as np
import pandas as pd
import pytest
import torch

from distill.labels import COLUMNS, average, read_labels, write_labels
from train import data
from train.recipe import UserError


def toy(count=40):
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return data.as_dataset(images, np.arange(count) % 10, "toy")


@pytest.fixture
def written(tmp_path):
    """(dataset, logits, path): good teachers' logits for a toy set."""
    dataset = toy()
    logits = torch.randn(len(dataset), 10, generator=torch.Generator().manual_seed(1)) + 5 * data.one_hot(
        dataset.labels
    )
    path = tmp_path / "labels.csv"
    write_labels(path, dataset.ids, dataset.labels.numpy(), logits)
    return dataset, logits, path


def edit(path, change):
    table = pd.read_csv(path, dtype={"id": str})
    change(table).to_csv(path, index=False, float_format="%.9g")


def test_header_and_float32_round_trip(written):
    dataset, logits, path = written
    assert path.read_text().splitlines()[0] == ("id,label,airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck")
    assert torch.equal(read_labels(path, dataset), logits)
    extreme = torch.tensor([1 / 3, 1e-38, 3.4e38, -0.1, 16777217.0, 2**-20, np.pi, 0.1, 1e10, 7.5]).expand(40, 10)
    write_labels(path, dataset.ids, dataset.labels.numpy(), extreme.clone())
    table = pd.read_csv(path)
    assert np.array_equal(table[list(data.CLASSES)].to_numpy(np.float32), extreme.numpy())


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


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda table: table.drop(index=5), "1 of 40 training images have no row"),
        (lambda table: pd.concat([table, table.iloc[:2]]), "2 ids occur more than once"),
        (with_cell("cat", "nan"), "1 rows hold a logit that is not finite"),
        (with_cell("cat", "inf"), "1 rows hold a logit that is not finite"),
        (with_cell("cat", "1e300"), "1 rows hold a logit that is not finite"),
        (with_cell("cat", "meow"), "not a number"),
        (with_cell("label", 9), "1 rows state another label"),
        (with_cell("label", ""), "1 rows state another label"),
        (
            lambda table: table.assign(
                **{name: (table["label"] == k).astype(int) for k, name in enumerate(data.CLASSES)}
            ),
            "whole numbers",
        ),
        (lambda table: table[COLUMNS[:2] + COLUMNS[:1:-1]], "columns should be"),
        (lambda table: table.drop(columns="ship"), "columns should be"),
        (
            lambda table: table.assign(**dict(zip(data.CLASSES, -table[list(data.CLASSES)].to_numpy().T))),
            "no better than chance",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_name(written, change, message):
    dataset, _, path = written
    edit(path, change)
    with pytest.raises(UserError, match=message) as caught:
        read_labels(path, dataset)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe binary", b'id\n"unclosed'])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "labels.csv"
    with pytest.raises(UserError, match="does not exist"):
        read_labels(path, toy())
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_labels(path, toy())


def test_images_without_a_label_have_an_empty_cell(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    dataset = data.as_dataset(images, np.where(np.arange(12) < 8, np.arange(12), -1), "toy")
    logits = torch.randn(12, 10) + 9 * data.one_hot(dataset.labels)
    write_labels(tmp_path / "labels.csv", dataset.ids, dataset.labels.numpy(), logits)
    table = pd.read_csv(tmp_path / "labels.csv")
    assert table["label"].isna().sum() == 4
    assert torch.equal(read_labels(tmp_path / "labels.csv", dataset), logits)
    assert data.one_hot(dataset.labels)[dataset.labels < 0].sum() == 0


def test_averages_against_a_slow_loop():
    answers = [torch.randn(6, 10) for _ in range(3)]
    masks = [np.array([1, 1, 0, 0, 0, 1], bool), np.array([0, 0, 1, 1, 1, 1], bool), np.zeros(6, bool)]
    mean = average(answers, masks, "mean", np.arange(6))
    torch.testing.assert_close(mean, sum(answers) / 3)
    oof = average(answers, masks, "oof", np.arange(6))
    for row in range(6):
        allowed = [answer[row] for answer, mask in zip(answers, masks) if mask[row]]
        torch.testing.assert_close(oof[row], sum(allowed) / len(allowed))
    masks[1][4] = False
    with pytest.raises(UserError, match="1 images have no teacher"):
        average(answers, masks, "oof", np.arange(6))
