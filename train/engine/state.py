"""All that changes while a run trains, and how it stops: State, the signals, the provenance of what was finished."""

import copy
import os
import platform
import signal
import subprocess
import threading
import time
from pathlib import Path

import torch

import models
from train.engine import checkpoint, predict
from train.engine.command import ROOT, UserError, command_line, count_of
from train.engine.device import hardware
from train.engine.progress import say

UNIT = 2**-24  # sums are whole multiples of it, so that they are the same in any order of adding
NO_STEP = 2**62


class State:
    """The step, the weights, their average, momentum and the log: what is saved, and restored on creation."""

    def __init__(self, model, recipe, files, data_digest, steps, ranks, code=""):
        """code: the `commit` when this process began."""
        self.model, self.recipe, self.files, self.ranks = model, recipe, files, ranks
        self.data_digest, self.steps, self.device = data_digest, steps, next(model.parameters()).device
        self.optimizer = optimizer_of(model, recipe)
        self.average = copy.deepcopy(model).eval().requires_grad_(False) if recipe.ema_decay else None
        pairs = zip(self.evaluated.state_dict().values(), model.state_dict().values())
        # (those of the average, those of the model), for one call over all of them.
        self.floats = list(zip(*(pair for pair in pairs if pair[0].is_floating_point())))
        self.step, self.rows, self.seconds = 0, [], 0.0
        self.totals, self.recent = {}, {}  # of this epoch: all ranks' so far, and what this rank has not told yet
        self.nonfinite_step = torch.full((), NO_STEP, device=self.device, dtype=torch.int64)
        self.places = [{"hardware": hardware(self.device), "torch": str(torch.__version__), "commit": code,
                        "threads": torch.get_num_threads()}]  # of all the processes that worked on the run
        saved = ranks.once(files.load_state)
        if saved:
            self.restore(saved)
        self.started = time.perf_counter()

    @property
    def evaluated(self):
        """The network that counts: the moving average when there is one."""
        return self.average or self.model

    @torch.no_grad()
    def advance(self, parts, logits, hard, count):
        """Take note of one finished step, of which the first `count` images count, without waiting for the device.

        parts: the dict of Recipe.loss; logits: float32 (B, K); hard: the labels as float targets (B, K).
        """
        counts = {name: (value.detach().double() * (count / UNIT)).round().long() for name, value in parts.items()}
        labelled = hard[:count].sum(1) > 0  # others have no label to be right about
        counts["right"] = ((logits.argmax(1) == hard.argmax(1))[:count] & labelled).sum()
        counts["labelled"] = labelled.sum()
        counts["images"] = torch.tensor(count)
        self.recent = {name: self.recent.get(name, 0) + value for name, value in counts.items()}
        self.nonfinite_step.clamp_(max=torch.where(torch.isfinite(parts["loss"]), NO_STEP, self.step))
        if self.average:
            # average += (1 - decay) (weights - average), of every float, statistics included. The decay grows from
            # 0.1 over the first steps, so that the initial weights are soon forgotten.
            torch._foreach_lerp_(*self.floats, 1 - min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step)))
        self.step += 1

    def tally(self):
        """This epoch's sums over all ranks so far, as whole numbers. Raises Diverged once a loss was not finite."""
        step = -self.ranks.all_max(-self.nonfinite_step.item())[0]
        if step != NO_STEP:
            raise Diverged("the loss", step, self)
        if self.recent:
            added = self.ranks.all_sum(torch.stack([value.cpu() for value in self.recent.values()])).tolist()
            self.totals = {name: self.totals.get(name, 0) + value for name, value in zip(self.recent, added)}
            self.recent = {}
        return self.totals

    def note(self):
        """The running loss in words."""
        totals = self.tally()
        return f"loss {totals['loss'] * UNIT / totals['images']:.3f}" if totals else ""

    def elapsed(self):
        """Seconds spent on this epoch, by all the processes that worked on it."""
        return self.seconds + time.perf_counter() - self.started

    def close_epoch(self, val):
        """Validate and add the epoch's row to the log. The validation reports; nothing is chosen by it."""
        totals = self.tally()
        images, right, labelled = (totals.pop(name) for name in ("images", "right", "labelled"))
        row = {"epoch": len(self.rows) + 1, "lr": self.recipe.learning_rate(self.step - 1, self.steps),
               "train_loss": None, "train_accuracy": 100 * right / max(1, labelled)}
        row |= {f"train_{name}": value * UNIT / images for name, value in totals.items()}
        speed = images / self.elapsed()  # of training, without the validation
        row |= {"val_loss": None, "val_accuracy": None}
        if val is not None:
            answers = self.ranks.once(lambda: predict.logits(self.evaluated, val.images))
            row |= {"val_loss": predict.nll(answers, val.labels), "val_accuracy": predict.accuracy(answers, val.labels)}
        self.rows.append(row | {"seconds": self.elapsed(), "images_per_second": speed})
        self.totals, self.seconds, self.started = {}, 0.0, time.perf_counter()
        self.ranks.once(lambda: self.files.save_csv(self.rows))

    def save(self):
        """Store the whole state; raises Diverged rather than store a NaN."""
        content = self.weights() | {
            "step": self.step, "rows": self.rows, "totals": self.tally(), "seconds": self.elapsed(),
            "optimizer": self.optimizer.state_dict(), "places": self.places}
        flawed = self.ranks.once(lambda: checkpoint.nonfinite(content))
        if flawed:
            raise Diverged(flawed, self.step - 1, self)
        self.ranks.once(lambda: self.files.save_state(content))

    def weights(self):
        """What a resume state and finished weights have in common."""
        return {"model": self.recipe.model, "options": self.model.options, "state": self.model.state_dict(),
                "ema": self.average and self.average.state_dict(), "recipe": self.recipe.identity,
                "data": self.data_digest}

    def restore(self, saved):
        """Continue from what `save` stored. Raises UserError when it belongs to another run."""
        checkpoint.check_same(saved, self.recipe.identity, self.data_digest)
        self.model.load_state_dict(saved["state"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for group in self.optimizer.param_groups:  # it may have been saved on another kind of device
            group["fused"] = self.device.type == "cuda"
        if self.average:
            self.average.load_state_dict(saved["ema"])
        self.step, self.rows, self.seconds, self.totals = (saved[k] for k in ("step", "rows", "seconds", "totals"))
        if self.rows:
            self.ranks.once(lambda: self.files.save_csv(self.rows))
        before = saved.get("places") or [{"threads": saved["threads"]}]  # an older state knows no more
        self.places = [*before, *self.places]
        old, threads = (place["threads"] for place in self.places[-2:])
        other = ""
        if old != threads and self.device.type != "cuda":
            other = f", with {count_of(threads, 'thread')} instead of {old}: the last bits will differ"
        say(f"{self.files.weights}: resumed at step {self.step:,}{other}")


def optimizer_of(model, recipe):
    """SGD as the recipe says, in one kernel on CUDA."""
    device = next(model.parameters()).device
    return torch.optim.SGD(recipe.parameter_groups(model), lr=recipe.lr, momentum=recipe.momentum,
                           nesterov=recipe.nesterov, weight_decay=recipe.weight_decay, fused=device.type == "cuda")


def provenance(state, train, labelled):
    """How finished weights came about, as plain values.

    train: the Dataset that was trained on; labelled: the images among them that the fold and the limit leave.
    """
    params, recipe = models.parameter_count(state.model), state.recipe
    places = {name: [place.get(name) for place in state.places] for name in predict.ENVIRONMENT}
    places = {name: words[0] if len(set(words)) == 1 else predict.join_distinct(words)
              for name, words in places.items()}
    return {
        "run": state.files.weights.stem, "command": command_line(), "make": os.getenv("MADE_BY", ""),
        "name": state.model.name, "params": params,
        "over_budget": params > models.BUDGET, "include_test": recipe.sees_test, "images": len(train),
        "unlabelled": int((train.labels < 0).sum()), "train_digest": labelled.digest,
        "source": Path(train.source).name, "steps": state.step, "seconds": sum(row["seconds"] for row in state.rows),
        **places, "precision": recipe.precision, "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"), "before": recipe.start.history if recipe.start else [],
    }


def commit():
    """The commit of this repository, with `+` behind it when files were changed since; empty without git."""
    try:
        git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        ours = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}  # not that of a repository around this one
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10, env=ours).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# ---------------------------------------------------------------- how a run stops


