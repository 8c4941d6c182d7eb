"""What many changes of a convolution's weight do, from its windows: each is looked at once for all of them.

A change D moves the output by D x at a window x. All of it is in two things that no change is needed for: the moment
of the windows, as |D x|^2 adds up to tr(D C D^T), and for each image the gradient of its answers by the weight,
S = sum of g x^T over its windows, as g . D x adds up to the product of D and S.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..lowrank.forms import Form, matricise, matrix_size
from ..lowrank.moments import pair_moments
from ..lowrank.patches import answered_patches
from ..lowrank.shapes import LayerShape


def windows_pay(shape: LayerShape, samples: int, changes: int) -> bool:
    """Whether they cost less than to run the layer for each change.

    Args:
        shape: of the layer.
        samples: windows there are.
        changes: of the weight.
    """
    rows, columns = matrix_size(shape, Form.CHANNEL)
    of_windows = samples * columns + 2 * changes * rows * columns  # float64 takes twice as long
    return not shape.linear and samples * (changes - 1) * rows > of_windows


@torch.no_grad()
def window_changes(
    changes: Sequence[Tensor], given: Tensor, slopes: Tensor, shape: LayerShape
) -> tuple[Tensor, Tensor]:
    """What changes of a weight do to the output, less their mean at each channel, and to the answers.

    Args:
        changes: of `shape.weight`.
        given: (N, inputs, ...) what the layer reads.
        slopes: (N, outputs, ...) of the answers, by what it gives.
        shape: of a convolution.

    Returns:
        (changes, outputs) float64, each output's squared change summed over images and places; and (changes, N), the
        product of slopes and change, summed over places.
    """
    moments = pair_moments(given, given, shape, Form.CHANNEL).centred()
    second = moments.second.reshape(shape.groups, *moments.second.shape[-2:])
    mean = moments.mean_z.reshape(shape.groups, -1, 1).float()
    matrices = torch.stack([matricise(change, shape, Form.CHANNEL) for change in changes]).double()
    matrices = matrices.reshape(len(changes), shape.groups, -1, second.shape[-1])
    places = math.prod(slopes.shape[2:])
    squares = (matrices @ second * matrices).sum(-1).flatten(1) * (len(given) * places)
    products = []
    for felt, windows in answered_patches(slopes, given, shape):
        left, right = (part.reshape(*part.shape[:2], -1, places).movedim(2, 0) for part in (felt, windows - mean))
        of_weight = (left @ right.mT).flatten(1)  # one row for each image
        products.append(matrices.flatten(1).to(of_weight) @ of_weight.mT)
    return squares.clamp_min(0.0), torch.cat(products, -1)
