"""Published source models of the large streams.

Clean errors are those that RobustBench and torchvision state, give or take what decoders and samples of the test images
differ by; AdaContrast states none for its own domain, so that range is wide. RobustBench and AdaContrast publish no
digests: there keys and clean error decide.
"""

from __future__ import annotations

import functools

from .models.bottleneck_resnet import BottleneckResNet
from .models.libraries import torchvision_net
from .models.resnext_cifar import CifarResNeXt
from .models.wide_resnet import WideResNet
from .source_models import HALF, IMAGENET_MEAN, IMAGENET_STD, ONE, ZERO, SourceModel

WRN28_10 = SourceModel(
    "wrn28-10-cifar10", WideResNet, "source-models", "cifar10-standard.pt", "", ZERO, ONE, 10, (0.0500, 0.0545)
)
RESNEXT29_AUGMIX = SourceModel(
    "resnext29-augmix-cifar100", CifarResNeXt, "source-models", "cifar100-augmix-resnext.pt", "", HALF, HALF, 100,
    (0.206, 0.216),
)  # fmt: skip
RESNET50 = SourceModel(
    "resnet50-imagenet-v1", functools.partial(torchvision_net, "resnet50"), "torchvision-models",
    "resnet50-0676ba61.pth", "0676ba61", IMAGENET_MEAN, IMAGENET_STD, 1000, (0.225, 0.255),
)  # fmt: skip
DOMAINNET126_REAL = SourceModel(
    "resnet50-domainnet-126-real", BottleneckResNet, "source-models", "domainnet-126-real.pth", "", IMAGENET_MEAN,
    IMAGENET_STD, 126, (0.0, 0.15),
)  # fmt: skip
