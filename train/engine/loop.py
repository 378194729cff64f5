"""The training loop: `run` prepares what a recipe describes, `fit` trains it step by step.

SGD with Nesterov momentum; the learning rate is a pure function of the step; images, labels and all augmentation live
on the device. Every random number comes from (seed, epoch) or (seed, step), never from what ran before, so a run that
was killed and resumed ends bit for bit as one that was not: on CPUs, and on one GPU in deterministic mode.
"""

import hashlib
import os
import shutil
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F

import augment
import models
from augment.basic import mirror, normalize
from train.engine import checkpoint, data, parallel
from train.engine.command import ROOT, UserError, count_of, short_path, user_errors
from train.engine.device import autocast, hardware
from train.engine.parallel import Ranks
from train.engine.progress import Every, Progress, duration, say
from train.engine.state import Signals, State, Stopped, commit, provenance

SAVE_EVERY = 300.0  # seconds between two saved states
LOOK_EVERY = 0.5  # seconds between two looks at the metrics, each of which waits for the device
WORTH_COMPILING = 2_000  # steps on CUDA from which the compilation, a minute or so, is soon earned back
SMALL = 20  # pixels of a side in the first part of a run with progressive resolution
SPARED = 1 - (SMALL / 32) ** 2  # share of a step's work that these smaller images spare


def run(recipe, teacher=False):
    """Do all that a training command does: data, model, budget, training, finished weights. Returns their path.

    teacher: the model may exceed the parameter budget. Raises UserError for whatever the person who typed the command
    can set right.
    """
    device, recipe = recipe.on_device()
    code = commit()
    torch.manual_seed(derive(recipe.seed, "init"))
    with user_errors():
        model = models.build(recipe.model, **recipe.options)
        if not teacher:
            models.check_budget(model)
    weights = Path(recipe.out) if recipe.out else ROOT / "weights" / f"{recipe.run_name(model.name)}.pt"
    if recipe.start:
        recipe.start.check_start(recipe, model)
    for flag, file in recipe.reads:
        if Path(file).resolve() == weights.resolve():
            raise UserError(f"{flag} {file} is the file that this run writes: name another with --out")
    with Ranks(device, recipe.compile) as ranks, ranks.hold(checkpoint.Run(weights)) as files:
        dataset = data.load(recipe.data)
        if recipe.start:
            recipe.start.split(dataset)  # or a UserError: it was trained on other images
        labelled, val = data.split(dataset, recipe.fold, recipe.limit)
        del dataset  # with a fold held out, the memory of the images a second time
        train = data.join(labelled, data.load(recipe.data, "test")) if recipe.include_test else labelled
        train, soft = recipe.prepare(train, model)
        if recipe.start:  # after `prepare`, whose first layer the other layers were not trained behind
            model.load_state_dict(recipe.start.model.state_dict())
        identity, digest = recipe.identity, checkpoint.digest([train.digest, *soft])
        if recipe.fresh:
            ranks.once(files.forget)
        elif finished := ranks.once(files.finished):
            checkpoint.check_same(finished, identity, digest)
            say(f"{weights} is finished; --fresh trains it again")
            return weights
        # On a CPU too: 1.04 to 1.45 times as fast for all families from width 8 on (width 4: 0.63 to 0.94).
        model.to(device, memory_format=torch.channels_last)
        steps = recipe.epochs * steps_per_epoch(len(train), recipe)
        state = fit(State(model, recipe, files, digest, steps, ranks, code), train, val, soft)
        about = provenance(state, train, labelled)
        ranks.once(lambda: files.finish(state.weights() | {"log": state.rows, "provenance": about}))
    last = state.rows[-1]
    held_out = "" if val is None else f", validation {last['val_accuracy']:.2f} % of {len(val):,} images"
    say(f"{weights}: training {last['train_accuracy']:.2f} %{held_out}, {duration(about['seconds'])} for "
        f"{count_of(recipe.epochs, 'epoch')}")
    return weights


