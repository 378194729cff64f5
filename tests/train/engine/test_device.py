"""What the device decides."""

import pytest
import torch

from train.engine import device as engine
from train.engine import parallel
from train.engine.command import UserError
from train.engine.device import autocast, device_of, precision_of


def test_a_device_that_is_not_there_is_a_users_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: no CUDA device"):
        device_of("cuda")
    assert device_of("auto").type == device_of("cpu").type == "cpu"


@pytest.mark.parametrize("there, visible, told", [
    (True, None, True), (True, "0,1", True), (True, "", False), (True, "-1", False), (False, None, False)])
def test_a_gpu_that_torch_cannot_use_is_told(tmp_path, monkeypatch, capsys, there, visible, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(engine, "DRIVER", tmp_path if there else tmp_path / "none")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device_of("auto").type == "cpu"
    assert ("torch can use no GPU" in capsys.readouterr().err) == told
    assert device_of("cpu").type == "cpu" and not capsys.readouterr().err  # who names it knows
    monkeypatch.setattr(torch.version, "cuda", None)
    assert device_of("auto").type == "cpu" and not capsys.readouterr().err  # nor is it of a torch for CPUs


def test_a_warning_is_not_the_one_complaint_of_a_failing_run(tmp_path, monkeypatch, capsys):
    """Of several ranks the first alone tells why all end."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(engine, "DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(parallel, "store", lambda: pytest.fail("the table of the ranks"))
    for rank, lines in (("0", 1), ("1", 0)):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        device_of("auto")
        assert len(capsys.readouterr().err.splitlines()) == lines


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
def test_intels_avx512_bf16_alone_is_no_reason_for_bfloat16(tmp_path, monkeypatch, vendor, avx512_bf16, amx, units):
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
def test_a_cpu_is_told_by_its_name_and_its_units(tmp_path, monkeypatch, known, avx512_bf16, amx, told):
    if known:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{known}cpu MHz\t: 2\n\nprocessor\t: 1\n{known}")
    monkeypatch.setattr(engine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(engine.platform, "processor", lambda: "")
    monkeypatch.setattr(engine.platform, "machine", lambda: "powerful")
    assert engine.hardware(torch.device("cpu")) == f"{told}, 1 thread"
    monkeypatch.setattr(engine.parallel, "world_size", lambda: 2)
    assert engine.hardware(torch.device("cpu")) == f"2 x {told}, 1 thread"


def test_autocast_is_on_in_bfloat16_alone():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for precision, wanted in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
        with autocast(x.device, precision):
            assert layer(x).dtype == wanted
