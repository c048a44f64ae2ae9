"""What a text says about motion, before any picture is seen.

Learned queries read the token states of the text, and where in it each stands: two for how the
camera moves, as seen from the first and from the last frame, and two for each of up to three
subjects, in the order in which the text names them.

References:
    Vaswani et al. 2017, Attention is all you need, https://arxiv.org/abs/1706.03762 (section 3.5).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pixeldance.models.carrying import NUM_DETOURS

NUM_MOMENTS = NUM_DETOURS + 1  # at which paths are told: after 1/4, 2/4, 3/4 and all of the way
NUM_SUBJECTS = 3
PARAMETERS = 4  # of a similarity: shift in x and y, log of the scale, turn
HEADS = 5
_LAYERS = 2
_LONGEST_WAVE = 200.0  # tokens over 2 pi
_PLACE_SIZE = 0.4  # of what tells a token's place, beside token states of about 1


class Said(NamedTuple):
    """What a text says; see :class:`pixeldance.models.motion.Told` for what its numbers mean.

    Attributes:
        tokens: ``(n, 8, width)``, of the camera and of the subjects, each from both ends.
        camera: ``(n, 2, 4, 4)``, how what stands still moves on the screen from each end until each
            of four moments: shift in halves of the picture's sides, log of the scale and turn in
            radians around the picture's centre.
        subjects: ``(n, 3, 2, 4, 4)``, the same of each subject; it grows and turns around its own
            centre.
        named: ``(n, 3)``, positive for subjects that the text names.
        cut: ``(n,)``, positive where the text asks for a cut to another shot.
        cut_at: ``(n,)`` int64, the token that says so most; -1 is none of them.
        text: ``(n, tokens, width)``, token states for others to read; the first one is no word.
        padding: ``(n, tokens)`` bool, what they must not read.
    """

    tokens: Tensor
    camera: Tensor
    subjects: Tensor
    named: Tensor
    cut: Tensor
    cut_at: Tensor
    text: Tensor
    padding: Tensor


class TextReader(nn.Module):
    """Reads what a text says about motion.

    Args:
        text_dim: Width of the token states.
        width: Width inside.
    """

    def __init__(self, text_dim: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width))
        self.no_word = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.queries = nn.Parameter(0.02 * torch.randn(1, 2 + 2 * NUM_SUBJECTS, width))
        self.layers = nn.ModuleList(decoder_layer(width) for _ in range(_LAYERS))
        self.norm = nn.LayerNorm(width)
        self.say_camera = nn.Linear(width, NUM_MOMENTS * PARAMETERS)
        self.say_subject = nn.Linear(width, NUM_MOMENTS * PARAMETERS)
        self.say_named = nn.Linear(width, 1)
        self.say_cut = nn.Linear(width, 1)

    def forward(self, text: Tensor) -> Said:
        """Read.

        Args:
            text: Token states ``(n, tokens, text_dim)``, zeros after the real ones; none at all are
                no text.

        Returns:
            What it says.
        """
        no_word = self.no_word.expand(len(text), -1, -1)
        entered = self.enter(text.to(self.no_word.dtype))
        words = torch.cat([no_word.to(entered.dtype), entered], dim=1)
        padding = F.pad(~text.any(2), (1, 0), value=False)
        placed = words + _places(words)  # what comes first happens first
        tokens = self.queries.expand(len(text), -1, -1).to(words.dtype)
        for layer in self.layers:
            tokens = layer(tokens, placed, memory_key_padding_mask=padding)
        tokens = self.norm(tokens)
        camera = self.say_camera(tokens[:, :2]).float()
        subjects = self.say_subject(tokens[:, 2:]).float()
        named = self.say_named(tokens[:, 2::2])[:, :, 0].float()
        cut = self.say_cut(words)[:, :, 0].float().masked_fill(padding, -torch.inf)
        return Said(
            tokens,
            rearrange(camera, "n r (k p) -> n r k p", k=NUM_MOMENTS),
            rearrange(subjects, "n (s r) (k p) -> n s r k p", r=2, k=NUM_MOMENTS),
            named,
            cut.amax(1),  # one word says it
            cut.argmax(1) - 1,
            words,
            padding,
        )


def _places(words: Tensor) -> Tensor:
    """Sines and cosines of each token's place, ``(tokens, width)``."""
    count, width = words.shape[1:]
    waves = torch.arange(width // 2, device=words.device) / (width // 2)
    angles = torch.arange(count, device=words.device)[:, None] * _LONGEST_WAVE**-waves
    places = torch.cat([angles.sin(), angles.cos()], dim=1)
    return _PLACE_SIZE * places.to(words.dtype)


def decoder_layer(width: int) -> nn.TransformerDecoderLayer:
    """Attention among the tokens, attention to the text, and an MLP."""
    return nn.TransformerDecoderLayer(
        width, HEADS, 3 * width, 0.0, F.gelu, batch_first=True, norm_first=True
    )
