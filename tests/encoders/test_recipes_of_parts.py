"""Recipes that timm supports only in part: names, stems and poolings against the authors' code.

As in `test_recipes`, the networks are tiny, with random weights stored in the authors' format; the
computation of their repositories is written out here.
"""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from stainssl.cohort.encoder_checks import source_problems
from stainssl.encoders import recipes
from stainssl.encoders.listing import VECTOR
from stainssl.encoders.loading import load
from stainssl.errors import StainsslError
from stainssl.pretrain.tuning import parameter_groups
from tests.encoders.test_adapters import _adapter as adapter
from tests.encoders.test_recipes import HALF, IMAGENET, IMAGES, TINY, _cosine, _prepared, _randomize
from tests.encoders.test_recipes import _tiny as tiny

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DIM = 32
LAYERS = {"layers": (1, 1, 1, 1)}
SWIN_NAMES = {
    "features.0.0.": "patch_embed.proj.", "features.0.2.": "patch_embed.norm.",
    "features.1.": "layers.0.blocks.", "features.2.": "layers.0.downsample.",
    "features.3.": "layers.1.blocks.", "mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2.",
}  # torchvision's names → the authors'  # fmt: skip
SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6)}


def _vit(img_size, **keys):
    return timm.create_model(
        "vit_base_patch16_224", num_classes=0, img_size=img_size, **TINY, **keys
    )


def _with_batch_statistics(model):
    """Set statistics of the batch norms, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def _assert_embeddings(source, expected):
    encoder = load(source)
    assert encoder.dim == expected.shape[1]
    assert _cosine(encoder(IMAGES), expected) > 0.9995  # Pillow rounds to bytes
    assert list(source_problems(source)) == []


def test_kaiko_vitl14_is_stored_for_518_px_and_used_at_224(monkeypatch, tmp_path):
    recipe = tiny(monkeypatch, "kaiko-vitl14")
    card = timm.create_model(
        "vit_large_patch14_reg4_dinov2", img_size=518, dynamic_img_size=True, num_classes=0, **TINY
    )
    save_file(_randomize(card).state_dict(), tmp_path / recipe.files[0])
    with torch.no_grad():
        expected = card(_prepared(224, *HALF, "bilinear"))
    _assert_embeddings(f"kaiko-vitl14@{tmp_path}", expected)


def test_retccl_is_torchvisions_resnet_at_256_px(monkeypatch, tmp_path):
    recipe = tiny(monkeypatch, "retccl", LAYERS, dim=2048)
    bottleneck = torchvision.models.resnet.Bottleneck
    card = torchvision.models.ResNet(bottleneck, LAYERS["layers"])
    card.fc = nn.Identity()
    torch.save(_with_batch_statistics(card).state_dict(), tmp_path / recipe.files[0])
    with torch.no_grad():
        expected = card(_prepared(256, *IMAGENET, "bilinear", crop=256))
    _assert_embeddings(f"retccl@{tmp_path}", expected)
    assert recipes.RECIPES["retccl"].is_saved_by_timm


class Keep(nn.Module):
    """quick_start/keep_inference.py."""

    def __init__(self):
        super().__init__()
        self.visual = _vit(224, init_values=1e-5)
        self.visual_head = nn.Sequential(nn.Linear(48, DIM), nn.GELU(), nn.Linear(DIM, DIM))
        self.text = nn.Linear(3, 3)
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, images):
        return F.normalize(self.visual_head(self.visual(images)), dim=-1)


@pytest.mark.parametrize("scale", ["weight", "gamma"])
def test_keep_projects_the_class_token(monkeypatch, tmp_path, scale):
    """transformers stored LayerScale's gamma under the name weight."""
    recipe = tiny(monkeypatch, "keep", dim=DIM)
    card = _randomize(Keep())
    stored = {k.replace(".gamma", f".{scale}"): v for k, v in card.state_dict().items()}
    save_file(stored, tmp_path / recipe.files[0])
    with torch.no_grad():
        expected = card(_prepared(224, *IMAGENET, "bicubic"))
    _assert_embeddings(f"keep@{tmp_path}", expected)
    assert not recipes.RECIPES["keep"].is_saved_by_timm


