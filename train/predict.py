"""From weights to answers: `logits` is the primitive, every figure is a line on top of it."""

import torch
import torch.nn.functional as F

import models
from augment.basic import normalize
from train.checkpoint import load_weights
from train.progress import progress
from train.recipe import UserError

BATCH = {"cuda": 2_000, "cpu": 500}


def restore(content):
    """The network of a weights file's content (see checkpoint.load_weights), in evaluation mode.

    The moving average of the weights is used when there is one. Raises UserError when the content
    does not fit the model it names.
    """
    try:
        model = models.build(content["model"], **content["options"])
        model.load_state_dict(content["ema"] or content["state"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"weights of {content.get('model')!r} do not fit: {str(error).splitlines()[0]}")
    return model.eval()


def load_model(path, device="cpu"):
    """(network in evaluation mode on `device`, content) of a weights file."""
    content = load_weights(path)
    model = restore(content)
    return model.to(device, memory_format=torch.channels_last), content


@torch.inference_mode()
def logits(model, images, tta=False, label=None):
    """Logits of uint8 images (N, 3, 32, 32) as float32 (N, K) on the CPU.

    tta: the mean of the logits of the image and its mirror image; label: names a progress bar.
    The model is used in evaluation mode and left in the mode it was in.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    batches = images.split(BATCH[device.type])
    answers = []
    for batch in progress(batches, label, unit="batch") if label else batches:
        inputs = normalize(batch.to(device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            answer = model(inputs)
            if tta:
                answer = (answer.float() + model(inputs.flip(-1)).float()) / 2
        answers.append(answer.float())
    model.train(training)
    return torch.cat(answers).cpu()


def accuracy(logits, labels):
    """Share of right answers, in percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def nll(logits, labels):
    """Mean negative log-likelihood in nats, computed in float64."""
    return F.cross_entropy(logits.double(), labels).item()


def reliability(logits, labels, bins=15):
    """[(images, mean confidence, share right), ...] of `bins` equal intervals (low, high] of confidence, 0..1."""
    confidence, answer = logits.double().softmax(1).max(1)
    slot = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count, sure, right = (torch.zeros(bins, dtype=torch.float64).index_add_(0, slot, values)
                          for values in (torch.ones_like(confidence), confidence, (answer == labels).double()))
    return torch.stack([count, sure / count.clamp(min=1), right / count.clamp(min=1)], 1).tolist()


def ece(logits, labels, bins=15):
    """Expected calibration error (Guo et al. 2017, eq. 3), 0..1, over the intervals of `reliability`."""
    return sum(count * abs(right - sure) for count, sure, right in reliability(logits, labels, bins)) / len(labels)


def confusion(logits, labels, classes=10):
    """Counts (classes, classes) int64: row the true class, column the answer."""
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def figures(logits, labels):
    """All of the above for one set of answers, as plain numbers: top1 and per_class in percent, nll in nats."""
    counts = confusion(logits, labels)
    per_class = 100 * counts.diagonal().double() / counts.sum(1).clamp(min=1)
    return {"top1": accuracy(logits, labels), "nll": nll(logits, labels), "ece": ece(logits, labels),
            "per_class": per_class.tolist(), "confusion": counts.tolist()}
