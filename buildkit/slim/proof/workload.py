"""Runs torch's operations with fixed inputs and writes a digest of each result, which slimming must not change.

This is a separate program, run by path with the site-packages under test as its only ones; it imports nothing of
buildkit. It writes one JSON document: versions, device, a digest or an error for each case, start-up time and memory,
and the libraries that were mapped.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

_STARTED = time.monotonic()
import torch  # noqa: E402 - the time that it takes is measured

_IMPORTED = time.monotonic()

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["CASES", "SERVED", "main"]

CASES: dict[str, Callable[[str], Iterable[torch.Tensor]]] = {}
SERVED = ("encoder of MiniLM's size", "embeddings of MiniLM's size", "classifier of DeBERTa-base's size")
"""The cases that the service consists of: no profile may remove a library that they call."""


def case(name: str) -> Callable[[Callable[[str], Iterable[torch.Tensor]]], Callable[[str], Iterable[torch.Tensor]]]:
    """Adds a function from a device to tensors to the table."""

    def enter(function: Callable[[str], Iterable[torch.Tensor]]) -> Callable[[str], Iterable[torch.Tensor]]:
        CASES[name] = function
        return function

    return enter


def _matmul(device: str, dtype: torch.dtype) -> Iterable[torch.Tensor]:
    for rows, inner, columns in ((64, 64, 64), (257, 384, 129), (2048, 1024, 2048), (1, 768, 30522)):
        yield torch.randn(rows, inner, device=device, dtype=dtype) @ torch.randn(
            inner, columns, device=device, dtype=dtype
        )
    batch = torch.randn(12, 128, 64, device=device, dtype=dtype)
    yield torch.bmm(batch, batch.transpose(1, 2))
    yield torch.nn.functional.linear(
        batch, torch.randn(32, 64, device=device, dtype=dtype), torch.randn(32, device=device, dtype=dtype)
    )


@case("matmul fp32")
def _(device: str) -> Iterable[torch.Tensor]:
    torch.backends.cuda.matmul.allow_tf32 = False
    return _matmul(device, torch.float32)


@case("matmul tf32")
def _(device: str) -> Iterable[torch.Tensor]:
    torch.backends.cuda.matmul.allow_tf32 = True
    yield from _matmul(device, torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = False


@case("matmul fp64")
def _(device: str) -> Iterable[torch.Tensor]:
    return _matmul(device, torch.float64)


@case("matmul bf16")
def _(device: str) -> Iterable[torch.Tensor]:
    return _matmul(device, torch.bfloat16)


@case("matmul fp16")
def _(device: str) -> Iterable[torch.Tensor]:
    return _matmul(device, torch.float16)


@case("matmul fp8")
def _(device: str) -> Iterable[torch.Tensor]:
    left = torch.randn(64, 128, device=device).to(torch.float8_e4m3fn)
    right = torch.randn(256, 128, device=device).to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=device)
    yield torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)  # noqa: SLF001 - no public name


@case("matmul int8")
def _(device: str) -> Iterable[torch.Tensor]:
    left = torch.randint(-128, 127, (64, 128), device=device, dtype=torch.int8)
    right = torch.randint(-128, 127, (128, 64), device=device, dtype=torch.int8)
    yield torch._int_mm(left, right)  # noqa: SLF001 - no public name


def _convolutions(device: str, dtype: torch.dtype) -> Iterable[torch.Tensor]:
    functional = torch.nn.functional
    image = torch.randn(4, 16, 33, 33, device=device, dtype=dtype)
    yield functional.conv2d(image, torch.randn(32, 16, 3, 3, device=device, dtype=dtype), padding=1)
    yield functional.conv2d(image, torch.randn(32, 4, 5, 5, device=device, dtype=dtype), groups=4, stride=2)
    yield functional.conv_transpose2d(image, torch.randn(16, 8, 3, 3, device=device, dtype=dtype))
    yield functional.conv1d(image[:, :, 0], torch.randn(8, 16, 3, device=device, dtype=dtype))
    yield functional.conv3d(image.unsqueeze(0), torch.randn(2, 4, 3, 3, 3, device=device, dtype=dtype))


@case("convolution fp32")
def _(device: str) -> Iterable[torch.Tensor]:
    return _convolutions(device, torch.float32)


@case("convolution fp16")
def _(device: str) -> Iterable[torch.Tensor]:
    return _convolutions(device, torch.float16)


@case("convolution gradients")
def _(device: str) -> Iterable[torch.Tensor]:
    with torch.enable_grad():
        layer = torch.nn.Conv2d(16, 32, 3, device=device)
        image = torch.randn(4, 16, 17, 17, device=device, requires_grad=True)
        layer(image).square().sum().backward()
    yield image.grad
    yield layer.weight.grad


def _attention(device: str, backend: str) -> Iterable[torch.Tensor]:
    kinds = torch.nn.attention.SDPBackend
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        query = torch.randn(2, 12, 128, 64, device=device, dtype=dtype)
        try:
            with torch.nn.attention.sdpa_kernel(getattr(kinds, backend)):
                yield torch.nn.functional.scaled_dot_product_attention(query, query, query)
                yield torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
        except RuntimeError as error:  # not every back-end supports every type; the error must not change
            yield _text(error)


for _backend in ("MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):

    @case(f"attention {_backend.lower()}")
    def _(device: str, backend: str = _backend) -> Iterable[torch.Tensor]:
        return _attention(device, backend)


@case("fft")
def _(device: str) -> Iterable[torch.Tensor]:
    for size in (64, 100, 1000, 4099, 65536):
        signal = torch.randn(3, size, device=device)
        yield torch.view_as_real(torch.fft.rfft(signal))
        yield torch.fft.irfft(torch.fft.rfft(signal))
    image = torch.randn(2, 60, 77, device=device, dtype=torch.complex64)
    yield torch.view_as_real(torch.fft.fft2(image))
    yield torch.view_as_real(torch.fft.ifft2(image.to(torch.complex128)))


@case("sparse")
def _(device: str) -> Iterable[torch.Tensor]:
    dense = torch.randn(256, 256, device=device)
    dense[dense.abs() < 1] = 0
    right = torch.randn(256, 64, device=device)
    yield dense.to_sparse_csr() @ right
    yield torch.sparse.mm(dense.to_sparse(), right)
    yield (dense.to_sparse_csr() @ dense.to_sparse_csr()).to_dense()


@case("sparse 2:4")
def _(device: str) -> Iterable[torch.Tensor]:
    mask = torch.tensor([0, 0, 1, 1], device=device).tile((128, 32)).bool()
    weight = torch.randn(128, 128, device=device, dtype=torch.float16) * mask
    sparse = torch.sparse.to_sparse_semi_structured(weight)
    yield torch.mm(sparse, torch.randn(128, 64, device=device, dtype=torch.float16))


@case("linear algebra")
def _(device: str) -> Iterable[torch.Tensor]:
    matrix = torch.randn(64, 64, device=device, dtype=torch.float64)
    definite = matrix @ matrix.T + 64 * torch.eye(64, device=device, dtype=torch.float64)
    yield torch.linalg.cholesky(definite)
    yield torch.linalg.inv(definite)
    yield torch.linalg.solve(definite, matrix)
    yield torch.linalg.eigvalsh(definite)
    yield torch.linalg.svdvals(matrix)
    yield torch.linalg.qr(matrix)[1]
    yield torch.linalg.det(matrix)
    yield torch.linalg.cholesky(definite.expand(7, 64, 64).contiguous())


@case("linear algebra error")
def _(device: str) -> Iterable[torch.Tensor]:
    yield torch.linalg.cholesky(-torch.eye(4, device=device))


@case("random numbers")
def _(device: str) -> Iterable[torch.Tensor]:
    yield torch.rand(1000, device=device)
    yield torch.randn(1001, device=device, dtype=torch.float64)
    yield torch.randint(0, 1000, (999,), device=device)
    yield torch.randperm(5000, device=device)
    yield torch.bernoulli(torch.full((777,), 0.3, device=device))
    yield torch.multinomial(torch.rand(50, device=device), 20)
    yield torch.nn.functional.dropout(torch.ones(4096, device=device), 0.1)


@case("recurrent layers")
def _(device: str) -> Iterable[torch.Tensor]:
    for kind in (torch.nn.LSTM, torch.nn.GRU):
        layer = kind(64, 96, num_layers=2, bidirectional=True, device=device)
        yield layer(torch.randn(20, 3, 64, device=device))[0]


@case("pointwise and reductions")
def _(device: str) -> Iterable[torch.Tensor]:
    functional = torch.nn.functional
    values = torch.randn(129, 1000, device=device)
    yield functional.softmax(values, dim=-1)
    yield functional.layer_norm(values, (1000,))
    yield functional.gelu(values.to(torch.bfloat16))
    yield functional.embedding(torch.arange(0, 129, 2, device=device), values)
    yield values.sum(0)
    yield values.to(torch.float16).mean()
    yield values.argsort(dim=-1, stable=True)
    yield values.topk(7, dim=-1).values
    yield (values * 1000).long().cumsum(-1)
    yield (values * 3).long().unique()
    yield values[:, values[0] > 0]
    yield torch.where(values > 0, values.exp(), values.erf())


@case("kernels compiled at run time")
def _(device: str) -> Iterable[torch.Tensor]:
    """The jiterator of torch compiles these with NVRTC at the first call."""
    values = torch.linspace(0.1, 5, 1000, device=device)
    yield torch.special.airy_ai(values)
    yield torch.special.bessel_j0(values)
    yield torch.special.zeta(values + 1.5, values)


@case("graphs")
def _(device: str) -> Iterable[torch.Tensor]:
    if device == "cpu":
        return
    static = torch.randn(128, 128, device=device)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        (static @ static).relu()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = (static @ static).relu()
    graph.replay()
    yield result


@case("collectives with one process")
def _(device: str) -> Iterable[torch.Tensor]:
    distributed = torch.distributed
    store = distributed.HashStore()
    distributed.init_process_group("nccl" if device != "cpu" else "gloo", store=store, rank=0, world_size=1)
    try:
        values = torch.randn(1000, device=device)
        distributed.all_reduce(values)
        yield values
    finally:
        distributed.destroy_process_group()


@case("encoder of MiniLM's size")
def _(device: str) -> Iterable[torch.Tensor]:
    layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, activation="gelu", batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).to(device).eval()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        yield encoder.to(dtype)(torch.randn(8, 128, 384, device=device, dtype=dtype))


@case("embeddings of MiniLM's size")
def _(device: str) -> Iterable[torch.Tensor]:
    if importlib.util.find_spec("transformers") is None:
        return
    from transformers import BertConfig, BertModel  # noqa: PLC0415 - may not be installed

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = BertModel(config).to(device).eval()
    tokens = torch.randint(0, 1000, (8, 128), device=device)
    mask = (torch.arange(128, device=device) < torch.arange(16, 129, 16, device=device)[:, None]).long()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        states = model.to(dtype)(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        yield torch.nn.functional.normalize(pooled)


@case("classifier of DeBERTa-base's size")
def _(device: str) -> Iterable[torch.Tensor]:
    if importlib.util.find_spec("transformers") is None:
        return
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification  # noqa: PLC0415 - may not be installed

    config = DebertaV2Config(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, num_labels=3,
        relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"],
    )  # fmt: skip
    model = DebertaV2ForSequenceClassification(config).to(device).eval()
    tokens = torch.randint(0, 1000, (2, 64), device=device)
    yield model(tokens).logits


def main() -> int:
    """Runs every case, or those named, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--case", action="append", help="run only this case; may be repeated")
    parser.add_argument(
        "--served", action="store_const", const=list(SERVED), dest="case", help="run only the service's cases"
    )
    parser.add_argument("--without-cudnn", action="store_true", help="do not let torch use cuDNN")
    options = parser.parse_args()
    if options.without_cudnn:
        torch.backends.cudnn.enabled = False
        torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    has_device = torch.cuda.is_available()
    device = "cuda" if has_device else "cpu"
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    free_bytes = torch.cuda.mem_get_info()[0] if has_device else 0
    first = _run(device, lambda device: [torch.ones(8, device=device) * 2])
    first_seconds = time.monotonic() - _IMPORTED
    device_bytes = free_bytes - torch.cuda.mem_get_info()[0] if has_device else 0
    host_bytes = _resident_bytes()
    names = options.case or list(CASES)
    report = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
        "device": torch.cuda.get_device_name() if has_device else None,
        "capability": "{}.{}".format(*torch.cuda.get_device_capability()) if has_device else None,
        "module_loading": os.environ.get("CUDA_MODULE_LOADING", "LAZY"),
        "start": {
            "import_seconds": _IMPORTED - _STARTED,
            "first_kernel_seconds": first_seconds,
            "host_bytes": host_bytes,
            "device_bytes": device_bytes,
        },
        "cases": {"first kernel": first, **{name: _run(device, CASES[name]) for name in names}},
        "mapped": _mapped(),
    }
    options.report.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", "utf-8")
    return 0


def _run(device: str, function: Callable[[str], Iterable[torch.Tensor]]) -> str:
    """Returns a digest of all results of a case, or its error."""
    torch.manual_seed(20260)
    digest = hashlib.sha256()
    try:
        with torch.no_grad():
            for result in function(device):
                plain = result.detach().contiguous().cpu()
                digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
                digest.update(ctypes.string_at(plain.data_ptr(), plain.numel() * plain.element_size()))
        if device != "cpu":
            torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - an error is a result to compare
        return f"{type(error).__name__}: {_first_line(error)}"
    return digest.hexdigest()


def _text(error: RuntimeError) -> torch.Tensor:
    return torch.tensor(list(_first_line(error).encode()), dtype=torch.uint8)


def _first_line(error: BaseException) -> str:
    """Returns the first line of a message, without addresses and file paths."""
    lines = str(error).splitlines() or [""]
    return re.sub(r"0x[0-9a-f]+|/\S+/site-packages|/\S+(?=/torch/)", "...", lines[0])


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def _mapped() -> list[str]:
    """Returns the paths of the shared objects that this process maps."""
    maps = Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines()
    return sorted({line.split(maxsplit=5)[5] for line in maps if ".so" in line})


if __name__ == "__main__":
    sys.exit(main())
