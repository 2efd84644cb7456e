"""Models of other people's libraries, made small by their configurations, with random weights: no download, no network.

`transformers` and `timm` are imported only when a model is built.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

N, CLASSES = 7, 4
VOCABULARY, LENGTH, IMAGE = 40, 9, 32
ARCHITECTURES: dict[str, "Architecture"] = {}


@dataclass(frozen=True)
class Architecture:
    """How to build one model.

    Attributes:
        package: What must be installed.
        build: () -> model and inputs; the model takes the inputs and returns logits [n, c].
        fallback: A part of the names of the parameters that are expected to have no rule; none by default.
        is_float32_inside: Whether it computes in float32 even where its parameters are in float64.
    """

    package: str
    build: Callable[[], tuple[nn.Module, Any]]
    fallback: str | None = None
    is_float32_inside: bool = False

    @property
    def installed(self) -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec(self.package) is not None


class Logits(nn.Module):
    """A model of `transformers` as a function from a dictionary of inputs to logits."""

    def __init__(self, model: nn.Module, read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.read = read

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.read(self.model(**inputs))


def build(name: str) -> tuple[nn.Module, tuple[Any, Tensor]]:
    """The model in eval mode and its batch, with weights from a fixed seed, without moving the global random state.

    Zeros and ones of an initialisation (scales of norms, LayerScale, positions, running statistics) would hide faults,
    and so all values are moved by a little noise.
    """
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other people's code says about itself
        torch.manual_seed(0)
        model, inputs = ARCHITECTURES[name].build()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=_noise(parameter))
            for key, buffer in model.named_buffers():
                if key.endswith("running_mean"):
                    buffer.add_(torch.randn_like(buffer), alpha=0.1)
                elif key.endswith("running_var"):
                    buffer.mul_(torch.rand_like(buffer) + 0.5)
        for part in model.eval().modules():
            part.training = hasattr(part, "attention_bias_cache")  # these keep a tensor and its graph in eval mode
        return model, (inputs, torch.arange(N) % CLASSES)


def _noise(parameter: Tensor) -> float:
    """So much that no entry is special, and so little that no activation explodes in a deep network."""
    if parameter.ndim <= 1:
        return 0.1
    return 0.1 * float(parameter.std(correction=0)) or 0.02


def image(size: int = IMAGE) -> Tensor:
    return torch.randn(N, 3, size, size)


def tokens() -> Tensor:
    return torch.randint(3, VOCABULARY, (N, LENGTH))


def padded_text() -> dict[str, Tensor]:
    """Token ids and the mask of texts of different lengths; the padding token is 0."""
    kept = torch.arange(LENGTH) < torch.arange(LENGTH - N + 1, LENGTH + 1)[:, None]
    return {"input_ids": tokens() * kept, "attention_mask": kept.long()}


def _transformers(
    architecture: str,
    inputs: Callable[[], dict[str, Tensor]],
    read: Callable[[Any], Tensor] = lambda output: output.logits,
    fallback: str | None = None,
    is_float32_inside: bool = False,
    **settings: Any,
) -> None:
    """Registers `<name>For<task>` with the settings of its `<name>Config`."""
    name = architecture.rsplit("For", 1)[0]

    def make() -> tuple[nn.Module, Any]:
        library = importlib.import_module("transformers")
        config = getattr(library, f"{name}Config")(**{"num_labels": CLASSES, **settings})
        return Logits(getattr(library, architecture)(config), read), inputs()

    ARCHITECTURES[f"transformers-{name}"] = Architecture("transformers", make, fallback, is_float32_inside)


def _timm(
    name: str, size: int = IMAGE, fallback: str | None = None, is_float32_inside: bool = False, **settings: Any
) -> None:
    """Registers a model of timm, made smaller where it has settings for that, or by keeping its first `blocks` only."""
    blocks = settings.pop("blocks", None)

    def make() -> tuple[nn.Module, Any]:
        with _torchvision_named_but_not_there():
            library = importlib.import_module("timm")
        model = library.create_model(name, pretrained=False, num_classes=CLASSES, **settings)
        if blocks is not None:
            model.blocks = model.blocks[:blocks]
        return model, image(size)

    ARCHITECTURES[f"timm-{name}"] = Architecture("timm", make, fallback, is_float32_inside)


class _Named(type):
    """A class whose every attribute is that attribute's name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Absent(types.ModuleType):
    """Stands for a module that is not installed: its names can be imported and compared with, and do nothing."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or f"{self.__name__}.{name}" in sys.modules:  # import then looks there itself
            raise AttributeError(name)
        return _Named(name, (), {"__module__": self.__name__})


@contextmanager
def _torchvision_named_but_not_there() -> Iterator[None]:
    """Lets `timm` be imported without torchvision, which has to match the build of torch exactly.

    timm's models take none of their computation from it: at import they need the names of its image transforms and of
    one class that `isinstance` is asked about.
    """
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    names = [
        f"torchvision{part}"
        for part in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets", ".utils")
    ]
    for name in names:
        sys.modules[name] = _Absent(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _last(output: Any) -> Tensor:
    """Four of the last position's logits, of a language model."""
    return output.logits[:, -1, :CLASSES]


