"""The chunked head equals a full log-softmax, in values and gradients, and never holds [tokens, vocabulary]."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dpeer.model import logprob
from dpeer.model.logprob import PLAIN, Shape, chunk_rows, response_sums, token_logprobs

N, H, V = 23, 16, 70


def inputs(dtype: torch.dtype = torch.float32, rows: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [N, H], weight [V, H], targets [N], upstream gradient [N]."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, H, generator=generator).to(dtype)
    weight = torch.randn(V, H, generator=generator).to(dtype)
    targets = torch.randint(0, V, (rows,), generator=generator)
    if rows > 2:
        targets[0], targets[1] = 0, V - 1
    return hidden, weight, targets, torch.randn(rows, generator=generator)


def full(hidden: Tensor, weight: Tensor, targets: Tensor, shape: Shape = PLAIN) -> Tensor:
    """Oracle in fp64: the whole table at once."""
    logits = shape.scale * (hidden.double() @ weight.double().T)
    if shape.cap:
        logits = shape.cap * torch.tanh(logits / shape.cap)
    table = torch.log_softmax(logits, dim=-1)
    return table[torch.arange(len(targets)), targets]


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("shape", [PLAIN, Shape(0.5), Shape(1.0, 3.0), Shape(2.0, 5.0)], ids=str)
@pytest.mark.parametrize("chunk", [1, 7, 23, 24, 10**9])
def test_equals_full_log_softmax(chunk: int, shape: Shape, frozen: bool) -> None:
    hidden, weight, targets, upstream = inputs()
    results = []
    for function in (lambda *a: token_logprobs(*a, chunk, shape), lambda *a: full(*a, shape)):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
        values = function(h, w, targets)
        values.backward(upstream.to(values.dtype))
        results.append((values, h.grad, w.grad))
    (found, d_hidden, d_weight), (expected, d_hidden_full, d_weight_full) = results
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(d_hidden, d_hidden_full, rtol=1e-5, atol=1e-5)
    assert (d_weight is None) == frozen
    if not frozen:
        torch.testing.assert_close(d_weight, d_weight_full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_logits_of_bf16_operands_are_not_rounded(frozen: bool) -> None:
    """Logits above 16, where bf16 has steps of 0.125: values as exact as in fp32, gradients to bf16's own rounding."""
    hidden, weight, targets, upstream = inputs(torch.bfloat16)
    hidden = 4 * hidden
    results = []
    for function in (token_logprobs, full):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
        values = function(h, w, targets)
        values.backward(upstream.to(values.dtype))
        results.append((values, h.grad, w.grad))
    (found, d_hidden, d_weight), (expected, d_hidden_full, d_weight_full) = results
    assert (hidden.float() @ weight.float().T).max() > 16
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(d_hidden, d_hidden_full, rtol=2e-2, atol=2e-2)
    if not frozen:
        torch.testing.assert_close(d_weight, d_weight_full, rtol=2e-2, atol=2e-2)


def test_weight_gradient_is_summed_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpeer.model.logprob.WEIGHT_ROWS", 9)
    hidden, weight, targets, upstream = inputs()
    w, full_w = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    token_logprobs(hidden, w, targets, 5).backward(upstream)
    full(hidden, full_w, targets).backward(upstream.double())
    torch.testing.assert_close(w.grad, full_w.grad, rtol=1e-5, atol=1e-5)


