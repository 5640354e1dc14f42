"""Properties of all heads, and each head against its equations."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from stainssl.mil.head import masked_softmax, weighted_loss
from stainssl.mil.heads import HEADS, create
from stainssl.mil.transmil import NystromAttention, pseudo_inverse

DIM, CLASSES, HIDDEN = 6, 3, 8
every_head = pytest.mark.parametrize("kind", sorted(HEADS))
# TransMIL arranges tiles on a square in their order, so that its result depends on it.
every_set_head = pytest.mark.parametrize("kind", sorted(set(HEADS) - {"transmil"}))


def _head(kind: str):
    torch.manual_seed(1)
    return create(kind, DIM, CLASSES, HIDDEN, dropout=0.5).eval()


def _bag(n: int = 7) -> torch.Tensor:
    return torch.randn(1, n, DIM, generator=torch.Generator().manual_seed(n))


def _loss(weights: torch.Tensor):
    return partial(weighted_loss, weights=weights)


def _all(features: torch.Tensor) -> torch.Tensor:
    return torch.ones(features.shape[:2], dtype=torch.bool)


@every_head
def test_shapes_and_attention_that_sums_to_one(kind):
    head, bags = _head(kind), torch.randn(4, 7, DIM)
    assert head(bags, _all(bags)).shape == (4, CLASSES)
    attention = head.attention(bags, _all(bags))
    assert attention.shape == (4, 7)
    torch.testing.assert_close(attention.sum(1), torch.ones(4))


@every_set_head
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
    assert logits.isfinite().all()
    assert attention.isfinite().all()
    torch.testing.assert_close(logits, head(bag, _all(bag))[0], rtol=1e-3, atol=1e-2)


@every_head
def test_a_bag_of_one_tile_gets_all_attention(kind):
    head, bag = _head(kind), _bag(1)
    assert head.attention(bag, _all(bag)).tolist() == [[1.0]]
    assert head(bag, _all(bag)).isfinite().all()


@every_head
def test_every_parameter_has_a_gradient(kind):
    head, bags = _head(kind), torch.randn(6, 7, DIM)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    head.losses(bags, _all(bags), labels, _loss(torch.ones(CLASSES))).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())


@every_head
def test_the_loss_of_a_bag_does_not_depend_on_other_bags_or_padding(kind):
    head, bags = _head(kind), torch.randn(2, 9, DIM)
    mask = torch.arange(9)[None] < torch.tensor([[9], [5]])
    labels, weights = torch.tensor([2, 0]), torch.tensor([0.5, 1.0, 2.0])
    both = head.losses(bags, mask, labels, _loss(weights))
    for i, n in enumerate((9, 5)):
        one = bags[i : i + 1, :n]
        torch.testing.assert_close(
            head.losses(one, _all(one), labels[i : i + 1], _loss(weights)), both[i : i + 1]
        )


@every_set_head
def test_class_weights_scale_the_loss_of_bags(kind):
    head, bags, labels = _head(kind), torch.randn(2, 9, DIM), torch.tensor([0, 1])
    one, five = (head.losses(bags, _all(bags), labels, _loss(w)) for w in
                 (torch.ones(3), torch.tensor([5.0, 1.0, 1.0])))  # fmt: skip
    assert five[0] > one[0]
    assert five[1] == one[1]


def test_transmil_depends_on_the_order_of_tiles():
    head, bag = _head("transmil"), _bag()
    assert not torch.allclose(head(bag, _all(bag)), head(bag.flip(1), _all(bag)))


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


def test_clam_follows_its_equations():
    """Equation by equation on one bag: k = 8 of 20 tiles; k = 3 of 7."""
    for n, k in ((20, 8), (7, 3)):
        head, bag = _head("clam"), _bag(n)
        weights, label = torch.tensor([1.0, 2.0, 1.0]), 1
        h = torch.clamp(bag[0] @ head.project.weight.T + head.project.bias, min=0)
        order = head.attention(bag, _all(bag))[0].argsort()
        top, bottom = h[order[-k:]], h[order[:k]]
        both = head.tile_classifiers

        def g(c, x, both=both):
            return x @ both.weight[2 * c : 2 * c + 2].T + both.bias[2 * c : 2 * c + 2]

        def svm(scores, right):
            return torch.log(1 + torch.exp(1 + scores[:, 1 - right] - scores[:, right]))

        own = torch.cat([svm(g(label, top), 1), svm(g(label, bottom), 0)]).mean()
        others = sum(svm(g(c, top), 0).mean() for c in range(CLASSES) if c != label)
        p = torch.softmax(head(bag, _all(bag))[0], dim=0)[label]
        expected = 0.7 * weights[label] * -torch.log(p) + 0.3 * (own + others) / CLASSES
        found = head.losses(bag, _all(bag), torch.tensor([label]), _loss(weights))
        torch.testing.assert_close(found[0], expected)


def test_dsmil_follows_its_equations():
    head, bag = _head("dsmil"), _bag()
    h = torch.clamp(bag[0] @ head.project.weight.T + head.project.bias, min=0)
    scores = h @ head.tile_classifier.weight.T + head.tile_classifier.bias
    q = h @ head.query.weight.T + head.query.bias
    v = h @ head.value.weight.T + head.value.bias
    pooled, attention = [], []
    for c in range(CLASSES):
        critical = int(scores[:, c].argmax())
        power = torch.exp(q @ q[critical] / HIDDEN**0.5)
        attention.append(power / power.sum())
        pooled.append(attention[-1] @ v)
    of_bag = head.bag_classifier.weight @ torch.cat(pooled) + head.bag_classifier.bias
    of_tile = scores.max(dim=0).values
    torch.testing.assert_close(head(bag, _all(bag))[0], (of_bag + of_tile) / 2)
    torch.testing.assert_close(
        head.attention(bag, _all(bag))[0], torch.stack(attention).mean(dim=0)
    )
    loss = head.losses(bag, _all(bag), torch.tensor([1]), _loss(torch.ones(3)))
    each = [-torch.log_softmax(logits, dim=0)[1] for logits in (of_bag, of_tile)]
    torch.testing.assert_close(loss[0], sum(each) / 2)


@pytest.mark.parametrize("n", [4, 7, 16])
def test_nystrom_attention_with_one_landmark_per_token_equals_attention(n):
    """If every token is a landmark, the product of the three matrices is softmax(QKᵀ)V."""
    torch.manual_seed(0)
    layer, tokens = NystromAttention(HIDDEN, landmarks=n).double(), torch.randn(n, HIDDEN).double()
    q, k, v = (x.unflatten(1, (4, 2)).transpose(0, 1) for x in layer.qkv(tokens).chunk(3, dim=1))
    weights = torch.softmax(q @ k.mT / 2**0.5, dim=-1)
    found, first = layer(tokens)
    # The iteration towards the inverse stops after six steps, as the paper's does.
    torch.testing.assert_close(found, (weights @ v).transpose(0, 1).flatten(1), atol=0.05, rtol=0)
    torch.testing.assert_close(first, weights.mean(0)[0], atol=0.05, rtol=0)


def test_the_iteration_converges_to_the_inverse():
    x = torch.softmax(2 * torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0)), -1)
    torch.testing.assert_close(
        pseudo_inverse(x.double(), steps=30), torch.linalg.pinv(x.double()), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("n", [9, 15, 20])
def test_transmil_equals_torchmil_on_one_bag(n):
    """The same weights in torchmil's TransMIL give the same class score and the same attention."""
    models = pytest.importorskip("torchmil.models")
    torch.manual_seed(1)
    head = create("transmil", DIM, 1, HIDDEN, dropout=0.0).eval()
    other = models.TransMIL((HIDDEN,), att_dim=HIDDEN, n_landmarks=HIDDEN // 2).eval()
    other.cls_token.data, other.norm, other.classifier = (
        head.token.data[None], head.norms[2], head.classifier
    )  # fmt: skip
    pyramid = other.pos_layer
    pyramid.proj, pyramid.proj1, pyramid.proj2 = head.positions.convolutions
    for theirs, norm, ours in zip(other.layers, head.norms[:2], head.layers, strict=True):
        theirs.norm1, theirs.att_module.qkv_nn = norm, ours.qkv
        forward = theirs.att_module.forward
        # Without a mask, torchmil counts padding as tokens.
        theirs.att_module.forward = lambda x, mask=None, return_att=False, f=forward: f(
            x, torch.ones(x.shape[:2], dtype=torch.bool), return_att
        )
    bag = _bag(n)
    logit, attention = other(head.embed(bag), return_att=True)
    torch.testing.assert_close(head(bag, _all(bag))[0], logit, atol=1e-4, rtol=1e-3)
    cut = attention[0].clamp_min(0) + 1e-12
    torch.testing.assert_close(
        head.attention(bag, _all(bag))[0], cut / cut.sum(), atol=1e-4, rtol=1e-3
    )


def test_masked_softmax_is_zero_at_masked_positions():
    weights = masked_softmax(torch.tensor([[1.0, 9.0, 1.0]]), torch.tensor([[True, False, True]]))
    assert weights.tolist() == [[0.5, 0.0, 0.5]]
