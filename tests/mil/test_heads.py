"""One property suite for all heads, and each head against its equations on a small case."""

from __future__ import annotations

import pytest
import torch

from stainssl.mil.heads import HEADS, create, masked_softmax

DIM, CLASSES, HIDDEN = 6, 3, 8
every_head = pytest.mark.parametrize("kind", sorted(HEADS))


def _head(kind: str):
    torch.manual_seed(1)
    return create(kind, DIM, CLASSES, HIDDEN, dropout=0.5).eval()


def _bag(n: int = 7) -> torch.Tensor:
    return torch.randn(1, n, DIM, generator=torch.Generator().manual_seed(n))


def _all(features: torch.Tensor) -> torch.Tensor:
    return torch.ones(features.shape[:2], dtype=torch.bool)


@every_head
def test_shapes_and_attention_that_sums_to_one(kind):
    head, bags = _head(kind), torch.randn(4, 7, DIM)
    assert head(bags, _all(bags)).shape == (4, CLASSES)
    attention = head.attention(bags, _all(bags))
    assert attention.shape == (4, 7)
    torch.testing.assert_close(attention.sum(1), torch.ones(4))


@every_head
def test_the_order_of_tiles_does_not_matter(kind):
    head, bag = _head(kind), _bag()
    order = torch.randperm(7)
    torch.testing.assert_close(head(bag, _all(bag)), head(bag[:, order], _all(bag)))
    torch.testing.assert_close(
        head.attention(bag, _all(bag))[:, order], head.attention(bag[:, order], _all(bag))
    )


@every_head
@pytest.mark.parametrize("padding", [0.0, 1e6])
def test_padded_equals_unpadded(kind, padding):
    head, bag = _head(kind), _bag()
    padded = torch.cat([bag, torch.full((1, 5, DIM), padding)], dim=1)
    mask = torch.arange(12)[None] < 7
    torch.testing.assert_close(head(padded, mask), head(bag, _all(bag)))
    attention = head.attention(padded, mask)
    assert not attention[:, 7:].any()
    torch.testing.assert_close(attention[:, :7], head.attention(bag, _all(bag)))


@every_head
@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_a_bag_in_blocks_equals_the_whole(kind, block):
    head, bag = _head(kind), _bag()
    logits, attention = head.stream(bag[0].split(block))
    torch.testing.assert_close(logits, head(bag, _all(bag))[0])
    torch.testing.assert_close(attention, head.attention(bag, _all(bag))[0])


@every_head
def test_large_scores_do_not_overflow(kind):
    head, bag = _head(kind), _bag() * 1e4
    logits, attention = head.stream(bag[0].split(2))
    assert logits.isfinite().all() and attention.isfinite().all()
    torch.testing.assert_close(logits, head(bag, _all(bag))[0], rtol=1e-4, atol=1e-2)


@every_head
def test_a_bag_of_one_tile_gets_all_attention(kind):
    head, bag = _head(kind), _bag(1)
    assert head.attention(bag, _all(bag)).tolist() == [[1.0]]
    assert head(bag, _all(bag)).isfinite().all()


@every_head
def test_every_parameter_learns(kind):
    head, bags = _head(kind), torch.randn(4, 7, DIM)
    head(bags, _all(bags)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


def test_mean_head_is_a_linear_layer_on_the_mean():
    head, bag = _head("mean"), _bag()
    weight, bias = head.classifier.weight, head.classifier.bias
    torch.testing.assert_close(head(bag, _all(bag))[0], weight @ bag[0].mean(0) + bias)


def test_gated_attention_follows_its_equations():
    head, bag = _head("abmil"), _bag()
    scores, hidden = [], []
    for x in bag[0]:
        h = torch.clamp(head.project.weight @ x + head.project.bias, min=0)
        v = torch.tanh(head.tanh_branch.weight @ h + head.tanh_branch.bias)
        u = 1 / (1 + torch.exp(-(head.sigmoid_branch.weight @ h + head.sigmoid_branch.bias)))
        scores.append((head.weigh.weight[0] * v * u).sum())
        hidden.append(h)
    power = torch.exp(torch.stack(scores))
    attention = power / power.sum()
    pooled = sum(a * h for a, h in zip(attention, hidden, strict=True))
    logits = head.classifier.weight @ pooled + head.classifier.bias
    torch.testing.assert_close(head.attention(bag, _all(bag))[0], attention)
    torch.testing.assert_close(head(bag, _all(bag))[0], logits)


def test_masked_softmax_ignores_what_is_masked():
    weights = masked_softmax(torch.tensor([[1.0, 9.0, 1.0]]), torch.tensor([[True, False, True]]))
    assert weights.tolist() == [[0.5, 0.0, 0.5]]