def _pixels(size: int = IMAGE) -> dict[str, Tensor]:
    return {"pixel_values": image(size)}


TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
PATCHES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": IMAGE,
    "patch_size": 8,
}

_transformers("BertForSequenceClassification", padded_text, **TEXT)
_transformers("RobertaForSequenceClassification", padded_text, **TEXT)
_transformers(
    "DistilBertForSequenceClassification",
    padded_text,
    vocab_size=VOCABULARY,
    dim=16,
    n_layers=2,
    n_heads=2,
    hidden_dim=24,
    max_position_embeddings=32,
    pad_token_id=0,
)
_transformers("AlbertForSequenceClassification", padded_text, embedding_size=8, **TEXT)
_transformers("ElectraForSequenceClassification", padded_text, embedding_size=8, **TEXT)
_transformers(
    "DebertaV2ForSequenceClassification",
    padded_text,
    relative_attention=True,
    position_biased_input=False,
    pos_att_type=["p2c", "c2p"],
    norm_rel_ebd="layer_norm",
    **TEXT,
)
_transformers(
    "DebertaForSequenceClassification",
    padded_text,
    relative_attention=True,
    pos_att_type=["p2c", "c2p"],
    **TEXT,
    is_float32_inside=True,
)
_transformers("MPNetForSequenceClassification", padded_text, **TEXT)
_transformers("RoFormerForSequenceClassification", padded_text, embedding_size=16, **TEXT)
_transformers(
    "FNetForSequenceClassification",
    lambda: {"input_ids": tokens()},
    use_tpu_fourier_optimizations=False,
    **{k: v for k, v in TEXT.items() if k != "num_attention_heads"},
)
_transformers("ModernBertForSequenceClassification", padded_text, **TEXT, is_float32_inside=True)
_transformers(
    "XLNetForSequenceClassification",
    padded_text,
    vocab_size=VOCABULARY,
    d_model=16,
    n_layer=2,
    n_head=2,
    d_inner=24,
    pad_token_id=0,
)
_transformers(
    "SqueezeBertForSequenceClassification",
    padded_text,
    embedding_size=16,
    q_groups=2,
    k_groups=2,
    v_groups=2,
    post_attention_groups=1,
    intermediate_groups=2,
    output_groups=2,
    **TEXT,
)
_transformers(
    "FunnelForSequenceClassification",
    padded_text,
    vocab_size=VOCABULARY,
    block_sizes=[1, 1],
    d_model=16,
    n_head=2,
    d_head=8,
    d_inner=24,
    pad_token_id=0,
    is_float32_inside=True,
)
_transformers("ConvBertForSequenceClassification", padded_text, embedding_size=16, head_ratio=1, **TEXT)
_transformers("LongformerForSequenceClassification", padded_text, attention_window=4, **TEXT, is_float32_inside=True)
_transformers("BigBirdForSequenceClassification", padded_text, attention_type="original_full", **TEXT)
_transformers("IBertForSequenceClassification", padded_text, **TEXT)
_transformers(
    "GPT2ForSequenceClassification",
    padded_text,
    vocab_size=VOCABULARY,
    n_embd=16,
    n_layer=2,
    n_head=2,
    n_positions=32,
    pad_token_id=0,
)
_transformers(
    "GPTNeoForSequenceClassification",
    padded_text,
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_layers=2,
    attention_types=[[["global", "local"], 1]],
    num_heads=2,
    max_position_embeddings=32,
    pad_token_id=0,
    is_float32_inside=True,
)
_transformers("GPTNeoXForSequenceClassification", padded_text, **TEXT)
_transformers(
    "OPTForSequenceClassification",
    padded_text,
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    ffn_dim=24,
    max_position_embeddings=32,
    pad_token_id=0,
    word_embed_proj_dim=8,
)
_transformers(
    "BloomForSequenceClassification",
    padded_text,
    vocab_size=VOCABULARY,
    hidden_size=16,
    n_layer=2,
    n_head=2,
    pad_token_id=0,
    is_float32_inside=True,
)
_transformers("LlamaForSequenceClassification", padded_text, num_key_value_heads=1, **TEXT, is_float32_inside=True)
_transformers("Qwen2ForSequenceClassification", padded_text, num_key_value_heads=1, **TEXT, is_float32_inside=True)
_transformers(
    "Qwen3ForSequenceClassification", padded_text, num_key_value_heads=1, head_dim=8, **TEXT, is_float32_inside=True
)
_transformers(
    "GemmaForSequenceClassification", padded_text, num_key_value_heads=1, head_dim=8, **TEXT, is_float32_inside=True
)
_transformers("PhiForSequenceClassification", padded_text, **TEXT)
_transformers(
    "FalconForSequenceClassification",
    padded_text,
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    pad_token_id=0,
)
_transformers(
    "MixtralForSequenceClassification",
    padded_text,
    num_key_value_heads=1,
    num_local_experts=3,
    num_experts_per_tok=2,
    experts_implementation="eager",
    **TEXT,
    is_float32_inside=True,
)
_transformers(
    "T5ForSequenceClassification",
    lambda: {"input_ids": torch.cat([tokens()[:, :-1], torch.ones(N, 1, dtype=torch.long)], 1)},
    vocab_size=VOCABULARY,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_layers=2,
    num_heads=2,
    pad_token_id=0,
    decoder_start_token_id=0,
    eos_token_id=1,
    is_float32_inside=True,
)
_transformers(
    "BartForSequenceClassification",
    lambda: {"input_ids": torch.cat([tokens()[:, :-1], torch.full((N, 1), 2)], 1)},
    vocab_size=VOCABULARY,
    d_model=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    max_position_embeddings=32,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=2,
)
_transformers(
    "MambaForCausalLM",
    lambda: {"input_ids": tokens()},
    read=_last,
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=2,
    state_size=4,
    time_step_rank=4,
    use_cache=False,
    pad_token_id=0,
    is_float32_inside=True,
)
_transformers(
    "Mamba2ForCausalLM",
    lambda: {"input_ids": tokens()},
    read=_last,
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_heads=4,
    head_dim=8,
    num_hidden_layers=2,
    state_size=4,
    n_groups=1,
    chunk_size=4,
    use_cache=False,
    pad_token_id=0,
    is_float32_inside=True,
)
_transformers(
    "RwkvForCausalLM",
    lambda: {"input_ids": tokens()},
    read=_last,
    vocab_size=VOCABULARY,
    hidden_size=16,
    attention_hidden_size=16,
    num_hidden_layers=2,
    use_cache=False,
    is_float32_inside=True,
)
_transformers("ViTForImageClassification", _pixels, **PATCHES)
_transformers("DeiTForImageClassification", _pixels, **PATCHES)
_transformers("BeitForImageClassification", _pixels, use_relative_position_bias=True, **PATCHES)
_transformers("Data2VecVisionForImageClassification", _pixels, use_shared_relative_position_bias=True, **PATCHES)
_transformers(
    "Dinov2ForImageClassification",
    _pixels,
    mlp_ratio=2,
    **{k: v for k, v in PATCHES.items() if k != "intermediate_size"},
)
_transformers("SiglipForImageClassification", _pixels, vision_config=PATCHES)
_transformers("CLIPForImageClassification", _pixels, vision_config=PATCHES, text_config={})
_transformers("ConvNextForImageClassification", _pixels, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1])
_transformers("ConvNextV2ForImageClassification", _pixels, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1])
_transformers(
    "ResNetForImageClassification", _pixels, embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 2, 1, 1]
)
_transformers(
    "RegNetForImageClassification",
    _pixels,
    embedding_size=8,
    hidden_sizes=[8, 16, 16, 24],
    depths=[1, 2, 1, 1],
    groups_width=4,
    layer_type="y",
)
_transformers(
    "SwinForImageClassification",
    _pixels,
    image_size=IMAGE,
    patch_size=4,
    embed_dim=8,
    depths=[2, 2],
    num_heads=[2, 2],
    window_size=4,
)
_transformers(
    "Swinv2ForImageClassification",
    _pixels,
    image_size=IMAGE,
    patch_size=4,
    embed_dim=8,
    depths=[2, 2],
    num_heads=[2, 2],
    window_size=4,
)
_transformers("MobileNetV1ForImageClassification", _pixels, depth_multiplier=0.1, min_depth=4, image_size=IMAGE)
_transformers("MobileNetV2ForImageClassification", _pixels, depth_multiplier=0.25, min_depth=4, image_size=IMAGE)
_transformers(
    "MobileViTForImageClassification",
    _pixels,
    image_size=IMAGE,
    hidden_sizes=[12, 16, 20],
    neck_hidden_sizes=[4, 8, 8, 12, 12, 16, 24],
    num_attention_heads=2,
)
_transformers(
    "MobileViTV2ForImageClassification",
    lambda: {"pixel_values": image(64)},
    image_size=64,
    width_multiplier=0.25,
    base_attn_unit_dims=[16, 24, 32],
)
_transformers(
    "SegformerForImageClassification",
    _pixels,
    hidden_sizes=[8, 8, 16, 16],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 1, 2, 2],
    sr_ratios=[4, 2, 1, 1],
)
_transformers("PoolFormerForImageClassification", _pixels, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
_transformers(
    "PvtForImageClassification",
    _pixels,
    image_size=IMAGE,
    hidden_sizes=[8, 8, 16, 16],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 1, 2, 2],
)
_transformers(
    "PvtV2ForImageClassification",
    _pixels,
    image_size=IMAGE,
    hidden_sizes=[8, 8, 16, 16],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 1, 2, 2],
)
_transformers("FocalNetForImageClassification", _pixels, image_size=IMAGE, embed_dim=8, depths=[1, 1, 1, 1])
_transformers(
    "SwiftFormerForImageClassification", _pixels, image_size=IMAGE, depths=[1, 1, 1, 1], embed_dims=[8, 8, 16, 16]
)
_transformers(
    "HieraForImageClassification",
    _pixels,
    image_size=[32, 32],
    embed_dim=8,
    depths=[1, 1, 1, 1],
    num_heads=[1, 1, 2, 2],
    mlp_ratio=2.0,
)
_transformers(
    "Wav2Vec2ForSequenceClassification",
    lambda: {"input_values": torch.randn(N, 400)},
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=(8, 8, 8),
    conv_stride=(5, 2, 2),
    conv_kernel=(10, 3, 3),
    num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
    classifier_proj_size=8,
    num_feat_extract_layers=3,
    use_weighted_layer_sum=True,
)
_transformers(
    "WhisperForAudioClassification",
    lambda: {"input_features": torch.randn(N, 8, 20)},
    num_mel_bins=8,
    d_model=16,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=24,
    decoder_ffn_dim=24,
    max_source_positions=10,
    classifier_proj_size=8,
    use_weighted_layer_sum=True,
)
_transformers(
    "ASTForAudioClassification",
    lambda: {"input_values": torch.randn(N, 32, 16)},
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    patch_size=8,
    max_length=32,
    num_mel_bins=16,
    frequency_stride=8,
    time_stride=8,
)
_transformers(
    "PatchTSTForClassification",
    lambda: {"past_values": torch.randn(N, 16, 3)},
    read=lambda o: o.prediction_logits,
    num_input_channels=3,
    num_targets=4,
    context_length=16,
    patch_length=4,
    patch_stride=4,
    d_model=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    ffn_dim=24,
)

