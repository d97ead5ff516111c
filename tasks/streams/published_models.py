"""Published source models of the large streams.

Clean errors are those that RobustBench, torchvision and timm state, give or take what decoders and samples of the test
images differ by; AdaContrast states none for its own domain, so that range is wide. timm's are those of its table
`results/results-imagenet.csv` (huggingface/pytorch-image-models at aa4b585): 15.466 % and 19.926 % at 224 pixels.

torchvision's digests begin with the digits in the names of its files, and so does timm's of the ResNet-50; the others
after these eight digits, and the digest of RobustBench's WRN-28-10, are as public users of the same files state them.
Of the ResNeXt-29, of AdaContrast's ResNet-50 and of timm's ViT no digest was found. Those are empty, and the rule for
them is that of `SourceModel`: keys, shapes and clean error decide, and the digest that was seen is kept.
"""

from __future__ import annotations

import functools

from .models.bottleneck_resnet import BottleneckResNet
from .models.libraries import timm_net, torchvision_net
from .models.resnext_cifar import CifarResNeXt
from .models.wide_resnet import WideResNet
from .source_models import HALF, IMAGENET_MEAN, IMAGENET_STD, ONE, ZERO, SourceModel

WRN28_10 = SourceModel(
    "wrn28-10-cifar10", WideResNet, "source-models", "cifar10-standard.pt",
    "6ed1c75dad63e8ebdbef365020dd1a7eee5e79cf8a1438bd3bdc3b9c7aab3d44", ZERO, ONE, 10, (0.0500, 0.0545),
)  # fmt: skip
RESNEXT29_AUGMIX = SourceModel(
    "resnext29-augmix-cifar100", CifarResNeXt, "source-models", "cifar100-augmix-resnext.pt", "", HALF, HALF, 100,
    (0.206, 0.216),
)  # fmt: skip
RESNET50 = SourceModel(
    "resnet50-imagenet-v1", functools.partial(torchvision_net, "resnet50"), "torchvision-models",
    "resnet50-0676ba61.pth", "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a", IMAGENET_MEAN,
    IMAGENET_STD, 1000, (0.225, 0.255),
)  # fmt: skip
VIT_B16 = SourceModel(
    "vit-b16-imagenet-augreg", functools.partial(timm_net, "vit_base_patch16_224"), "timm-models",
    "vit_base_patch16_224.augreg_in21k_ft_in1k.safetensors", "", HALF, HALF, 1000, (0.14, 0.17), resize=248,
    bicubic=True,
)  # fmt: skip
RESNET50_GN = SourceModel(
    "resnet50-gn-imagenet-a1h", functools.partial(timm_net, "resnet50_gn"), "timm-models",
    "resnet50_gn_a1h2-8fe6c4d0.pth", "8fe6c4d08094e791f17c7835e1bdd3a64fccc0b849bfc1ea339b3bbf372fac85", IMAGENET_MEAN,
    IMAGENET_STD, 1000, (0.184, 0.214), resize=238, bicubic=True,
)  # fmt: skip
DOMAINNET126_REAL = SourceModel(
    "resnet50-domainnet-126-real", BottleneckResNet, "source-models", "domainnet-126-real.pth", "", IMAGENET_MEAN,
    IMAGENET_STD, 126, (0.0, 0.15),
)  # fmt: skip