class Diverged(UserError):
    """A loss or a weight is not finite: the run stops and the last good state stays."""

    code = 1

    def __init__(self, what, step, state):
        lr = state.recipe.learning_rate(step, state.steps)
        saved = state.files.last.exists() or state.files.backup.exists()
        kept, fresh = ("; the state saved before is kept", ", with --fresh") if saved else ("", "")
        super().__init__(f"{what} is not finite at step {step:,} (learning rate {lr:.4g}){kept}. Try a smaller --lr, "
                         f"or a longer --warmup-epochs{fresh}")


class Stopped(UserError):
    """SIGTERM or Ctrl-C was caught and the state saved; the exit code is the shell's for that signal."""

    def __init__(self, caught, state):
        again = "the same command without --fresh" if state.recipe.fresh else "the same command"
        super().__init__(f"{signal.Signals(caught).name} at step {state.step:,} of {state.steps:,}: the state is saved "
                         f"in {state.files.last}, {again} goes on from there")
        self.code = 128 + caught


class Signals:
    """Within it, SIGTERM and Ctrl-C, once or more often, only set `caught`.

    After one was caught the process is on its way out: further ones are ignored to its very end.
    """

    def __enter__(self):
        self.caught = 0
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.catch) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def catch(self, number, _frame):
        self.caught = self.caught or number

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_IGN if self.caught else handler)
