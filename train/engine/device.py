"""Where a network is computed, and in which precision."""

import os
import platform
import re
from pathlib import Path

import torch

from train.engine import parallel
from train.engine.command import UserError, count_of, warn

CPUINFO = Path("/proc/cpuinfo")  # on Linux
DRIVER = Path("/dev/nvidiactl")  # NVIDIA's


def device_of(name):
    """The torch.device for auto|cuda|cpu, this rank's GPU; UserError for cuda on a machine without it."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        hidden = os.getenv("CUDA_VISIBLE_DEVICES") in ("", "-1")
        if name == "cpu" and torch.version.cuda and DRIVER.exists() and not hidden:
            warn("there is a driver of NVIDIA's, but torch can use no GPU (is it 580 or newer?): on the CPU, then")
    if name == "cuda":
        if parallel.local_rank() >= torch.cuda.device_count():
            raise UserError(f"--nproc-per-node is above the number of GPUs here, {torch.cuda.device_count()}")
        torch.cuda.set_device(parallel.local_rank())
        # All batches have one shape; what is fastest on it may differ from process to process.
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    return torch.device(name)


def precision_of(name, device):
    """The precision of training, `float32` or `bfloat16`, for auto|float32|bfloat16 on a device.

    On a CPU that has fast units for it a step in bfloat16 is 1.5 to 2.2 times as fast as in float32. Without units it
    is 4 to 12 times slower, and with those of Intel's AVX512-BF16 alone, without AMX, 1.5 times slower.
    """
    if name != "auto":
        return name
    if device.type == "cuda":  # one older than Ampere only emulates it
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if faster_in_bfloat16() else "float32"


def faster_in_bfloat16():
    """Whether this CPU multiplies faster in bfloat16 than in float32: with AMX, or with AMD's AVX512-BF16.

    Intel's AVX512-BF16 by itself, as where a virtual machine hides AMX, is slower than its float32.
    """
    amd = "AuthenticAMD" in (cpuinfo() or platform.processor())
    return torch.cpu._is_amx_tile_supported() or amd and torch.cpu._is_avx512_bf16_supported()


def autocast(device, precision):
    """The context of a forward pass in training: bfloat16 where that is the precision, nothing in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def hardware(device):
    """The machine in words, times the ranks: `2 x NVIDIA H200`, `AMD EPYC 7763 64-Core Processor (AVX2), 2 threads`.

    In brackets stands what a CPU multiplies with, for that and the precision decide how long a run takes.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor()} ({units()}), {count_of(torch.get_num_threads(), 'thread')}"
    return name if parallel.world_size() == 1 else f"{parallel.world_size()} x {name}"


def processor():
    """What the processor calls itself, or its kind where it does not: `arm64`."""
    called = re.search(r"^model name[ \t]*:[ \t]*(\S.*)$", cpuinfo(), re.MULTILINE)
    return called[1].strip() if called else platform.processor() or platform.machine()


def cpuinfo():
    """What Linux says of the processors; empty elsewhere."""
    return CPUINFO.read_text() if CPUINFO.exists() else ""


def units():
    """What this CPU multiplies with at its fastest: AMX, AVX512-BF16, or what torch says: AVX512, AVX2, ..."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else torch.backends.cpu.get_cpu_capability()