def test_weight_gradient_is_summed_within_the_product_where_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA is handed: the fp32 sum itself as addend and as output, operands in bf16, no blocks of rows."""
    sums: list[tuple[int, ...]] = []

    def addmm(total: Tensor, a: Tensor, b: Tensor, *, out_dtype: torch.dtype, out: Tensor) -> Tensor:
        assert out is total and total.dtype == out_dtype == torch.float32 and a.dtype == b.dtype == torch.bfloat16
        sums.append(tuple(total.shape))
        return total.add_(a.float() @ b.float())

    grads = []
    for fused in (False, True):
        hidden, weight, targets, upstream = inputs(torch.bfloat16)
        w = weight.requires_grad_()
        with monkeypatch.context() as patch:
            patch.setattr(logprob, "_adds_within_product", lambda _, fused=fused: fused)
            patch.setattr(torch, "addmm", addmm)
            token_logprobs(hidden, w, targets, 5).backward(upstream)
        grads.append(w.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-2, atol=1e-3)
    assert sums == [(V, H)] * 5


@pytest.mark.parametrize("answer", ["adds", "refuses", "forgets the sum"])
def test_a_device_is_asked_once_whether_it_adds_within_the_product(
    monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """Some versions take no fp32 addend beside bf16 operands; none may get it wrong unnoticed."""

    def addmm(total: Tensor, a: Tensor, b: Tensor, *, out_dtype: torch.dtype, out: Tensor) -> Tensor:
        if answer == "refuses":
            raise RuntimeError("self and mat2 must have the same dtype")
        product = a.float() @ b.float()
        return out.copy_(product if answer == "forgets the sum" else total + product)

    eye, ones = torch.eye, torch.ones
    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(torch, "eye", lambda *shape, device, dtype: eye(*shape, dtype=dtype))
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    logprob._adds_within_product.cache_clear()
    assert logprob._adds_within_product(torch.device("cuda")) is (answer == "adds")
    logprob._adds_within_product.cache_clear()
    assert not logprob._adds_within_product(torch.device("cpu"))


def test_chunk_follows_the_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [chunk_rows("auto", d) for d in (cpu, gpu, torch.device("meta"))] == [256, 2048, 2048]
    assert chunk_rows(7, cpu) == chunk_rows(7, gpu) == 7


@pytest.mark.parametrize("overwrite", [False, True])
def test_logsumexp_is_torchs_to_the_bit(overwrite: bool) -> None:
    table = 50 * torch.randn(20, 1000, generator=torch.Generator().manual_seed(1))
    kept = table.clone()
    assert torch.equal(logprob._logsumexp(table, overwrite), kept.logsumexp(-1))
    assert overwrite or torch.equal(table, kept)


def test_weight_alone_can_be_trained() -> None:
    hidden, weight, targets, upstream = inputs()
    w, full_w = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    token_logprobs(hidden, w, targets, 5).backward(upstream)
    full(hidden, full_w, targets).backward(upstream.double())
    torch.testing.assert_close(w.grad, full_w.grad, rtol=1e-5, atol=1e-5)


def test_tied_weight_sums_both_uses() -> None:
    """The embedding is input and output weight at once: its gradient is the sum of both paths."""
    _, weight, targets, upstream = inputs()
    ids = torch.arange(N) * 3 % V
    grads = []
    for function in (lambda *a: token_logprobs(*a, 4), full):
        w = weight.clone().requires_grad_()
        function(torch.tanh(w[ids]), w, targets).backward(upstream.double() if function is full else upstream)
        grads.append(w.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-5)


def test_numerical_gradient() -> None:
    """Against finite differences of the forward itself, which shares no formula with the backward."""
    hidden, weight, targets, upstream = inputs()
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    (token_logprobs(h, w, targets, 6) * upstream).sum().backward()
    for x, grad in ((hidden, h.grad), (weight, w.grad)):
        assert grad is not None
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        step = 1e-3 * direction

        def value(sign: int, x: Tensor = x, step: Tensor = step) -> float:
            moved = [t + sign * step if t is x else t for t in (hidden, weight)]
            return float((token_logprobs(moved[0], moved[1], targets, 6).double() * upstream).sum())

        assert (value(1) - value(-1)) / 2e-3 == pytest.approx(float((grad * direction).sum()), rel=2e-3)


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_bf16_is_close(frozen: bool) -> None:
    hidden, weight, targets, upstream = inputs(torch.bfloat16)
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
    found = token_logprobs(h, w, targets, 7)
    found.backward(upstream)
    fh, fw = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
    expected = full(fh, fw, targets)
    expected.backward(upstream.double())
    assert found.dtype == torch.float32 and h.grad is not None and h.grad.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=5e-2)
    torch.testing.assert_close(h.grad, fh.grad, rtol=5e-2, atol=5e-2)
    if not frozen:
        torch.testing.assert_close(w.grad, fw.grad, rtol=5e-2, atol=5e-2)


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, targets, _ = inputs()
    h, w = (300 * hidden).requires_grad_(), weight.clone().requires_grad_()
    values = token_logprobs(h, w, targets, 3)
    values.sum().backward()
    torch.testing.assert_close(values.double(), full(300 * hidden, weight, targets), rtol=1e-5, atol=1e-3)
    assert h.grad is not None and h.grad.isfinite().all() and w.grad is not None and w.grad.isfinite().all()


def test_backward_twice() -> None:
    """The forward's products must not be overwritten by a first backward."""
    for frozen in (False, True):
        hidden, weight, targets, upstream = inputs()
        h = hidden.requires_grad_()
        values = token_logprobs(h, weight.requires_grad_(not frozen), targets, 5)
        first, second = (torch.autograd.grad(values, h, upstream, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, second)


def test_no_rows() -> None:
    hidden, weight, targets, _ = inputs(rows=0)
    h = hidden.requires_grad_()
    values = token_logprobs(h, weight.requires_grad_(), targets)
    values.sum().backward()
    assert values.shape == (0,) and weight.grad is not None and not weight.grad.any()


class Largest(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor)), 0)
        return out


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_never_holds_tokens_by_vocabulary(dtype: torch.dtype, frozen: bool) -> None:
    rows, hidden_size, vocabulary, chunk = 640, 8, 1000, 16
    hidden = torch.randn(rows, hidden_size).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, hidden_size).to(dtype).requires_grad_(not frozen)
    targets = torch.randint(0, vocabulary, (rows,))
    with Largest() as seen:
        token_logprobs(hidden, weight, targets, chunk).sum().backward()
    assert seen.elements == chunk * vocabulary < rows * vocabulary / 30
    with Largest() as everything:  # the instrument sees a full table when there is one
        token_logprobs(hidden, weight, targets, rows)
    assert everything.elements == rows * vocabulary


def test_response_sums_are_fp64() -> None:
    """A margin is a small difference of large sums: 4000 tokens of -5.0000001 nats lose 1e-4 in fp32."""
    values = torch.full((4001,), -5.1, dtype=torch.float32)
    values[-1] = 1e-5
    row_response = torch.cat([torch.zeros(4000, dtype=torch.int64), torch.tensor([2])])
    sums = response_sums(values, row_response, 3)
    assert sums.dtype == torch.float64
    assert sums[0].item() == 4000 * float(torch.tensor(-5.1)) and sums[1] == 0 and sums[2].item() == pytest.approx(1e-5)


def test_response_sums_pass_gradients_to_their_rows() -> None:
    values = torch.randn(5, requires_grad=True)
    total = (response_sums(values, torch.tensor([1, 0, 1, 2, 1]), 3) * torch.tensor([10.0, 20.0, 30.0])).sum()
    total.backward()
    assert values.grad is not None and values.grad.tolist() == [20.0, 10.0, 20.0, 30.0, 20.0]