_timm("resnet18", channels=(8, 12, 16, 24))
_timm("vit_tiny_patch16_224", img_size=IMAGE, patch_size=8, embed_dim=24, depth=2)
_timm("convnext_atto", dims=(8, 12, 16, 20), depths=(1, 1, 2, 1))
_timm("convnextv2_atto", dims=(8, 12, 16, 20), depths=(1, 1, 2, 1))
_timm("mixer_s32_224", img_size=IMAGE, blocks=2)
_timm("resmlp_12_224", img_size=IMAGE, blocks=2)
_timm("gmlp_ti16_224", img_size=IMAGE, blocks=4)
_timm("efficientnet_b0")
_timm("regnetx_002")
_timm("regnety_002")
_timm("mobilenetv3_small_050")
_timm("deit_tiny_distilled_patch16_224", img_size=IMAGE, patch_size=8, embed_dim=24, depth=2)
_timm("eva02_tiny_patch14_224", img_size=28, size=28, embed_dim=24, depth=2, num_heads=2)
_timm("beit_base_patch16_224", img_size=IMAGE, patch_size=8, embed_dim=24, depth=2, num_heads=2)
_timm("swin_tiny_patch4_window7_224", img_size=IMAGE, embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=4)
_timm("swinv2_tiny_window8_256", img_size=IMAGE, embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=4)
_timm("cait_xxs24_224", img_size=IMAGE, patch_size=8, embed_dim=24, depth=2, num_heads=2)
_timm("xcit_nano_12_p16_224", size=32, embed_dim=32, depth=2, num_heads=2, img_size=32)
_timm("densenet121", growth_rate=4, block_config=(2, 2, 2, 2))
_timm("ghostnet_050")
_timm("resnetv2_50", channels=(8, 16, 16, 16), layers=(1, 1, 1, 1), stem_chs=8)
_timm("seresnet18", channels=(8, 12, 16, 24))
_timm("ecaresnet50t", channels=(8, 12, 16, 24), layers=(1, 1, 1, 1))
_timm("skresnet18", channels=(16, 32, 32, 32))
_timm("levit_128s", size=224, embed_dim=(16, 24, 32), num_heads=(1, 2, 2), depth=(1, 1, 1))
_timm("edgenext_xx_small", size=64)
_timm("twins_svt_small", img_size=32, embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2), depths=(1, 1, 1, 1))
_timm("tnt_s_legacy_patch16_224", img_size=32, depth=2)
_timm("lambda_resnet26t", size=32, img_size=32)
_timm("davit_tiny", embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2), depths=(1, 1, 1, 1))
_timm("mambaout_femto", dims=(8, 16, 16, 16), depths=(1, 1, 1, 1))
_timm("fastvit_t8", embed_dims=(8, 8, 16, 16), layers=(1, 1, 1, 1))
_timm("repvit_m0_9", embed_dim=(8, 8, 16, 16), depth=(1, 1, 1, 1))
_timm("hiera_tiny_224", img_size=(32, 32), embed_dim=12, stages=(1, 1, 1, 1), num_heads=1)
_timm("sequencer2d_s", layers=(1, 1, 1, 1), embed_dims=(16, 16, 16, 16), hidden_sizes=(4, 8, 8, 8), size=28)
_timm("cs3darknet_s")
_timm("efficientvit_b0", size=64, is_float32_inside=True)
_timm("inception_next_tiny", dims=(8, 8, 16, 16), depths=(1, 1, 1, 1))
_timm("vit_relpos_small_patch16_224", img_size=IMAGE, patch_size=8, embed_dim=24, depth=2, num_heads=2)
_timm("vit_base_patch16_siglip_224", img_size=IMAGE, patch_size=8, embed_dim=24, depth=2, num_heads=2)
# Its position embedding is written into a slice of another tensor, in place.
_timm("naflexvit_base_patch16_gap", fallback="pos_embed", img_size=32, embed_dim=24, depth=2, num_heads=2)
_timm("nf_regnet_b0")
