"""Model-written code, run where it can do no harm."""

from coterie.sandbox.limits import Limits
from coterie.sandbox.process import Result
from coterie.sandbox.sandbox import Sandbox

__all__ = ["Limits", "Result", "Sandbox"]
