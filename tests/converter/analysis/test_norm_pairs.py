"""Which norm reads a layer, and what it makes of each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dprp.converter.analysis.norm_pairs import norm_pairs, norm_scales

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_only_a_norm_of_a_layer_s_own_output_counts() -> None:
    pair, apart = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    model = nn.Sequential(*pair, *apart).eval()
    assert norm_pairs(model, [IMAGES]) == [("0", "1")]
    assert norm_scales(model, [IMAGES]).keys() == {"0"}


def test_scales_are_the_deviations_behind_the_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None))
    norm = model[1]
    quiet = torch.tensor([1e-4, 1e-2, 1.0, 1.0])  # the first varies less than the norm adds
    model[0].weight.data *= quiet.reshape(-1, 1, 1, 1)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    norm.weight.data[3] *= -1
    many = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    model(many)
    deviations = model.eval()(many).std((0, 2, 3), correction=0)
    found = norm_scales(model, [IMAGES])["0"]
    torch.testing.assert_close(found.abs(), deviations.detach(), rtol=1e-3, atol=0.0)
    assert found[0] < 0.1


def test_norms_without_weights_or_statistics() -> None:
    def found(**how: bool) -> dict[str, Tensor]:
        return norm_scales(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **how)).eval(), [IMAGES])

    torch.testing.assert_close(found(affine=False)["0"], torch.ones(4), rtol=1e-4, atol=0.0)
    assert found(track_running_stats=False) == {}
