"""Optimisers: SGD with a sign and a scale per group, on one process or sharded over several."""

from seal_fast.optim.annealed_sgd import AnnealedSGD as AnnealedSGD
from seal_fast.optim.ema import ModelEMA as ModelEMA
from seal_fast.optim.sharded_sgd import ShardedSGD as ShardedSGD
