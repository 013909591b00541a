"""SEAL on a graph: a graph convolutional network (Kipf and Welling, 2017) on Zachary's karate club.

python examples/graph_gcn.py
"""

import argparse

import networkx
import torch
import torch.nn.functional as F
from torch import nn

from seal_fast import Annealer


class GCN(nn.Module):
    def __init__(self, adjacency: torch.Tensor, classes: int) -> None:
        super().__init__()
        looped = adjacency + torch.eye(len(adjacency))
        degrees = looped.sum(1).rsqrt()
        self.register_buffer("propagate", degrees[:, None] * looped * degrees)
        self.first, self.second = nn.Linear(len(adjacency), 16), nn.Linear(16, classes)

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        return self.propagate @ self.second(F.relu(self.propagate @ self.first(nodes)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="seal")
    parser.add_argument("--epochs", type=int, default=40)
    flags = parser.parse_args()
    torch.manual_seed(0)
    club = networkx.karate_club_graph()
    labels = torch.tensor([club.nodes[n]["club"] == "Officer" for n in club]).long()
    adjacency = torch.tensor(networkx.to_numpy_array(club, weight=None), dtype=torch.float32)
    known = torch.arange(len(labels)) % 5 == 0
    model, nodes = GCN(adjacency, 2), torch.eye(len(labels))
    annealer = Annealer(model, flags.method, generations=3, epochs=flags.epochs, threshold="second", lr=0.5)
    for epoch in annealer:
        out = model(nodes)
        F.cross_entropy(out[known], labels[known]).backward()
        annealer.step()
        annealer.zero_grad()
        if epoch.last_of_phase:
            right = (out.argmax(1) == labels)[~known].float().mean()
            print(f"g{epoch.generation} e{epoch.epoch} {epoch.phase:8}accuracy of unlabelled nodes {right:.0%}")


if __name__ == "__main__":
    main()
