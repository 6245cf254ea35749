"""A small Llama: the same blocks that llama.cpp runs, with one head for words in and words out.

Parameters carry their GGUF names. Rotary halves are contiguous here, because that is faster on a
CPU; `demo.export` puts the rows into llama.cpp's order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; `hidden` is the feed-forward width."""

    width: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int = 0
    context: int = 512
    rope_base: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Norm(nn.Module):
    """Root-mean-square norm with a gain."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight, self.epsilon)


@dataclass(frozen=True, slots=True)
class Positions:
    """What every block needs to know about a batch's positions.

    cosine, sine: (tokens, head width); mask: (1, tokens, tokens), 0 where a token may look.
    """

    cosine: Tensor
    sine: Tensor
    mask: Tensor

    def turned(self, x: Tensor) -> Tensor:
        """Rotary embedding of (batch, heads, tokens, head width)."""
        left, right = x.chunk(2, -1)
        return x * self.cosine + torch.cat((-right, left), -1) * self.sine


class Block(nn.Module):
    """Attention, then a gated feed-forward, each added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, hidden = shape.width, shape.hidden
        self.heads = shape.heads
        self.attn_norm = Norm(width, shape.epsilon)
        self.attn_q = nn.Linear(width, width, bias=False)
        self.attn_k = nn.Linear(width, width, bias=False)
        self.attn_v = nn.Linear(width, width, bias=False)
        self.attn_output = nn.Linear(width, width, bias=False)
        self.ffn_norm = Norm(width, shape.epsilon)
        self.ffn_gate = nn.Linear(width, hidden, bias=False)
        self.ffn_up = nn.Linear(width, hidden, bias=False)
        self.ffn_down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, positions: Positions) -> Tensor:
        x = x + self.attn_output(self.attended(self.attn_norm(x), positions))
        y = self.ffn_norm(x)
        added: Tensor = self.ffn_down(functional.silu(self.ffn_gate(y)) * self.ffn_up(y))
        return x + added

    def attended(self, y: Tensor, positions: Positions) -> Tensor:
        """Plain matrix products: the flash kernel's backward pass is far slower on a CPU."""
        batch, tokens, width = y.shape

        def by_head(x: Tensor) -> Tensor:
            return x.view(batch, tokens, self.heads, -1).transpose(1, 2)

        def flat(x: Tensor) -> Tensor:
            return x.reshape(batch * self.heads, tokens, -1)

        scale = (width // self.heads) ** -0.5
        query = flat(positions.turned(by_head(self.attn_q(y)))) * scale
        key = flat(positions.turned(by_head(self.attn_k(y))))
        mask = positions.mask.expand(batch * self.heads, tokens, tokens)
        weights = torch.softmax(torch.baddbmm(mask, query, key.mT), -1)
        mixed: Tensor = torch.bmm(weights, flat(by_head(self.attn_v(y))))
        mixed = mixed.view(batch, self.heads, tokens, -1).transpose(1, 2)
        return mixed.reshape(batch, tokens, width)


class Judge(nn.Module):
    """Reads a prompt and answers with logits over the words."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = Norm(shape.width, shape.epsilon)
        self._start()

    def _start(self) -> None:
        """Loud tokens, silent blocks, quiet output.

        The residual stream starts as the token itself, which is what heads that match words need,
        while the tied head starts with small logits.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("token_embd"):
                nn.init.normal_(parameter)
            elif "attn_output" in name or "ffn_down" in name:
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        nn.init.constant_(self.output_norm.weight, 0.5 * self.shape.width**-0.5)

    def forward(self, tokens: Tensor, marks: Tensor, at: Tensor, marked_after: int) -> Tensor:
        """Logits of the tokens that should follow the marks, then those that follow `at`.

        tokens: (batch, length) ids, padded at the end.
        marks, at: indices into the flattened batch; the head runs nowhere else.
        marked_after: blocks after which the marks are read, so that the others can build on them.
        """
        x = self.token_embd(tokens)
        positions = self.positions(tokens.shape[1])
        for number, block in enumerate(self.blk, 1):
            x = block(x, positions)
            if number == marked_after:
                marked = x.flatten(0, 1)[marks]
        asked = self.output_norm(torch.cat((marked, x.flatten(0, 1)[at])))
        logits: Tensor = functional.linear(asked, self.token_embd.weight)
        return logits

    def positions(self, length: int) -> Positions:
        width = self.shape.head_width
        turns = self.shape.rope_base ** (-torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(length).float(), turns).repeat(1, 2)
        mask = torch.full((1, length, length), -1e4).triu_(1)
        return Positions(angles.cos(), angles.sin(), mask)
