"""Models that bring their own code, written for transformers 4: what transformers 5 asks of them beside that."""

from __future__ import annotations

import functools
import inspect
from typing import Any


def prepare(spec: Any, name: str, classes: tuple[str, ...]) -> str | None:
    """The first of these classes of transformers under which the model `name` knows its own code; None where it brings
    none.

    Its class is fitted to be loaded. Code that does not end its __init__ with post_init (LLaDA's) says nothing of tied
    weights, its tie_weights takes no arguments, and it reads a setting that configs no longer have by themselves.
    """
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    revision = {} if spec.revision is None else {"revision": spec.revision}
    config = AutoConfig.from_pretrained(name, trust_remote_code=True, **revision)
    known = getattr(config, "auto_map", None) or {}
    chosen = next((c for c in classes if c in known), None)
    if chosen is None:
        return None
    model: Any = get_class_from_dynamic_module(known[chosen], name, **revision)
    if not hasattr(model, "all_tied_weights_keys"):
        model.all_tied_weights_keys = {}
    for described in (type(config), model.config_class):
        if not hasattr(described, "use_cache"):
            described.use_cache = False
    ties = model.tie_weights
    if len(inspect.signature(ties).parameters) == 1:
        model.tie_weights = functools.wraps(ties)(lambda self, *args, **kwargs: ties(self))
    return chosen
