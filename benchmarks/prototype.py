"""An independent, plain form of the paper's network with every lever that helped.

It is the control of benchmarks/gpu.py: what the package's step is held against. The
columns are two tensors, conv1 is a convolution of 4×4 blocks, and normalization is the
package's function. It shares no other code with the package, and is not trained.
"""

import torch
from torch import nn
from torch.nn import functional as F

from alexnet_nb.lrn import SpatialNorm, lrn

LAST = torch.channels_last


def pool(x):
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


class Prototype(nn.Module):
    """The network of §3.5, of recipe paper or source2012.

    With `dense`, conv2, conv4 and conv5 are whole convolutions, as if the weights from
    one column to the other were zeros that are multiplied like all others.
    """

    def __init__(self, recipe="paper", dense=False):
        super().__init__()
        self.released = recipe == "source2012"
        self.spatial = SpatialNorm()
        parts = 1 if dense else 2
        self.conv1 = nn.Conv2d(3, 96, 11, 4)
        self.conv2 = self.halves(96, 256, 5, 2, parts)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = self.halves(384, 384, 3, 1, parts)
        self.conv5 = self.halves(384, 256, 3, 1, parts)
        self.fc6 = nn.Linear(9216, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, 1000)

    def halves(self, inputs, outputs, kernel, padding, parts):
        return nn.ModuleList(
            nn.Conv2d(inputs // parts, outputs // parts, kernel, padding=padding)
            for _ in range(parts)
        )

    def blocks(self, x):
        """Convolve with conv1: 11×11 at stride 4 on 3 is 3×3 at stride 1 on 48."""
        n = x.shape[0]
        x = F.pad(x, (0, 4, 0, 4)).view(n, 3, 57, 4, 57, 4)
        x = x.permute(0, 1, 3, 5, 2, 4).reshape(n, 48, 57, 57)
        weight = F.pad(self.conv1.weight, (0, 1, 0, 1)).view(96, 3, 3, 4, 3, 4)
        weight = weight.permute(0, 1, 3, 5, 2, 4).reshape(96, 48, 3, 3)
        weight = weight.contiguous(memory_format=LAST)
        return F.conv2d(x.contiguous(memory_format=LAST), weight, self.conv1.bias)

    def first(self, x):
        """Apply the layers that belong to conv1."""
        x = self.blocks(x)
        if self.released:
            return pool(F.relu(self.norm(x, 2)))
        return pool(self.norm(F.relu(x), 2))

    def norm(self, x, columns):
        alpha_over = "mean" if self.released else "sum"
        return lrn(x, alpha_over=alpha_over, columns=columns)

    def norm2(self, x, columns):
        """Normalize the maps of conv2, in the released network also within each."""
        x = self.norm(x, columns)
        return self.spatial(x) if self.released else x

    def apply_parts(self, convolutions, x):
        """Apply each convolution to its part of the channels, then the rectifier."""
        parts = x.chunk(len(convolutions), 1)
        return [F.relu(c(h)) for c, h in zip(convolutions, parts, strict=True)]

    def forward(self, x):
        x = self.first(x)
        columns = 2 // len(self.conv2)
        parts = self.apply_parts(self.conv2, x)
        x = torch.cat([pool(self.norm2(h, columns)) for h in parts], 1)
        x = F.relu(self.conv3(x))
        x = torch.cat(self.apply_parts(self.conv4, x), 1)
        parts = self.apply_parts(self.conv5, x)
        x = torch.cat([pool(h) for h in parts], 1).flatten(1)
        x = F.dropout(F.relu(self.fc6(x)), 0.5, self.training)
        x = F.dropout(F.relu(self.fc7(x)), 0.5, self.training)
        return self.fc8(x)
