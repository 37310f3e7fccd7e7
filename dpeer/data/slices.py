"""One rank's part of a pack that several ranks compute together: some of its tokens, and what is predicted there."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Slice(NamedTuple):
    """Tokens [first, first + t) of a pack. All slices of a pack are of one length: the last ones may end in padding,
    which nothing attends to and no prediction is made from."""

    first: int
    input_ids: Tensor  # [1, t] int64
    position_ids: Tensor  # [1, t] int64
    rows: Tensor  # [N'] int64: positions in this slice whose hidden states predict
    targets: Tensor  # [N'] int64
    row_response: Tensor  # [N'] int64: response in the pack
    ends: Tensor  # [R'] int64: those of the N' that predict a response's last token

    @property
    def tokens(self) -> int:
        return int(self.input_ids.shape[1])

    def of(self, values: Tensor) -> Tensor:
        """This slice [t] of values [T] of a pack's tokens; zero where it is padded."""
        end = self.first + self.tokens
        return pad(values, (0, max(0, end - len(values))))[self.first : end]


def slice_of(
    input_ids: Tensor,
    position_ids: Tensor,
    rows: Tensor,
    targets: Tensor,
    row_response: Tensor,
    response_tokens: Tensor,
    rank: int,
    size: int,
) -> Slice:
    """Part `rank` of `size` of a pack with these fields."""
    tokens = input_ids.shape[1]
    length = -(-tokens // size)
    first = rank * length
    ids, positions = (pad(x, (0, size * length - tokens))[:, first : first + length] for x in (input_ids, position_ids))
    here = ((rows >= first) & (rows < first + length)).nonzero()[:, 0]
    last = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    last[response_tokens.cumsum(0) - 1] = True
    return Slice(
        first, ids, positions, rows[here] - first, targets[here], row_response[here], last[here].nonzero()[:, 0]
    )
