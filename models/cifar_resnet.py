"""CIFAR ResNets: three stages of 16, 32 and 64 channels, shortcuts without parameters.

Depth is 6n + 2 with n blocks in each stage. Where a stage halves the image, the shortcut takes every second
pixel and fills the new channels with zeros ("option A"), so published checkpoints hold no shortcut weights.

Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2015), section 4.2.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class ZeroPadShortcut(nn.Module):
    """Option-A shortcut: subsample the pixels, zero-pad the channels equally on both sides."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.before = extra_channels // 2
        self.after = extra_channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:  # (n, c, h, w) -> (n, c + extra, h / stride, w / stride)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same_shape = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same_shape else ZeroPadShortcut(channels_out - channels_in, stride)

    def forward(self, x: Tensor) -> Tensor:  # (n, c_in, h, w) -> (n, c_out, h / stride, w / stride)
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for images of about 32 x 32.

    Args:
        blocks: blocks in each of the three stages, >= 1; the depth is 6 * blocks + 2.
        classes: outputs of the head `linear`, >= 1.
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:  # (n, 3, h, w) -> (n, classes)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels_out, stride)
    rest = [BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def cifar_resnet20(classes: int = 10) -> CifarResNet:
    """ResNet-20 for CIFAR: 0.27 M parameters, 41 M MACs at 32 x 32."""
    return CifarResNet(3, classes)


def cifar_resnet32(classes: int = 10) -> CifarResNet:
    """ResNet-32 for CIFAR: 0.46 M parameters, 69 M MACs at 32 x 32."""
    return CifarResNet(5, classes)


def cifar_resnet44(classes: int = 10) -> CifarResNet:
    """ResNet-44 for CIFAR: 0.66 M parameters, 97 M MACs at 32 x 32."""
    return CifarResNet(7, classes)


def cifar_resnet56(classes: int = 10) -> CifarResNet:
    """ResNet-56 for CIFAR: 0.85 M parameters, 125 M MACs at 32 x 32."""
    return CifarResNet(9, classes)


def cifar_resnet110(classes: int = 10) -> CifarResNet:
    """ResNet-110 for CIFAR: 1.73 M parameters, 253 M MACs at 32 x 32."""
    return CifarResNet(18, classes)
