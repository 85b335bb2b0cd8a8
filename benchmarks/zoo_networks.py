"""The networks of others that zoo.py takes, each with the side of its images, and random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

CLASSIFIERS = "torchvision, classification"
SEGMENTERS = "torchvision, segmentation and detection"
TIMM = "timm"

# Side of the images by the names of networks.
NETWORKS: Mapping[str, Mapping[int, str]] = {
    CLASSIFIERS: {
        64: "convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet mnasnet0_5 mobilenet_v2 "
        "mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf resnet18 resnet50 "
        "resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0 vgg11 vgg11_bn wide_resnet50_2",
        96: "alexnet inception_v3",
        224: "maxvit_t swin_t swin_v2_t vit_b_32",
    },
    SEGMENTERS: {
        64: "fcn_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large resnet_fpn_backbone",
    },
    TIMM: {
        64: "convmixer_768_32 convnext_atto cs3darknet_s cspnext_tiny darknet53 densenetblur121d dla46_c "
        "dpn48b eca_nfnet_l0 ecaresnet26t efficientnet_b0_gn efficientvit_b0 ese_vovnet19b_slim_dw "
        "fasternet_t0 fbnetv3_b ghostnet_100 ghostnetv2_100 hardcorenas_a hgnetv2_b0 hrnet_w18_small "
        "inception_next_atto lambda_resnet26t lcnet_050 legacy_seresnet18 mambaout_femto mixnet_s "
        "mobilenetv4_conv_small mobileone_s0 nf_resnet26 poolformer_s12 regnetz_005 repghostnet_050 "
        "repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d resnetv2_18 rexnet_100 selecsls42 skresnet18 "
        "starnet_s050 tresnet_m vgg11_bn xception41 focalnet_tiny_srf pvt_v2_b0 rdnet_tiny "
        "convnextv2_atto mobilevitv2_050",
        96: "inception_v4 mobilevit_xxs",
        224: "beit_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_lite_tiny coatnet_nano_rw_224 "
        "convit_tiny crossvit_9_240 davit_tiny deit_tiny_patch16_224 edgenext_xx_small efficientformer_l1 "
        "efficientformerv2_s0 efficientvit_m0 eva02_tiny_patch14_224 fastvit_t8 gcvit_xxtiny gmlp_ti16_224 "
        "hiera_tiny_224 iformer_t levit_128s maxvit_rmlp_pico_rw_256 mixer_s32_224 mvitv2_tiny nextvit_small "
        "pit_ti_224 resmlp_12_224 sequencer2d_s shvit_s1 swiftformer_xs swin_tiny_patch4_window7_224 "
        "swinv2_cr_tiny_224 swinv2_tiny_window8_256 tiny_vit_5m_224 tnt_s_patch16_224 twins_svt_small "
        "nest_tiny_jx visformer_tiny vit_relpos_small_patch16_224 vit_tiny_patch16_224 volo_d1_224 "
        "xcit_nano_12_p16_224 caformer_s18 halonet26t haloregnetz_b",
    },
}
SIDES = {"240": 240, "256": 256}  # a name that ends so


def networks() -> Iterator[tuple[str, str, int]]:
    """(Group, name, side of its images) of every network."""
    for group, by_side in NETWORKS.items():
        for side, names in by_side.items():
            for name in names.split():
                fixed = {"botnet26t_256": 256, "halonet26t": 256, "haloregnetz_b": 224}.get(name, side)
                yield group, name, SIDES.get(name.rpartition("_")[2], fixed)


def key(group: str, name: str) -> str:
    """The network's name in the work folder: timm and torchvision share names."""
    return f"timm/{name}" if group == TIMM else name


def pictures(side: int) -> Tensor:
    """Four images of noise around colours of their own."""
    torch.manual_seed(1)
    return torch.randn(4, 3, 1, 1) + torch.randn(4, 3, side, side)


def build(group: str, name: str) -> nn.Module:
    """The network with random weights, none of which are all the same.

    A network's first scales and shifts, and the weights of its head, are often 0 or near it, which would hide
    whole branches.
    """
    torch.manual_seed(0)
    if group == TIMM:
        import timm

        model: nn.Module = timm.create_model(name, num_classes=10)
    elif name == "resnet_fpn_backbone":
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        model = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    else:
        import torchvision

        options: dict[str, Any] = {"num_classes": 10, "weights": None}
        if group == SEGMENTERS:
            options["weights_backbone"] = None
        if name in ("googlenet", "inception_v3"):
            options |= {"aux_logits": False, "init_weights": False}
        model = torchvision.models.get_model(name, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif parameter.dim() > 1 and parameter.numel() > 1:
                size = float(parameter.std()) * parameter[0].numel() ** 0.5
                parameter.mul_(max(1, 0.2 / max(size, 1e-9)))
    return model.eval()
