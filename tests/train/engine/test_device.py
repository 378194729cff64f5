"""What the device decides."""

import os

import pytest
import ranked
import torch

import models
from train import UserError
from train.engine import device as engine
from train.engine.device import autocast, device_of, precision_of


@pytest.fixture
def ranks(monkeypatch):
    """ranks(rank): this process is one of two, on one machine."""

    def use(rank):
        for name, value in ranked.environments(2)[rank].items():
            monkeypatch.setenv(name, value)

    return use


def test_float32_is_float32_wherever_a_gpu_has_less():
    """torch's own default for convolutions is TF32; for products, too, with the variable that conftest.py sets."""
    assert os.environ["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] == "1"
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_a_device_that_is_not_there_is_a_users_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(engine, "DRIVER", tmp_path / "none")
    with pytest.raises(UserError, match="--device cuda: no CUDA device"):
        device_of("cuda")
    monkeypatch.setattr(engine, "DRIVER", tmp_path), monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match="--device cuda: an NVIDIA driver is installed, but torch cannot use a GPU"):
        device_of("cuda")
    assert device_of("auto").type == device_of("cpu").type == "cpu"


@pytest.mark.parametrize("there, visible, told", [
    (True, None, True), (True, "0,1", True), (True, "", False), (True, "-1", False), (False, None, False)])
