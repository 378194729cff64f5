"""From weights to answers: `logits` is the primitive, every figure is a line on top of it.

    networks = load(["weights/resnet18-fold0.pt"])      # load() is the released network
    answers(networks, images)       # uint8 (N, 3, 32, 32) -> float32 (N, 10), the mean of several networks

Answers are computed in float32, TF32 off, on every device: what is scored or distilled does not depend on where.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import models
from augment.basic import normalize
from train.engine import checkpoint, data
from train.engine.command import ROOT, UserError, count_of, short_path, user_errors
from train.engine.progress import progress

RELEASED = ROOT / "weights" / "released.pt"
BATCH = {"cuda": 2_000, "cpu": 500}
ENVIRONMENT = ("hardware", "torch", "commit", "threads")  # where and with what a run was made
COOLEST, HOTTEST = 0.01, 100.0  # bounds of the temperature


class Contaminated(UserError):
    """The weights have seen the test images."""

    code = 3


@dataclass(frozen=True)
class Network:
    """A finished network in evaluation mode, with its file and what that says of how it came about."""

    file: Path
    model: torch.nn.Module
    content: dict

    @property
    def fold(self):
        """The fold that it held out, 0 to 4, or None."""
        return self.content["recipe"]["fold"]

    @property
    def provenance(self):
        """How it came about, the dict of `state.provenance`."""
        return self.content["provenance"]

    @property
    def params(self):
        """The number of its parameters."""
        return models.parameter_count(self.model)

    @property
    def over_budget(self):
        """Whether it has more parameters than BUDGET, whatever its file says: then it is a teacher."""
        return self.params > models.BUDGET

    @property
    def before(self):
        """Of each run whose weights it began with, the last first, what `history` says of it."""
        return self.provenance.get("before", [])

    @property
    def fingerprint(self):
        """16 hex digits that stand for the weights that answer: equal for copies of a file."""
        return checkpoint.digest(checkpoint.evaluated(self.content))[:16]

    @property
    def full_fingerprint(self):
        """That of the weights as they were trained, which a copy in half precision has too."""
        return self.content.get("whole", self.fingerprint)

    @property
    def temperature(self):
        """What its logits are divided by before they are probabilities: 1.0 unless one was fitted and stored."""
        return self.content.get("temperature", 1.0)

    @property
    def synthetic(self):
        """Whether it was trained on the generated shapes."""
        return self.provenance["source"].startswith("synthetic")

    @property
    def classes(self):
        """The names of the ten classes that it knows."""
        return data.class_names(self.provenance["source"])

    @property
    def origin(self):
        """How it came about, in a sentence: what a score without it may be mistaken for."""
        recipe, about = self.content["recipe"], self.provenance
        held_out = "none held out" if self.fold is None else f"fold {self.fold} held out"
        before = "".join(f", after {count_of(run['recipe']['epochs'], 'epoch')} by `{run['command']}`"
                         for run in self.before)
        return (f"trained for {count_of(recipe['epochs'], 'epoch')} on {count_of(about['images'], 'image')}, "
                f"{held_out}, seed {recipe['seed']}, by `{about['command']}`{before}")

    @property
    def history(self):
        """Its run, and before it those whose weights it began with, the last first, as plain values."""
        about = self.provenance
        told = {name: about.get(name) for name in ("run", "command", "seconds", "unlabelled", "date", *ENVIRONMENT)}
        own = told | {"weights": self.full_fingerprint, "trained_on": about["images"], "recipe": self.content["recipe"]}
        return [own, *self.before]

    def check_clean(self, where=""):
        """Raises Contaminated for weights trained with the test images: they have no test accuracy."""
        if self.provenance["include_test"]:
            raise Contaminated(f"{where}CONTAMINATED: {self.file} was trained with the test images; it has no test "
                               f"accuracy")

    def check_budget(self):
        """UserError above BUDGET parameters."""
        with user_errors(f"{self.file}: "):
            models.check_budget(self.model)

    def check_kind(self, path):
        """UserError for weights of the generated images when `path` holds the real ones, or the other way round."""
        if self.synthetic != (str(path) == "synthetic"):
            raise UserError(f"{self.file} was trained on other images than those of {path}")

    def check_teacher(self, path, dataset, admit_test):
        """UserError unless it was trained on images of the whole training set `dataset`, which stands at `path`.

        One that was trained with the test images too, which students would learn from it, is refused unless admit_test.
        """
        self.check_kind(path)
        if self.provenance["include_test"] and not admit_test:
            raise UserError(f"{self.file} was trained with the test images: its answers would leak them")
        self.split(dataset)

    def check_start(self, recipe, model):
        """UserError unless a run of `recipe` that trains `model` may begin with these weights.

        They are those of the same network, and know the test images only if the run may too. With a fold held out they
        have held out the same one, or the validation would ask about what they have learned.
        """
        self.check_kind(recipe.data)
        if self.model.name != model.name:
            raise UserError(f"--init {self.file} is {self.model.name}, and the network to train is {model.name}")
        if self.provenance["include_test"] and not recipe.sees_test:
            raise UserError(f"--init {self.file} was trained with the test images, which this run may not know")
        if recipe.fold is not None and self.fold != recipe.fold:
            raise UserError(f"--init {self.file} was trained on images that --fold {recipe.fold} holds out")

    def split(self, dataset):
        """(the images it was trained on, those it held out or None) of a whole training set.

        UserError when it was trained on other images.
        """
        train, held_out = data.split(dataset, self.fold, self.content["recipe"]["limit"])
        if train.digest != self.provenance["train_digest"]:
            raise UserError(f"{self.file} was trained on other images than those of {dataset.source}")
        return train, held_out


def join_distinct(words):
    """Each different one that is known, once: `2.11.0; 2.12.0`. A word may be several, joined so before."""
    return "; ".join(dict.fromkeys(part for word in words if word for part in str(word).split("; ")))


def total_epochs(runs):
    """Passes over the training images by a run and those before it, as in `Network.history`."""
    return sum(run["recipe"]["epochs"] for run in runs)


def load(files=(), device="cpu"):
    """The Networks of weights files, on `device`; the released one when no file is named.

    UserError names a file that is not ours, or that is there twice.
    """
    if not files and not RELEASED.exists():
        raise UserError(f"{short_path(RELEASED)} does not exist: no network is released here, so name WEIGHTS, such as "
                        f"those of `make quick`")
    networks, seen = [], {}
    for file in map(Path, files or [RELEASED]):
        content = checkpoint.load_weights(file)
        network = Network(file, restore(content, device, f"{file}: "), content)
        if network.full_fingerprint in seen:
            raise UserError(f"{file} repeats {seen[network.full_fingerprint]}: a network counts once")
        seen[network.full_fingerprint] = file
        networks.append(network)
    return networks


def restore(content, device="cpu", where=""):
    """The network of a weights file's content, in evaluation mode.

    The moving average of the weights is used when there is one. UserError, behind `where` the content came from, when
    it does not fit its model.
    """
    try:
        model = models.build(content["model"], **content["options"])
        model.load_state_dict(checkpoint.evaluated(content))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}weights of {content.get('model')!r} do not fit: {str(error).splitlines()[0]}")
    if content["options"].get("num_classes", 10) != len(data.CLASSES):
        raise UserError(f"{where}weights of {content['options']['num_classes']} classes, not {len(data.CLASSES)}")
    return model.eval().to(device, memory_format=torch.channels_last)


def answers(networks, images, tta=False, bars=True):
    """Logits float32 (N, 10) of uint8 images: the mean over the Networks. bars: show the progress of each."""
    count = len(networks)
    labels = [f"{network.file.stem} ({number}/{count})" if bars else None for number, network in enumerate(networks, 1)]
    return sum(logits(network.model, images, tta, label) / count for network, label in zip(networks, labels))


@torch.inference_mode()
def logits(model, images, tta=False, label=None):
    """Logits of uint8 images (N, 3, 32, 32) as float32 (N, K) on the CPU.

    tta: the mean of the logits of the image and its mirror image; label: names a progress bar.
    The model is used in evaluation mode and left in the mode it was in.
    """
    device = next(model.parameters()).device
    training, tuned = model.training, torch.backends.cudnn.benchmark
    model.eval()
    torch.backends.cudnn.benchmark = False  # else each process may choose other convolutions, with other last bits
    batches = images.split(BATCH[device.type])
    answers = []
    for batch in progress(batches, label, unit="batch") if label else batches:
        inputs = normalize(batch.to(device)).contiguous(memory_format=torch.channels_last)
        answers.append((model(inputs) + model(inputs.flip(-1))) / 2 if tta else model(inputs))
    model.train(training)
    torch.backends.cudnn.benchmark = tuned
    return torch.cat(answers).cpu()


# ---------------------------------------------------------------- figures, of logits float (N, K) and labels int64 (N,)


def accuracy(logits, labels):
    """Share of right answers, in percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def nll(logits, labels):
    """Mean negative log-likelihood in nats, computed in float64; labels may be probabilities (N, K) too."""
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


