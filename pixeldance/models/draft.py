"""The clip that the given pictures make by themselves: each carried along its motion.

It is what sampling starts from, with noise on top (SDEdit), so that the transformer need not find
out again from noise where everything is; and it shows no trace of what has moved away.

References:
    Meng et al. 2022, SDEdit, https://arxiv.org/abs/2108.01073
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from pixeldance.models.carrying import FINE, Motion, carried
from pixeldance.models.layers import warp

_NEAREST = 0.02  # how much the farther picture counts at least
_BEYOND = 1e-3  # how much a picture counts beyond its edge, beside one that does not end there
_STAND_IN = 0.5  # how much what is around counts where a picture shows something else
_SEEN = 0.4  # how likely something is in front from where it is not taken for background
_RIM = 7  # pixels from side to side around it that show a mixture of both
_EDGE = 17  # the same, and its shadow
_RELAXATION = 512  # of what stands in: places along the longer side times steps, of each level
_DOWN = 0.05  # how much what is above and below counts there; the rest are left and right


def carried_pictures(pictures: Tensor, present: Tensor, motion: Motion, time: Tensor) -> Tensor:
    """Frames made of nothing but the given pictures.

    Of two pictures the nearer one counts for more, and one that shows another layer than the frame
    (what is in front, or what is behind it), or ends before the place, for nothing. Where none
    shows the right one, what is around it stands in.

    Args:
        pictures: ``(n, 2, 3, height, width)`` in [-1, 1], sides multiples of 16; anything where
            absent.
        present: ``(n, 2)`` bool, at least one in each row.
        motion: Motion between the pictures.
        time: ``(n, q)`` in [0, 1], 0 at the first picture.

    Returns:
        ``(n, 3, q, height, width)``, float32.
    """
    count, frames = time.shape
    flow, front = carried(motion, time, present)
    flow = _enlarged(rearrange(flow, "n r q d h w -> (n r q) d h w"))
    front = _enlarged(rearrange(front, "n q c h w -> (n q) c h w"))
    fronts = _enlarged(rearrange(motion.front, "n r c h w -> (n r) c h w"))
    sharp = rearrange(pictures, "n r c h w -> (n r) c h w").float()
    wide = F.max_pool2d(fronts, _RIM, stride=1, padding=_RIM // 2)
    behind = stand_ins(pictures, motion.front) if motion.behind is None else motion.behind
    behind = rearrange(behind, "n r c h w -> (n r) c h w")
    fetched = torch.cat([sharp, behind, wide], dim=1)
    fetched = warp(repeat(fetched, "m c h w -> (m q) c h w", q=frames), flow)
    fetched = rearrange(fetched, "(n r q) c h w -> r n q c h w", n=count, q=frames)
    shown, behind, layer = fetched.split([3, 3, 1], dim=3)
    agreement = 1 - (rearrange(front, "(n q) c h w -> n q c h w", n=count) - layer).abs()
    elapsed = torch.stack([time, 1 - time])[..., None, None, None]
    near = (1 - elapsed).clamp(min=_NEAREST).square() * present.mT[..., None, None, None, None]
    inside = rearrange(_is_inside(flow), "(n r q) 1 h w -> r n q 1 h w", n=count, q=frames)
    near = near * torch.where(inside, 1.0, _BEYOND)
    weights = near * (agreement + _STAND_IN * (1 - agreement))
    made = torch.lerp(behind, shown, shown_share(agreement, elapsed))
    made = (weights * made).sum(0) / weights.sum(0)
    return rearrange(made, "n q c h w -> n c q h w")


def shown_share(agreement: Tensor, elapsed: Tensor) -> Tensor:
    """How much a picture itself counts beside what stands in for it.

    Args:
        agreement: How likely it shows the same layer as the frame, in [0, 1].
        elapsed: Share of the way from the picture to the other end, which broadcasts; at 0 the
            frame is the picture.

    Returns:
        In [0, 1], 0 where another layer is shown for sure.
    """
    shown, hidden = agreement.square(), _STAND_IN * (1 - agreement).square()
    share = shown / (shown + hidden)
    return torch.where(elapsed == 0, 1.0, share)


def stand_ins(pictures: Tensor, front: Tensor) -> Tensor:
    """What is around it in place of what is in front, its edges and its shadow.

    Args:
        pictures: ``(n, 2, 3, height, width)`` in [-1, 1].
        front: As :class:`~pixeldance.models.carrying.Motion` has it.

    Returns:
        Pictures like ``pictures``, float32: a motion's ``behind``.
    """
    flat = rearrange(pictures, "n r c h w -> (n r) c h w").float()
    seen_front = _enlarged(rearrange(front, "n r c h w -> (n r) c h w")) > _SEEN
    covered = F.max_pool2d(seen_front.float(), _EDGE, stride=1, padding=_EDGE // 2)
    return _continued(flat, 1 - covered).view(pictures.shape)


def _continued(values: Tensor, known: Tensor) -> Tensor:
    """What is known, continued smoothly where nothing is: a membrane stretched between the edges.

    It is stretched far more across than down, for horizons, floors and ceilings go on to the sides.
    Coarse to fine, with some steps of relaxation on each level.

    Args:
        values: ``(n, channels, height, width)``, anything where not known.
        known: ``(n, 1, height, width)``, 1 or 0.

    Returns:
        Values like ``values``; zero if nothing is known.
    """
    height, width = values.shape[-2:]
    values = values * known
    if min(height, width) == 1:
        made = values.sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)
    else:
        share = F.avg_pool2d(known, 2, ceil_mode=True)
        halved = F.avg_pool2d(values, 2, ceil_mode=True) / share.clamp(min=0.01)
        coarse = _continued(halved, (share > 0).to(values.dtype))
        made = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    for _ in range(min(max(_RELAXATION // max(height, width), 2), 32)):
        padded = F.pad(torch.where(known > 0, values, made), (1, 1, 1, 1), mode="replicate")
        across = F.avg_pool2d(padded[:, :, 1:-1], (1, 3), stride=1)
        down = F.avg_pool2d(padded[:, :, :, 1:-1], (3, 1), stride=1)
        made = torch.lerp(across, down, _DOWN)
    return torch.where(known > 0, values, made)


def _is_inside(flow: Tensor) -> Tensor:
    """Where displacements ``(m, 2, height, width)`` lead into the picture, ``(m, 1, ...)``."""
    height, width = flow.shape[-2:]
    x = torch.arange(width, device=flow.device)
    y = torch.arange(height, device=flow.device)
    to = flow + torch.stack(torch.meshgrid(x, y, indexing="xy"))
    sides = flow.new_tensor([width, height])[:, None, None]
    return ((to > -1) & (to < sides)).all(1, keepdim=True)


def _enlarged(values: Tensor) -> Tensor:
    """Maps ``(n, channels, h, w)`` on the motion's grid at full size."""
    return F.interpolate(values, scale_factor=FINE, mode="bilinear", align_corners=False)
