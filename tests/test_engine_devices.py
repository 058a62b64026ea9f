"""Devices: the choice for other machines, and the facts of this one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from aftertune.engine.devices import (
    KERNEL_CACHES,
    Capabilities,
    cgroup_memory,
    choose_device,
    choose_dtype,
    cpu_flags,
    free_memory,
    matmul_rate,
    probe,
    proc_flags,
    set_threads,
    supported_dtypes,
)
from aftertune.errors import ResourceError

H100 = Capabilities(cuda=("NVIDIA H100",), cuda_bf16=(True,), cpu_bf16="amx_bf16")
T4 = Capabilities(cuda=("Tesla T4",), cuda_bf16=(False,), cpu_bf16="avx512_bf16")
MIXED = Capabilities(cuda=("NVIDIA A100", "Tesla T4"), cuda_bf16=(True, False))
MAC = Capabilities(mps=True, mps_bf16=True, cpu="Apple M2", cpu_bf16="bf16", cpu_fp16="fp16_arith")
OLD_MAC = Capabilities(mps=True)
EPYC = Capabilities(cpu="AMD EPYC", cpu_bf16="avx512_bf16")
OLD_CPU = Capabilities(cpu="Haswell")


@pytest.mark.parametrize(("facts", "device", "dtype"), [
    (H100, "cuda", "bfloat16"), (T4, "cuda", "float16"), (MIXED, "cuda", "bfloat16"), (MAC, "mps", "float16"),
    (OLD_MAC, "mps", "float16"), (EPYC, "cpu", "bfloat16"), (OLD_CPU, "cpu", "float32"),
])
def test_auto_takes_the_best_device_and_its_native_dtype(facts, device, dtype):
    assert choose_device("auto", facts) == device
    assert choose_dtype("auto", device, facts) == dtype


def test_each_cuda_device_is_judged_on_its_own():
    assert choose_device("cuda:1", MIXED) == "cuda:1"
    assert choose_dtype("auto", "cuda:1", MIXED) == "float16"
    assert choose_dtype("auto", "cpu", T4) == "bfloat16"


@pytest.mark.parametrize(("name", "facts", "expected"), [
    ("cuda", EPYC, "available: cpu (AMD EPYC)"), ("mps", T4, "available: cuda, cuda:0, cpu (Tesla T4)"),
    ("cuda:1", T4, "cuda:0"), ("gpu", H100, "available: cuda"), ("cdua", H100, "did you mean 'cuda'"),
])
def test_an_absent_device_is_an_error_that_names_what_is_there(name, facts, expected):
    with pytest.raises(ResourceError) as error:
        choose_device(name, facts)
    assert expected in str(error.value)
    assert error.value.exit_code == 4


@pytest.mark.parametrize(("dtype", "device", "facts", "expected"), [
    ("bfloat16", "cuda", T4, "no native bfloat16; device cuda supports auto, float16, float32"),
    ("bfloat16", "mps", OLD_MAC, "device mps supports auto, float16, float32"),
    ("float16", "cpu", EPYC, "device cpu supports auto, bfloat16, float32"),
    ("float61", "cpu", EPYC, "did you mean"), ("int8", "cuda", H100, "there is no such dtype"),
])
def test_an_unsupported_dtype_names_those_of_the_device(dtype, device, facts, expected):
    with pytest.raises(ResourceError) as error:
        choose_dtype(dtype, device, facts)
    assert expected in str(error.value)


def test_explicit_dtypes_that_work_are_taken():
    assert choose_dtype("bfloat16", "mps", MAC) == "bfloat16"
    assert choose_dtype("float16", "cpu", MAC) == "float16"
    assert choose_dtype("bfloat16", "cpu", OLD_CPU) == "bfloat16"  # slow, but right
    for facts in (H100, T4, MAC, OLD_CPU):
        assert choose_dtype("float32", choose_device("auto", facts), facts) == "float32"


def test_cpu_features_are_read_from_proc_on_x86_and_arm():
    assert proc_flags("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16\n")["amx_bf16"] is True
    assert proc_flags("Features\t: fp asimd bf16 svebf16\nCPU part: 1")["bf16"] is True
    assert proc_flags("model name : x") == {}


def test_torch_and_the_kernel_agree_on_this_cpu():
    text = open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else ""  # noqa: PTH110, PTH123, SIM115
    listed = proc_flags(text)
    if not listed:
        pytest.skip("no CPU flags in /proc/cpuinfo")
    for flag in ("avx512_bf16", "amx_bf16"):
        assert bool(cpu_flags().get(flag)) == (flag in listed)


def test_the_real_machine_gets_a_device_a_dtype_and_memory():
    import torch

    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    assert device in probe().devices
    assert dtype in supported_dtypes(device)
    matrix = torch.ones(4, 4, dtype=getattr(torch, dtype), device=device)
    assert float((matrix @ matrix)[0, 0]) == 4.0
    assert 2**20 < free_memory(device) < 2**50


def test_a_containers_limit_bounds_the_memory(tmp_path):
    assert cgroup_memory(tmp_path) == 2**63 - 1
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert cgroup_memory(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_memory(tmp_path) == 2**63 - 1


def test_threads_are_set_and_returned():
    import torch

    before = torch.get_num_threads()
    try:
        assert set_threads(1) == 1 == torch.get_num_threads()
        assert set_threads(2) == 2
        assert set_threads(None) <= max(1, len(os.sched_getaffinity(0)))
        with pytest.raises(ResourceError, match="at least 1"):
            set_threads(0)
    finally:
        torch.set_num_threads(before)


def test_the_speed_of_a_dtype_is_measured_once_for_each_number_of_threads(monkeypatch):
    import torch

    products = []
    real = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *a: products.append(1) or real(*a))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        rate = matmul_rate("cpu", "bfloat16")
        products.clear()
        assert matmul_rate("cpu", "bfloat16") == rate > 0
        assert not products
        torch.set_num_threads(3)
        assert matmul_rate("cpu", "bfloat16") > 0
        assert len(products) == 4
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="the resident memory is read from /proc")
def test_released_memory_goes_back_to_the_system() -> None:
    """Also where what is freed lies between pieces that stay, and where only the collector frees it."""
    program = """
import torch
from aftertune.engine.devices import set_threads
from aftertune.engine.memory import release_memory

def resident():
    status = open("/proc/self/status").read()
    return int(status.partition("RssAnon:")[2].split()[0]) // 1024

class Model:
    def __init__(self):
        self.weights, self.optimizer = [torch.ones(2**18) for _ in range(200)], self  # 200 MiB in a circle

set_threads(1)
release_memory()
before, kept = resident(), []
for n in range(4):
    model = Model()
    kept.append(torch.ones(1000))  # after the model on the heap
    del model
    release_memory()
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40, "MiB, of which one model has 200"


@pytest.mark.skipif(sys.platform != "linux", reason="the resident memory is read from /proc")
def test_products_of_many_shapes_leave_few_kernels_in_memory() -> None:
    program = """
import torch
from aftertune.engine.devices import set_threads
from aftertune.engine.memory import release_memory, resident_memory

set_threads(1)
weight = torch.ones(576, 576, dtype=torch.bfloat16)

def work(lengths):
    for n in lengths:
        torch.nn.functional.linear(torch.ones(n, 576, dtype=torch.bfloat16), weight)
    release_memory()
    return resident_memory() // 2**20

print(-work(range(32, 312)) + work(range(312, 612)))
"""
    unset = {k: v for k, v in os.environ.items() if k not in KERNEL_CACHES}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=unset)
    assert int(done.stdout) < 40, "MiB for 300 more shapes"