def temperature(logits, labels):
    """The T > 0 that minimises the nll of logits / T (Guo et al. 2017), by bisection.

    The nll is convex in 1 / T, and its slope there is mean(sum_k p_k z_k - z_label). Clamped to 0.01..100, which
    only answers that are all right, or worse than none, reach.
    """
    logits = logits.double()
    low, high = math.log(COOLEST), math.log(HOTTEST)
    for _ in range(60):
        middle = (low + high) / 2
        expected = ((logits / math.exp(middle)).softmax(1) * logits).sum(1)
        slope = (expected - logits.gather(1, labels[:, None])[:, 0]).mean()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return math.exp((low + high) / 2)


def confusion(logits, labels, classes=10):
    """Counts (classes, classes) int64: row the true class, column the answer."""
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)


def figures(logits, labels):
    """All of the above for one set of answers, as plain numbers: top1 and per_class in percent, nll in nats.

    A class without images has None.
    """
    counts = confusion(logits, labels)
    per_class = [100 * right / images if images else None
                 for right, images in zip(counts.diagonal().tolist(), counts.sum(1).tolist())]
    return {"top1": accuracy(logits, labels), "nll": nll(logits, labels), "ece": ece(logits, labels),
            "per_class": per_class, "confusion": counts.tolist()}