def fit(state, train, val=None, soft=()):
    """Train from where `state` is to its last step; returns it.

    train, val: data.Dataset; soft: further float targets (N, K) of `train`, such as teacher logits, mixed along with
    the labels. Raises Stopped after SIGTERM or Ctrl-C, with the state saved, and Diverged when the loss is not finite.
    """
    model, recipe, ranks, device = state.model, state.recipe, state.ranks, state.device
    steps, per_epoch = state.steps, state.steps // recipe.epochs  # of the whole run, of an epoch
    small_steps = round(recipe.small * steps)  # the first ones
    images = train.images.to(device)
    targets = [data.one_hot(train.labels).to(device), *(target.to(device) for target in soft)]
    compiling = worth_compiling(recipe, device, steps)
    hindered = recipe.compile is None and not compiling and device.type == "cuda" and steps >= WORTH_COMPILING
    network = ranks.wrap(model)
    if compiling:
        network = compiled(network, device)
    facts = [f"{models.parameter_count(model):,} parameters", hardware(device), recipe.precision, "channels_last",
             "compiled" if compiling else "not compiled for want of gcc or of Python.h" if hindered else "",
             count_of(len(train), "image"), f"{count_of(steps, 'step')} in {count_of(recipe.epochs, 'epoch')}",
             f"from {short_path(recipe.init)}" if recipe.start else ""]
    first_line = f"{model.name}: {', '.join(filter(None, facts))}"

    def work(step):  # in full training steps; a validation image costs about a third of a training image
        validated = step // per_epoch * len(val or ()) / recipe.batch_size / 3
        return step - min(step, small_steps) * SPARED + validated

    # Time is taken from the first look on: the first compiled step is compiled, and on CUDA the second recorded.
    first_look = state.step + (4 if compiling else 1)
    ahead, look_due, save_due = Ahead(device), Every(LOOK_EVERY), Every(SAVE_EVERY)
    with Signals() as signals, Progress(steps, state.files.weights.stem, "step", state.step, work, first_line) as bar:
        for epoch in range(len(state.rows), recipe.epochs):
            model.train()
            global_batches = batches(images, targets, recipe, epoch, state.step - epoch * per_epoch)
            for count, scale, inputs, *wanted in ranks.shard(ahead(global_batches)):
                # 1. The step. Whatever is random inside the model follows from (seed, step) and the rank.
                for group in state.optimizer.param_groups:
                    group["lr"] = recipe.learning_rate(state.step, steps) * group.get("lr_scale", 1)
                torch.manual_seed(derive(recipe.seed, "model", state.step, *ranks.seed))
                side = SMALL if state.step < small_steps else None
                parts, logits = train_step(network, state.optimizer, recipe, inputs, wanted, scale, side)
                state.advance(parts, logits, wanted[0], count)

                # 2. What has to wait for the device is done now and then: the bar, the saved state, a signal.
                due = (state.step >= first_look and look_due()), save_due()
                look, save = due if ranks.rank == 0 else (False, False)
                caught, look, save = ranks.all_max(signals.caught, look, save)
                if look:
                    bar.reach(state.step, state.note())
                if save or caught:
                    state.save()
                if caught:
                    raise Stopped(caught, state)

            # 3. The end of an epoch: one row of the log.
            state.close_epoch(val)
            bar.reach(state.step)
        state.save()
    return state