def test_a_gpu_that_torch_cannot_use_is_told(tmp_path, monkeypatch, capsys, ranks, there, visible, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(engine, "DRIVER", tmp_path if there else tmp_path / "none")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_of("auto").type == "cpu"
    assert ("torch cannot use a GPU" in capsys.readouterr().err) == told
    for rank, lines in ((0, told), (1, 0)):  # of several ranks the first alone tells it
        ranks(rank), device_of("auto")
        assert len(capsys.readouterr().err.splitlines()) == lines
    assert device_of("cpu").type == "cpu" and not capsys.readouterr().err  # who names it knows
    monkeypatch.setattr(torch.version, "cuda", None)
    assert device_of("auto").type == "cpu" and not capsys.readouterr().err  # nor is it of a torch for CPUs


@pytest.mark.parametrize("capability, kind", [((6, 1), "cpu"), ((7, 0), "cpu"), ((7, 5), "cuda"), ((12, 0), "cuda")])
def test_a_gpu_that_this_torch_has_no_kernels_for_is_told(monkeypatch, capsys, capability, kind):
    told = "this build of torch has no kernels for so old a GPU as the Toy 1080"
    for name, value in {"is_available": True, "get_arch_list": ["sm_75", "sm_80", "sm_90a", "sm_120f", "compute_120"],
                        "get_device_capability": capability, "get_device_name": "Toy 1080", "device_count": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # set by device_of
    assert device_of("auto").type == kind
    assert capsys.readouterr().err.endswith(f": {told}: using the CPU\n" * (kind == "cpu"))
    if kind == "cpu":
        with pytest.raises(UserError, match=f"--device cuda: {told}; use"):
            device_of("cuda")


def test_more_ranks_than_gpus_are_told_of_once(monkeypatch, typed, ranks):
    """The last rank has no GPU, but all know: the first is the one that speaks."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for rank, lines in ((0, 1), (1, 0)):
        ranks(rank)
        code, _, err = typed(lambda: device_of("auto"))
        assert code == 2 and err.count("--nproc-per-node is above the number of GPUs here, 1\n") == lines


def test_each_rank_takes_the_gpu_of_its_number(monkeypatch, ranks):
    taken = []
    for name, value in {"is_available": True, "get_arch_list": [], "device_count": 2}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # set by device_of
    for rank in (0, 1):
        ranks(rank), device_of("cuda")
    assert taken == [0, 1]


@pytest.mark.parametrize("kind, units, auto", [
    ("cuda", True, "bfloat16"), ("cuda", False, "float32"), ("cpu", True, "bfloat16"), ("cpu", False, "float32")])
def test_auto_is_bfloat16_where_there_are_units_for_it(monkeypatch, kind, units, auto):
    monkeypatch.setattr(engine, "faster_in_bfloat16", lambda: units if kind == "cpu" else not units)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: including_emulation or units)
    device = torch.device(kind)
    assert precision_of("auto", device) == auto
    assert [precision_of(name, device) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize("vendor, avx512_bf16, amx, units", [
    ("AuthenticAMD", True, False, True), ("AuthenticAMD", False, False, False),
    ("GenuineIntel", True, False, False), ("GenuineIntel", True, True, True)])
def test_bfloat16_is_faster_with_amx_or_with_amds_avx512_bf16(tmp_path, monkeypatch, vendor, avx512_bf16, amx, units):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(engine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert engine.faster_in_bfloat16() == units


@pytest.mark.parametrize("known, avx512_bf16, amx, told", [
    ("model name\t: AMD EPYC 7763\n", False, False, "AMD EPYC 7763 (AVX2)"),
    ("model name\t: AMD EPYC 9555\n", True, False, "AMD EPYC 9555 (AVX512-BF16)"),
    ("model name\t: Intel Xeon\n", True, True, "Intel Xeon (AMX)"),
    ("model name\t:\nflags\t: fpu\n", False, False, "powerful (AVX2)"),  # named by nothing
    (None, False, False, "powerful (AVX2)")])  # not on Linux
def test_a_cpu_is_told_by_its_name_and_its_units(tmp_path, monkeypatch, ranks, known, avx512_bf16, amx, told):
    if known:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{known}cpu MHz\t: 2\n\nprocessor\t: 1\n{known}")
    monkeypatch.setattr(engine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(engine.platform, "processor", lambda: "")
    monkeypatch.setattr(engine.platform, "machine", lambda: "powerful")
    assert engine.hardware(torch.device("cpu")) == f"{told}, 1 thread"
    ranks(0)
    assert engine.hardware(torch.device("cpu")) == f"2 x {told}, 1 thread"


def test_autocast_is_on_in_bfloat16_alone():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for precision, wanted in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
        with autocast(x.device, precision):
            assert layer(x).dtype == wanted


@pytest.mark.parametrize("kind, name, steps, compile, tools, expected", [
    ("cuda", "resnet18", 10_000, None, True, True), ("cuda", "resnet18", 9_999, None, True, False),
    ("cuda", "resnet18", 10_000, None, False, False), ("cuda", "resnet18", 1, True, True, True),
    ("cuda", "resnet18", 10_000, False, True, False), ("cpu", "resnet18", 2_000, None, True, False),
    ("cpu", "resnet18", 1, True, True, True), ("cpu", "seresnet164", 2_000, None, True, True),
    ("cpu", "shakeshake26-32", 2_000, None, True, True), ("cpu", "seresnet164", 1_999, None, True, False),
    ("cpu", "seresnet164", 2_000, None, False, False), ("cpu", "seresnet164", 2_000, False, True, False)])
def test_long_runs_on_cuda_and_of_deep_networks_are_compiled_where_kernels_can_be_built(
        tmp_path, monkeypatch, kind, name, steps, compile, tools, expected):
    with torch.device("meta"):
        network = models.build(name)
    monkeypatch.delenv("CC", raising=False), monkeypatch.delenv("CXX", raising=False)
    compiler, device = "clang" if kind == "cuda" else "g++", torch.device(kind)
    monkeypatch.setattr(engine.shutil, "which", lambda name: f"/usr/bin/{name}" if tools and name == compiler else None)
    monkeypatch.setattr(engine.sysconfig, "get_path", lambda *_: tmp_path)
    (tmp_path / "Python.h").touch()
    hindered = compile is None and steps in (2_000, 10_000) and (kind, name) != ("cpu", "resnet18")
    told = f"not compiled: {'gcc or clang' if kind == 'cuda' else 'g++'} or Python.h is missing"
    assert engine.compilation(compile, device, steps, network) == (expected, told * (hindered and not expected))
    (tmp_path / "Python.h").unlink()
    assert engine.compilation(False, device, steps, network) == (False, "")
    assert engine.compilation(None, device, 10_000, network) == (False, told * ((kind, name) != ("cpu", "resnet18")))
    with pytest.raises(UserError, match=r"--compile needs a compiler \(.*\) and Python's headers"):
        engine.compilation(True, device, steps, network)


def test_several_processes_on_cpus_compile_only_by_the_flag(ranks):
    with torch.device("meta"):
        network = models.build("seresnet164")
    assert engine.compiling_pays(torch.device("cpu"), 2_000, network)
    ranks(0)
    assert not engine.compiling_pays(torch.device("cpu"), 10_000, network)
    assert engine.compiling_pays(torch.device("cuda"), 10_000, network)


@pytest.mark.parametrize("kind, size, mode", [("cuda", 1, "reduce-overhead"), ("cuda", 2, "default"),
                                              ("cpu", 1, "default")])
def test_cuda_graphs_are_for_one_gpu(monkeypatch, kind, size, mode):
    monkeypatch.setattr(engine.distributed, "world_size", lambda: size)
    monkeypatch.setattr(torch, "compile", lambda network, **options: options)
    assert engine.compiled(None, torch.device(kind)) == {"dynamic": False, "mode": mode}