class Pooler(nn.Module):
    """conch/open_clip_custom/transformer.py, AttentionalPooler."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, DIM))
        self.attn = nn.MultiheadAttention(DIM, 8, kdim=48, vdim=48)
        self.ln_q, self.ln_k = nn.LayerNorm(DIM), nn.LayerNorm(48)

    def forward(self, tokens):
        keys = self.ln_k(tokens).permute(1, 0, 2)
        query = self.ln_q(self.query).unsqueeze(1).repeat(1, keys.shape[1], 1)
        return self.attn(query, keys, keys)[0].permute(1, 0, 2)


class Conch(nn.Module):
    """conch/open_clip_custom/vision_tower.py, `encode_image(proj_contrast=False)`."""

    def __init__(self, size):
        super().__init__()
        self.visual = nn.Module()
        self.visual.trunk = _vit(size)
        self.visual.attn_pool_contrast, self.visual.attn_pool_caption = Pooler(), Pooler()
        self.visual.ln_contrast, self.visual.ln_caption = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.visual.proj_contrast = nn.Parameter(torch.zeros(DIM, DIM))
        self.text, self.logit_scale = nn.Linear(3, 3), nn.Parameter(torch.ones([]))

    def forward(self, images):
        tokens = self.visual.trunk.forward_features(images)
        return self.visual.ln_contrast(self.visual.attn_pool_contrast(tokens)[:, 0])


def _resampled_positions(positions, side):
    """Position embeddings resampled as by CONCH, except that of the class token."""
    first, grid = positions[:, :1], positions[:, 1:]
    own = int(grid.shape[1] ** 0.5)
    planes = grid.reshape(1, own, own, -1).permute(0, 3, 1, 2)
    planes = F.interpolate(planes, (side, side), mode="bilinear", align_corners=False)
    return torch.cat([first, planes.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize(("name", "grid"), [("conch", 28), ("conch", 14), ("conch-madeleine", 28)])
def test_conch_attends_to_all_tokens(monkeypatch, tmp_path, name, grid):
    """MADELEINE's `force_image_size=224` resamples the positions as well."""
    recipe = tiny(monkeypatch, name, dim=DIM)
    size = 224 if name == "conch-madeleine" else 448
    card = _randomize(Conch(size))
    stored = card.state_dict()
    if grid != size // 16:
        stored["visual.trunk.pos_embed"] = torch.randn(1, 1 + grid**2, 48)
        resampled = _resampled_positions(stored["visual.trunk.pos_embed"], size // 16)
        card.visual.trunk.pos_embed.data = resampled
    torch.save(stored, tmp_path / recipe.files[0])
    with torch.no_grad():
        expected = card(_prepared(size, *CLIP, "bicubic", crop=size))
    _assert_embeddings(f"{name}@{tmp_path}", expected)


class Pooler15(nn.Module):
    """trident/patch_encoder_models/model_zoo/conchv1_5/conchv1_5.py, AttentionalPooler."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, DIM))
        self.ln_k, self.ln_q = nn.LayerNorm(48), nn.LayerNorm(DIM)
        self.to_q = nn.Linear(DIM, DIM, bias=False)
        self.to_kv = nn.Linear(48, 2 * DIM, bias=False)
        self.to_out = nn.Linear(DIM, DIM, bias=False)

    def forward(self, tokens):
        q = self.to_q(self.ln_q(self.query)).reshape(8, DIM // 8)
        k, v = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        k, v = (x.reshape(*x.shape[:2], 8, DIM // 8) for x in (k, v))
        attention = torch.einsum("hd,bnhd->bhn", q * (DIM // 8) ** -0.5, k).softmax(dim=-1)
        return self.to_out(torch.einsum("bhn,bnhd->bhd", attention, v).flatten(1))


class Conch15(nn.Module):
    """CONCHVisionTower of the same file."""

    def __init__(self):
        super().__init__()
        self.trunk = _vit(448, init_values=1.0)
        self.attn_pool_contrast, self.ln_contrast = Pooler15(), nn.LayerNorm(DIM)

    def forward(self, images):
        return self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(images)))


def test_conch_15_attends_without_biases(monkeypatch, tmp_path):
    recipe = tiny(monkeypatch, "conch-v1.5", dim=DIM)
    card = _randomize(Conch15())
    torch.save(card.state_dict(), tmp_path / recipe.files[0])
    with torch.no_grad():
        expected = card(_prepared(448, *IMAGENET, "bilinear", crop=448))
    _assert_embeddings(f"conch_v15@{tmp_path}", expected)
    encoder = load(f"conch-v1.5@{tmp_path}")
    with pytest.raises(StainsslError, match="cannot take 224 px"):
        load(f"conch-v1.5@{tmp_path}", input_size=224)
    assert encoder.input_size == 448


def _musk_weights():
    """Tensors of a small MUSK under its names, with some of the text encoder (B)."""
    rng = np.random.default_rng(3)
    shapes = {"vision_embed.proj.weight": (48, 3, 16, 16), "vision_embed.proj.bias": (48,),
              "vision_embed.cls_token": (1, 1, 48), "vision_embed.mask_token": (1, 1, 48),
              "text_embed.weight": (7, 48), "encoder.embed_positions.A.weight": (579, 48),
              "encoder.embed_positions.B.weight": (9, 48)}  # fmt: skip
    both = {"encoder.layer_norm": (48,)}
    for i in range(2):
        layer = f"encoder.layers.{i}"
        for name in ("q", "k", "v", "out"):
            both[f"{layer}.self_attn.{name}_proj"] = (48, 48)
        for name in ("self_attn.inner_attn_ln", "self_attn_layer_norm", "final_layer_norm"):
            both[f"{layer}.{name}"] = (48,)
        for modality in "AB":
            for name, shape in (("fc1", (192, 48)), ("ffn_layernorm", (192,)), ("fc2", (48, 192))):
                shapes[f"{layer}.ffn.{modality}.{name}.weight"] = shape
                shapes[f"{layer}.ffn.{modality}.{name}.bias"] = shape[:1]
    for name, shape in both.items():
        for modality in "AB":
            shapes[f"{name}.{modality}.weight"], shapes[f"{name}.{modality}.bias"] = (
                shape,
                shape[:1],
            )
    drawn = {f"beit3.{n}": rng.normal(0, 0.2, shape) for n, shape in shapes.items()}
    heads = {"vision_head.weight": np.eye(48), "logit_scale": np.ones(1)}
    return {n: torch.from_numpy(v).float() for n, v in (drawn | heads).items()}


def _musk_embedding(w, images):
    """musk/torchscale: BEiT3 of images only, pre-norm with sub-LayerNorm; its class token."""

    def linear(x, name, way=".A"):
        return F.linear(x, w[f"beit3.{name}{way}.weight"], w[f"beit3.{name}{way}.bias"])

    def norm(x, name, way=".A"):
        weight, bias = w[f"beit3.{name}{way}.weight"], w[f"beit3.{name}{way}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps=1e-5)

    patches = F.conv2d(images, w["beit3.vision_embed.proj.weight"],
                       w["beit3.vision_embed.proj.bias"], stride=16)  # fmt: skip
    first = w["beit3.vision_embed.cls_token"].expand(len(images), -1, -1)
    x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
    x = x + w["beit3.encoder.embed_positions.A.weight"][2 : 2 + x.shape[1]]
    for i in range(2):
        layer = f"encoder.layers.{i}"
        y = norm(x, f"{layer}.self_attn_layer_norm")
        q, k, v = (
            linear(y, f"{layer}.self_attn.{n}_proj").unflatten(-1, (3, 16)).transpose(1, 2)
            for n in "qkv"
        )
        y = ((q * 0.25) @ k.transpose(-1, -2)).softmax(-1) @ v
        y = norm(y.transpose(1, 2).flatten(2), f"{layer}.self_attn.inner_attn_ln")
        x = x + linear(y, f"{layer}.self_attn.out_proj")
        y = F.gelu(linear(norm(x, f"{layer}.final_layer_norm"), f"{layer}.ffn.A.fc1", ""))
        x = x + linear(norm(y, f"{layer}.ffn.A.ffn_layernorm", ""), f"{layer}.ffn.A.fc2", "")
    return norm(x, "encoder.layer_norm")[:, 0]


def test_musk_embeds_an_image_and_its_quarters(monkeypatch, tmp_path):
    """README.md and musk/utils.py, MultiScaleForward; TRIDENT takes the first half."""
    recipe = tiny(monkeypatch, "musk", dim=96)
    weights = _musk_weights()
    save_file(weights, tmp_path / recipe.files[0])
    images = _prepared(384, *HALF, "bicubic", crop=384)
    twice = F.interpolate(images, size=768, mode="bicubic")
    rows = [part for half in twice.chunk(2, dim=2) for part in half.chunk(2, dim=3)]
    quarters = torch.stack([_musk_embedding(weights, part) for part in rows]).mean(0)
    expected = torch.cat([_musk_embedding(weights, images), quarters], dim=-1)
    _assert_embeddings(f"musk@{tmp_path}", expected)
    found = load(f"musk@{tmp_path}")(IMAGES)
    assert _cosine(found[:, 48:], quarters) > 0.9995


def _stem(width):
    """ctran.py, ConvStem."""
    layers, channels = [], 3
    for out in (width // 8, width // 4):
        layers += [nn.Conv2d(channels, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


def _ctranspath():
    """torchvision's Swin with that stem, and its tensors under the names of ctranspath.pth."""
    model = torchvision.models.SwinTransformer(
        [4, 4], SWIN["embed_dim"], list(SWIN["depths"]), list(SWIN["num_heads"]), [7, 7],
        stochastic_depth_prob=0.0,
    )  # fmt: skip
    model.features[0][0], model.head = _stem(SWIN["embed_dim"]), nn.Identity()
    _with_batch_statistics(_randomize(model))
    stored = {}
    for name, value in model.state_dict().items():
        for old, new in SWIN_NAMES.items():
            name = name.replace(old, new)
        stored[name] = value
    stored["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return model, stored


@pytest.mark.parametrize("now", [False, True])
@pytest.mark.parametrize("buffers", [False, True])
def test_ctranspath_is_a_swin_with_a_convolutional_stem(monkeypatch, tmp_path, now, buffers):
    """With the names of timm 0.5 or later, and with or without stored buffers."""
    recipe = tiny(monkeypatch, "ctranspath", SWIN, dim=48)
    card, stored = _ctranspath()
    computed = () if buffers else ("attn_mask", "relative_position_index")
    stored = {n: v for n, v in stored.items() if not n.endswith(computed)}
    if now:
        own = {
            n.replace("layers.0.downsample", "layers.1.downsample"): v for n, v in stored.items()
        }
        save_file(own, tmp_path / recipe.files[0])
    else:
        torch.save({"model": stored}, tmp_path / recipe.files[1])
    with torch.no_grad():
        expected = card(_prepared(224, *IMAGENET, "bilinear"))
    _assert_embeddings(f"ctranspath@{tmp_path}", expected)
    assert not recipes.RECIPES["ctranspath"].is_saved_by_timm


@pytest.mark.parametrize("name", ["keep", "conch", "conch-v1.5", "musk", "ctranspath"])
def test_weights_of_another_encoder_are_refused(monkeypatch, tmp_path, name):
    shape = SWIN if name == "ctranspath" else TINY
    recipe = tiny(monkeypatch, name, shape, dim=DIM)
    other = timm.create_model("vit_base_patch16_224", num_classes=0, **TINY)
    path = tmp_path / recipe.files[0]
    (save_file if path.suffix == ".safetensors" else torch.save)(other.state_dict(), path)
    with pytest.raises(StainsslError, match="are missing"):
        load(f"{name}@{tmp_path}")


@pytest.mark.parametrize("name", ["keep", "conch", "musk", "ctranspath"])
def test_an_adapter_to_a_partly_supported_network(monkeypatch, tmp_path, name):
    """Checks the learning rates of all adapters too, including those of pooling layers."""
    kinds = {
        "keep": (TINY, DIM, lambda: _randomize(Keep()).state_dict()),
        "conch": (TINY, DIM, lambda: _randomize(Conch(448)).state_dict()),
        "musk": (TINY, 96, _musk_weights),
        "ctranspath": (SWIN, 48, lambda: _ctranspath()[1]),
    }
    shape, dim, stored = kinds[name]
    recipe = tiny(monkeypatch, name, shape, dim=dim)
    torch.save(stored(), tmp_path / "weights.bin")
    source = f"{name}@{tmp_path / 'weights.bin'}"
    network = adapter(tmp_path / "adapter", source, recipe.input_px)
    images = torch.rand(2, 3, recipe.input_px, recipe.input_px)
    with torch.inference_mode():
        expected = network(images)
        found = load(tmp_path / "adapter").model(images)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
        assert (expected - load(source).model(images)).norm() > 0.01 * expected.norm()
    _, rates = parameter_groups(network, [], weight_decay=0.1, lr_backbone=1.0, layer_decay=0.5)
    trained = [v for v in network.parameters() if v.requires_grad]
    grouped = [v for group in rates for v in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, trained))
    pooling = [v for n, v in network.named_parameters() if "projection" in n and v.requires_grad]
    assert bool(pooling) == (name == "keep")
    assert {g["lr"] for g in rates for v in g["params"] if id(v) in map(id, pooling)} <= {1.0}


def test_every_pooling_has_a_description():
    assert {recipe.pooling for recipe in recipes.RECIPES.values()} <= set(VECTOR)
