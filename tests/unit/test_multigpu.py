"""The weights of columns, apart and joined."""

import torch
from torch import nn

from alexnet_nb.learning import scale_width
from alexnet_nb.model import AlexNet
from alexnet_nb.multigpu import merge_state_dicts, shard_state_dict
from alexnet_nb.recipes import paper


def test_weights_go_to_columns_and_back_and_to_the_plain_grouped_net():
    """Bit for bit."""
    recipe = scale_width(paper, 1 / 8, 80)
    whole = AlexNet(recipe, 10)
    parts = [AlexNet(recipe, 10, column) for column in (0, 1)]
    for column, part in enumerate(parts):
        part.load_state_dict(shard_state_dict(whole.state_dict(), column))
    joined = merge_state_dicts(*(part.state_dict() for part in parts))

    def conv(i, o, *kind, groups=1):
        return nn.Conv2d(i, o, *kind, groups=groups)

    plain = nn.ModuleList(
        [
            conv(3, 12, 11, 4),
            conv(12, 32, 5, groups=2),
            conv(32, 48, 3),
            conv(48, 48, 3, groups=2),
            conv(48, 32, 3, groups=2),
            nn.Linear(whole.fc6.in_features, 512),
            nn.Linear(512, 512),
            nn.Linear(512, 10),
        ]
    )
    plain.load_state_dict(dict(zip(plain.state_dict(), joined.values(), strict=True)))
    back = AlexNet(recipe, 10)
    back.load_state_dict(
        dict(zip(back.state_dict(), plain.state_dict().values(), strict=True))
    )
    for name, w in whole.state_dict().items():
        assert torch.equal(joined[name], w), name
        assert torch.equal(back.state_dict()[name], w), name
