"""SEAL under PyTorch Lightning, which runs the loop: the annealer follows its hooks.

pip install '.[lightning]'; python examples/lightning_digits.py
"""

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from seal_fast import Annealer


class Digits(lightning.LightningModule):
    def __init__(self, method: str, epochs: int) -> None:
        super().__init__()
        self.automatic_optimization, self.saved = False, None  # the annealer owns the optimiser
        self.settings = {"method": method, "generations": 3, "epochs": epochs, "threshold": "2", "lr": 0.1}
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def on_fit_start(self) -> None:  # the weights are on their device, and not yet wrapped
        self.annealer = Annealer(self.net, **self.settings)
        if self.saved:  # by on_load_checkpoint
            self.annealer.load_state_dict(self.saved)
        self.epochs = iter(self.annealer)

    def on_train_epoch_start(self) -> None:
        self.epoch = next(self.epochs)

    def training_step(self, batch, _) -> None:
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        self.annealer.step()
        self.annealer.zero_grad()

    def validation_step(self, batch, _) -> None:
        right, at = (self.net(batch[0]).argmax(1) == batch[1]).float().mean(), self.epoch
        print(f"g{at.generation} e{at.epoch} {at.phase:8}accuracy {right:.0%}")

    def configure_optimizers(self) -> None:
        return None

    def on_save_checkpoint(self, checkpoint) -> None:
        checkpoint["annealer"] = self.annealer.state_dict()

    def on_load_checkpoint(self, checkpoint) -> None:
        self.saved = checkpoint["annealer"]


if __name__ == "__main__":
    lightning.seed_everything(0)
    x, y = load_digits(return_X_y=True)
    pairs = list(zip(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y), strict=True))
    load = torch.utils.data.DataLoader
    loaders = load(pairs[::5], 32, shuffle=True), load(pairs[1::5], 400)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(accelerator="cpu", num_sanity_val_steps=0, max_epochs=12, **quiet).fit(
        Digits("seal", 4), *loaders
    )