def derive(seed, *use):
    """A seed, 0 <= s < 2**63, for one use of randomness: derive(seed, "augment", epoch)."""
    text = "/".join(map(str, (seed, *use)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def steps_per_epoch(images, recipe):
    """Whole batches only: what is left over comes in other epochs, for the order is new in each."""
    return max(1, images // recipe.batch_size)


def batches_per_chunk(batch_size):
    """How many batches are augmented and mixed in one call."""
    return max(1, augment.CHUNK // batch_size)


def train_step(network, optimizer, recipe, images, targets, scale=1.0, side=None):
    """One step down the gradient of `scale` times the recipe's loss: (the dict of the loss, logits in float32).

    images: normalized float (B, 3, 32, 32); targets: float (B, K) tensors, the labels first; side: pixels of a side to
    which the images are shrunk for the network (the loss, and so a student's teachers, sees them whole). A network of
    several columns answers with logits (B, columns, K): each learns by its own loss, and the mean is returned.
    """
    optimizer.zero_grad(set_to_none=True)
    shown = F.interpolate(images, (side, side), mode="bilinear", antialias=True) if side else images
    with autocast(images.device, recipe.precision):
        logits = network(shown)
    logits = logits.float().view(len(images), -1, targets[0].shape[1])
    columns = logits.shape[1]
    parts = recipe.loss(logits.flatten(0, 1), images, *(target.repeat_interleave(columns, 0) for target in targets))
    (scale * columns * parts["loss"]).backward()
    optimizer.step()
    return parts, logits.mean(1)


def batches(images, targets, recipe, epoch, first=0):
    """Yield (images, *targets) of the steps `first`, first + 1, ... of an epoch, augmented and mixed.

    images: uint8 (N, 3, 32, 32); targets: float (N, K) tensors; all on one device. The yielded images are normalized
    float (B, 3, 32, 32), channels_last. Augmentation and mixing work on a chunk of several batches at once.
    """
    device, size = images.device, recipe.batch_size
    transform, mix = augment.pipeline(recipe.augment), augment.mixing(recipe.mix)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive(recipe.seed, "order", epoch)))
    order = order[:steps_per_epoch(len(images), recipe) * size].to(device)
    if recipe.alternate_flip:  # half of the images begin as their mirror images, and every epoch turns all of them
        generator = torch.Generator(device).manual_seed(derive(recipe.seed, "mirror"))
        mirrored = (torch.rand(len(images), device=device, generator=generator) < 0.5) ^ (epoch % 2 == 1)
    per_chunk = batches_per_chunk(size)
    for number, rows in enumerate(order.split(per_chunk * size)):
        skipped = max(0, first - number * per_chunk)  # batches of this chunk that an earlier process has had
        if skipped >= per_chunk:
            continue
        generator = torch.Generator(device).manual_seed(derive(recipe.seed, "augment", epoch, number))
        shown = mirror(images[rows], mirrored[rows]) if recipe.alternate_flip else images[rows]
        chunk = mix(generator, transform(shown, generator), *(target[rows] for target in targets), batch=size)
        for mixed, *wanted in list(zip(*(tensor.split(size) for tensor in chunk)))[skipped:]:
            yield normalize(mixed).contiguous(memory_format=torch.channels_last), *wanted


class Ahead:
    """Ahead(device)(batches): the same batches; on CUDA each is prepared while the device is busy with the step before.

    They are prepared on one stream beside the main one; the randomness is that of `batches`, whose generators know no
    stream.
    """

    def __init__(self, device):
        self.device = device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batches):
        if self.side is None:
            yield from batches
            return
        main = torch.cuda.current_stream(self.device)
        self.side.wait_stream(main)
        while True:
            with torch.cuda.stream(self.side):
                batch = next(batches, None)
            if batch is None:
                return
            main.wait_stream(self.side)
            for tensor in batch:
                tensor.record_stream(main)  # or its memory would be given to the next batch while the step still reads
            yield batch


def worth_compiling(recipe, device, steps):
    """Whether a run of so many steps compiles its networks: by --compile, or on CUDA where it pays and can be done.

    Raises UserError for --compile where it cannot be done.
    """
    if recipe.compile and not builds_kernels(device):
        compiler = "gcc or clang" if device.type == "cuda" else "g++"
        raise UserError(f"--compile needs a compiler ({compiler}) and Python's headers, and they are not all here")
    pays = device.type == "cuda" and steps >= WORTH_COMPILING
    return pays and builds_kernels(device) if recipe.compile is None else recipe.compile


def builds_kernels(device):
    """Whether there is what kernels, or Triton's launchers of them, are built with: a compiler and Python's headers."""
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # Debian's has no headers
    variable, names = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    compiler = os.environ.get(variable) or any(map(shutil.which, names))
    return bool(compiler) and Path(sysconfig.get_path("include", scheme), "Python.h").exists()


def compiled(network, device):
    """The network compiled for batches of one size; on one GPU as CUDA graphs, for it is made of many small kernels.

    A graph reads the seed of torch's generator when it is replayed, so the model's randomness follows from the step
    as it does without (CUDAGeneratorState::replay_prologue).
    """
    graphs = device.type == "cuda" and parallel.world_size() == 1
    return torch.compile(network, dynamic=False, mode="reduce-overhead" if graphs else "default")
