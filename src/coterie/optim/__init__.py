"""Optimizers: ordinary torch.optim.Optimizer classes, and the pieces that make them in a recipe.

One that evaluates the loss itself says so in an attribute `asks`: its `step` takes a closure, which returns the loss at
the weights as they then are. With "loss" that is all it does; with "gradient" it leaves the gradient in `.grad` too.
"""

from coterie.optim.cbo import CBO
from coterie.optim.cosmos import COSMOS
from coterie.optim.harpg import HARPG
from coterie.optim.hesso import HESSO
from coterie.optim.mezo import MeZO
from coterie.optim.n_pg_igt import NPGIGT
from coterie.optim.spam import SPAM
from coterie.optim.sparse_mezo import SparseMeZO
from coterie.optim.zeroth_order import ZerothOrder
from coterie.optim.zo_ranksgd import ZORankSGD
from coterie.registry import discover

discover(__name__)

__all__ = ["CBO", "COSMOS", "HARPG", "HESSO", "NPGIGT", "SPAM", "MeZO", "SparseMeZO", "ZORankSGD", "ZerothOrder"]
