"""Here curves are drawn."""

from __future__ import annotations

import pytest

from coterie.observe import curves

RENDER = curves.render
"""As it is before the session's fixture replaces it."""


@pytest.fixture(autouse=True)
def curves_as_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "render", RENDER)
