"""SEAL on text: a small transformer that predicts the next character of Python's own language reference.

python examples/text_transformer.py
"""

import argparse
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn

from seal_fast import Annealer

LENGTH, WIDTH = 32, 48


class Transformer(nn.Module):
    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(symbols, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, symbols)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(x) + self.place.weight, self.mask, is_causal=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="seal")
    parser.add_argument("--epochs", type=int, default=6)
    flags = parser.parse_args()
    torch.manual_seed(0)
    text = "".join(topics.values())[:20_000]
    symbols = sorted(set(text))
    codes = torch.tensor([symbols.index(c) for c in text])
    windows = codes.unfold(0, LENGTH + 1, LENGTH)
    train, test = windows[: len(windows) * 4 // 5], windows[len(windows) * 4 // 5 :]
    model = Transformer(len(symbols))

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    annealer = Annealer(model, flags.method, generations=3, epochs=flags.epochs, threshold="blocks.layers.2", lr=0.1)
    for epoch in annealer:
        for rows in train[torch.randperm(len(train))].split(32):
            loss(rows).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            annealer.step()
            annealer.zero_grad()
        with torch.no_grad():
            print(f"g{epoch.generation} e{epoch.epoch} {epoch.phase:8}test loss {loss(test):.3f}")


if __name__ == "__main__":
    main()
