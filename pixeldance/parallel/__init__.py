"""Several processes make one clip: they share out tokens, heads, guidance branches and decoding.

Every process runs the same program with the same request and comes to the same clip.

* ``context`` is Ulysses: each process computes a part of the tokens, and a part of the heads inside
  self attention (``tokens.py``).
* ``tensor`` is tensor parallelism: each process holds and computes a part of the heads and of the
  feed-forward channels, for all tokens (``heads.py``).
* ``guidance`` lets one half of the processes predict with the prompt and the other half with the
  negative prompt; within each half tokens are shared, or with ``guidance+tensor`` heads.

All of them share out decoding: the embedded model's by frames, Wan's by rows (``rows.py``).

References:
    DeepSpeed Ulysses, https://arxiv.org/abs/2309.14509;
    Megatron-LM, https://arxiv.org/abs/1909.08053.
"""

from pixeldance.parallel.processes import MODES, Parallelism, check_processes, start
from pixeldance.parallel.rows import share_rows
from pixeldance.parallel.tokens import suspended

__all__ = ["MODES", "Parallelism", "check_processes", "share_rows", "start", "suspended"]
