"""The networks that every view is tried on, and what each view says of them where it is not exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import timm
import torch
import torchvision
from torch import nn

NO_SCORES = "returns"


@dataclass(frozen=True)
class Network:
    """A network of the matrix.

    Attributes:
        name: Its builder's.
        library: `"torchvision"` or `"timm"`.
        kind: `"classification"`, `"segmentation"`, `"detection"` (its backbone alone), `"video"` or `"transformer"`.
        size: Side of the images, in pixels.
        options: Of the builder.
        siblings: Builders that differ in depth, width or the heads behind a backbone, and are not run themselves.
        refusals: By view, what its refusal says: a regular expression.
        tolerance: How far a value may be off, relative to the largest: rounding in double precision, but where the
            network itself turns to single precision on its way.
        gain: Of BatchNorm's scales: less where so many branches add up that activations would grow to 1e15.
        quick: Whether it is part of the default run.
    """

    name: str
    library: str = "torchvision"
    kind: str = "classification"
    size: int = 64
    options: dict[str, object] = field(default_factory=dict)
    siblings: tuple[str, ...] = ()
    refusals: dict[str, str] = field(default_factory=dict)
    tolerance: float = 1e-7
    gain: float = 1.0
    quick: bool = False

    def build(self, name: str = "") -> nn.Module:
        """Return it, or a sibling, as its library initializes it: of detection networks the backbone."""
        maker: Callable[..., nn.Module] = torchvision.models.get_model if self.library == "torchvision" else _timm_model
        options: dict[str, object] = {} if name else {**self.options}
        if self.library == "torchvision":
            options["weights"] = None
        if self.kind in ("segmentation", "detection"):
            options["weights_backbone"] = None
        model = maker(name or self.name, **options)
        return model.backbone if self.kind == "detection" else model


def _timm_model(name: str, **options: object) -> nn.Module:
    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def _timm(name: str, **how: object) -> Network:
    return Network(name, "timm", **how)  # type: ignore[arg-type]


_SCORED = ("invariance", "occlusion", "saliency", "Grad-CAM", "guided Grad-CAM")
_TUNED = ("FineTuner head", "FineTuner staged", "FineTuner full")
_NO_CLASSES = {**dict.fromkeys(_SCORED, NO_SCORES), **dict.fromkeys(_TUNED, "can be replaced|classif")}
_NOT_TUNED = dict.fromkeys(_TUNED, "classif")
_CLIPS = dict.fromkeys((*_SCORED, *_TUNED), r"clips|volumes|images? .*\(N?1?,? ?C, H, W\)|feature maps|take images")

CLASSIFICATION = [
    Network("alexnet"),
    Network("resnet18", siblings=("resnet34",)),
    Network(
        "resnet50",
        siblings=(
            *("resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
            *("wide_resnet50_2", "wide_resnet101_2"),
        ),
    ),
    Network("vgg11_bn", siblings=("vgg13_bn", "vgg16_bn", "vgg19_bn", "vgg11", "vgg13", "vgg16", "vgg19")),
    Network("squeezenet1_1", siblings=("squeezenet1_0",), quick=True),
    Network("densenet121", siblings=("densenet161", "densenet169", "densenet201")),
    Network("googlenet", options={"init_weights": False}),
    Network("inception_v3", size=299, options={"init_weights": False}),  # its auxiliary classifier takes no less
    Network("mobilenet_v2"),
    Network("mobilenet_v3_small", siblings=("mobilenet_v3_large",), quick=True),
    Network("mnasnet0_5", siblings=("mnasnet0_75", "mnasnet1_0", "mnasnet1_3")),
    Network("shufflenet_v2_x0_5", siblings=("shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0")),
    Network("efficientnet_b0", siblings=tuple(f"efficientnet_b{number}" for number in range(1, 8))),
    Network("efficientnet_v2_s", siblings=("efficientnet_v2_m", "efficientnet_v2_l")),
    Network(
        "regnet_x_400mf",
        siblings=tuple(f"regnet_x_{size}" for size in ("800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf")),
    ),
    Network(
        "regnet_y_400mf",
        siblings=tuple(f"regnet_y_{size}" for size in ("800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf", "128gf")),
    ),
    Network("convnext_tiny", siblings=("convnext_small", "convnext_base", "convnext_large")),
]
SEGMENTATION = [
    Network("fcn_resnet50", kind="segmentation", size=32, siblings=("fcn_resnet101",), refusals=_NOT_TUNED),
    Network(
        "deeplabv3_mobilenet_v3_large",
        kind="segmentation",
        size=48,
        siblings=("deeplabv3_resnet50", "deeplabv3_resnet101"),
        refusals=_NOT_TUNED,
    ),
    Network("lraspp_mobilenet_v3_large", kind="segmentation", size=48, refusals=_NOT_TUNED),
]
DETECTION = [
    Network(
        "fasterrcnn_mobilenet_v3_large_fpn",
        kind="detection",
        siblings=("fasterrcnn_mobilenet_v3_large_320_fpn",),
        refusals=_NO_CLASSES,
    ),
    Network(
        "retinanet_resnet50_fpn",
        kind="detection",
        siblings=(
            *("fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
            *("fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2"),
        ),
        refusals=_NO_CLASSES,
    ),
    # Its last blocks take no smaller images. One 1x1 convolution in the middle might be taken for a head.
    Network("ssd300_vgg16", kind="detection", size=272, refusals={**_NO_CLASSES, **dict.fromkeys(_TUNED, "not fit")}),
    Network("ssdlite320_mobilenet_v3_large", kind="detection", refusals=_NO_CLASSES),
]
VIDEO = [
    Network("r3d_18", kind="video", refusals=_CLIPS),
    Network("mc3_18", kind="video", refusals=_CLIPS),
    Network("r2plus1d_18", kind="video", refusals=_CLIPS),
    Network("s3d", kind="video", size=224, refusals=_CLIPS),
    Network("mvit_v1_b", kind="video", siblings=("mvit_v2_s",), size=224, refusals=_CLIPS),
    Network("swin3d_t", kind="video", siblings=("swin3d_s", "swin3d_b"), refusals=_CLIPS),
]
TRANSFORMERS = [
    Network(
        "vit_b_32",
        kind="transformer",
        options={"image_size": 64},
        siblings=("vit_b_16", "vit_l_16", "vit_l_32", "vit_h_14"),
    ),
    Network("swin_t", kind="transformer", siblings=("swin_s", "swin_b")),
    Network("swin_v2_t", kind="transformer", siblings=("swin_v2_s", "swin_v2_b")),
    Network("maxvit_t", kind="transformer", size=224),
    _timm("vit_tiny_patch16_224", kind="transformer", options={"img_size": 64}),
    _timm("mixer_s32_224", kind="transformer", options={"img_size": 64}),
    _timm("tiny_vit_5m_224", kind="transformer"),
    _timm("swiftformer_xs", kind="transformer"),
]
TIMM = [
    _timm("efficientvit_m0", options={"img_size": 96}, size=96),
    _timm("lcnet_050", quick=True),
    *(
        _timm(name)
        for name in (
            *("ghostnet_050", "dla46_c", "repvgg_a0", "skresnet18"),
            *("mobilevit_xxs", "edgenext_xx_small", "starnet_s1", "repvit_m0_9", "fastvit_t8", "convnext_atto"),
            *("inception_next_atto", "mambaout_femto", "hardcorenas_a", "mixnet_s", "rexnet_100", "nf_regnet_b0"),
            *("poolformer_s12", "ese_vovnet19b_dw", "cs3darknet_s", "resnest14d", "dpn48b", "hrnet_w18_small"),
            *("legacy_xception", "seresnext26t_32x4d", "selecsls42", "res2net50_48w_2s"),
        )
    ),
    _timm("levit_128s", size=224),
    _timm("mobileone_s0", gain=0.3),
    # Its attention is computed in single precision. (Where that is prevented, all is exact to 4e-15.)
    _timm("efficientvit_b0", tolerance=1e-5),
]

NETWORKS = [*CLASSIFICATION, *SEGMENTATION, *DETECTION, *VIDEO, *TRANSFORMERS, *TIMM]
NOT_ASKED = ("raft_", "quantized_")
"""Builders of torchvision that take pairs of frames, or are made of whole numbers (refused where they are tested)."""


def prepared(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """Give a network statistics and scales as training leaves them, no chance, and double precision."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_(-0.1, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    for module in model.modules():
        if "BatchNorm" in type(module).__name__ and getattr(module, "weight", None) is not None:
            with torch.no_grad():  # some are zero at first
                module.weight.uniform_(0.5, 1.5, generator=generator).mul_(gain)
        for chance in ("p", "drop_prob", "drop_rate"):
            if isinstance(getattr(module, chance, None), float):
                setattr(module, chance, 0.0)
    return model.double().eval()
