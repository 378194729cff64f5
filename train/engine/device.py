"""Where a network is computed, in which precision, and whether it is compiled."""

import os
import platform
import re
import shutil
import sysconfig
from pathlib import Path

import torch

from train import UserError
from train.engine import distributed
from train.engine.command import count_of, warn

# Float32 means float32, above all for scores and labels. By default torch allows TF32 in convolutions, and in matrix
# products if TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is set, as in some containers.
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

# Steps from which compiled steps save more time than compiling takes. On a GPU each saves less: an estimate, for no GPU
# has been measured.
WORTH_COMPILING = {"cpu": 2_000, "cuda": 10_000}
# A CPU gains on networks of many small convolutions. Measured in bfloat16, AMD Zen 4, two threads: with 166
# of them (SEResNet-164) 1.40 times as fast, 109 (PyramidNet) 1.4, 55 (Shake-Shake) 1.15, 15 (resnet18) 1.05, 7 0.97.
MANY_CONVOLUTIONS = 40
COMPILERS = {"cuda": ("CC", ("gcc", "clang")), "cpu": ("CXX", ("g++",))}  # environment variable, usual names
CPUINFO = Path("/proc/cpuinfo")  # on Linux
DRIVER = Path("/dev/nvidiactl")  # NVIDIA's
NO_GPU = "no CUDA device is available here"


def device_of(name: str) -> torch.device:
    """The torch.device for auto|cuda|cpu; makes this rank's GPU the current one. UserError for cuda without a GPU."""
    unusable = "" if name == "cpu" else why_no_gpu()
    if name == "cuda" and unusable:
        raise UserError(f"--device cuda: {unusable}; use --device cpu or auto")
    if name == "auto":
        name = "cpu" if unusable else "cuda"
        if unusable not in ("", NO_GPU):
            warn(f"{unusable}: using the CPU")
    if name == "cuda":
        if max(distributed.local_rank() + 1, distributed.variable("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count():
            raise UserError(f"--nproc-per-node is above the number of GPUs here, {torch.cuda.device_count()}")
        torch.cuda.set_device(distributed.local_rank())
        # All batches have one shape; the fastest algorithm for it may differ from process to process.
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    return torch.device(name)


def why_no_gpu() -> str:
    """Why torch cannot compute on a GPU here, or "". Its builds have no kernels for older GPUs."""
    if not torch.cuda.is_available():
        hidden = os.getenv("CUDA_VISIBLE_DEVICES") in ("", "-1")
        broken = torch.version.cuda and DRIVER.exists() and not hidden
        return "an NVIDIA driver is installed, but torch cannot use a GPU (is it 580 or newer?)" if broken else NO_GPU
    kernels = [int(arch[3:].rstrip("af")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
    if kernels and torch.cuda.get_device_capability() < divmod(min(kernels), 10):
        return f"this build of torch has no kernels for so old a GPU as the {torch.cuda.get_device_name()}"
    return ""


def precision_of(name: str, device: torch.device) -> str:
    """The precision of training, `float32` or `bfloat16`, for auto|float32|bfloat16 on a device.

    On a CPU with fast instructions for it, a step in bfloat16 is 1.5 to 2.2 times as fast as in float32. Without them
    it is 4 to 12 times slower, and with Intel's AVX512-BF16 alone, without AMX, 1.6 times slower.
    """
    if name != "auto":
        return name
    if device.type == "cuda":  # GPUs older than Ampere only emulate it
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if faster_in_bfloat16() else "float32"


def faster_in_bfloat16() -> bool:
    """Whether this CPU multiplies faster in bfloat16 than in float32, by AMX or by AMD's AVX512-BF16.

    Intel's AVX512-BF16 alone, as on virtual machines that hide AMX, is slower than its float32.
    """
    amd = "AuthenticAMD" in (cpuinfo() or platform.processor())
    return units() == "AMX" or (amd and units() == "AVX512-BF16")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in training: autocast in bfloat16, nothing in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def hardware(device: torch.device) -> str:
    """The machine in words, times the ranks: `2 x NVIDIA H200`, `AMD EPYC 7763 64-Core Processor (AVX2), 2 threads`.

    The brackets name the CPU's fastest instructions: they and the precision decide how long a run takes.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()} ({units()}), {count_of(torch.get_num_threads(), 'thread')}"
    return name if distributed.world_size() == 1 else f"{distributed.world_size()} x {name}"


def processor() -> str:
    """The processor's name, or its kind if it has none: `arm64`."""
    called = re.search(r"^model name[ \t]*:[ \t]*(\S.*)$", cpuinfo(), re.MULTILINE)
    return called[1].strip() if called else platform.processor() or platform.machine()


def cpuinfo() -> str:
    """What Linux says about the processors; empty elsewhere."""
    return CPUINFO.read_text() if CPUINFO.exists() else ""


def units() -> str:
    """The fastest instructions of this CPU: AMX, AVX512-BF16, or what torch says: AVX512, AVX2, ..."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else torch.backends.cpu.get_cpu_capability()


def compilation(wanted: bool | None, device: torch.device, steps: int, network: torch.nn.Module) -> tuple[bool, str]:
    """(whether a run of so many steps compiles its network, why not if that would pay but is impossible).

    wanted: --compile or --no-compile; None compiles if it pays. UserError for --compile if it is impossible.
    """
    if not (compiling_pays(device, steps, network) if wanted is None else wanted):
        return False, ""
    if builds_kernels(device):
        return True, ""
    names = " or ".join(COMPILERS[device.type][1])
    if wanted:
        raise UserError(f"--compile needs a compiler ({names}) and Python's headers: install what is missing")
    return False, f"not compiled: {names} or Python.h is missing"


def compiling_pays(device: torch.device, steps: int, network: torch.nn.Module) -> bool:
    """Whether compiled steps save more time than compiling takes; several processes on CPUs do not try."""
    many = sum(isinstance(layer, torch.nn.Conv2d) for layer in network.modules()) >= MANY_CONVOLUTIONS
    return steps >= WORTH_COMPILING[device.type] and (device.type == "cuda" or (many and distributed.world_size() == 1))


def builds_kernels(device: torch.device) -> bool:
    """Whether there are a compiler and Python's headers, which kernels, or Triton's launchers of them, need."""
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # Debian's has no headers
    variable, names = COMPILERS[device.type]
    compiler = os.environ.get(variable) or any(map(shutil.which, names))
    return bool(compiler) and Path(sysconfig.get_path("include", scheme), "Python.h").exists()


def compiled(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """The network compiled for batches of one size; on one GPU as CUDA graphs, because it has many small kernels.

    A graph reads the seed of torch's generator when it is replayed, so the model's randomness follows from the step
    as it does without (CUDAGeneratorState::replay_prologue).
    """
    graphs = device.type == "cuda" and distributed.world_size() == 1
    return torch.compile(network, dynamic=False, mode="reduce-overhead" if graphs else "default")
