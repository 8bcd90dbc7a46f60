"""AEPO's roll-out: some prompts are also answered at the temperature that mends the entropy (arXiv:2510.08141)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from coterie.metrics import record
from coterie.pieces import strategy
from coterie.rollouts import Prompt, Rollouts, Sampling
from coterie.streams import stream


@strategy(paper="arXiv:2510.08141", writes="heat", decisions="tokens")
class tempered_extra:
    """Plain sampling, and for the first `share` of the prompts a second group at another temperature.

    That is the run's temperature times `hot` while the last batch's mean -logp_old is at most `target`, else times
    `cold`; the factor stands in the column heat. Second groups come after all others, as groups of their own. Their
    logp_old is the policy's at the run's own temperature, so the ratio is 1 on policy and the temperature is not
    corrected for: that is how it moves the entropy. share=0 is plain.
    """

    def __init__(self, *, share: float = 0.25, target: float = 0.5, hot: float = 1.2, cold: float = 0.8) -> None:
        self.share, self.target, self.hot, self.cold = share, target, hot, cold
        self.mean: float | None = None

    def __call__(
        self, policy: Any, prompts: list[Prompt], seeds: list[list[int]], sampling: Sampling, entropy: bool
    ) -> Rollouts:
        heat = self.hot if self.mean is None or self.mean <= self.target else self.cold
        main = policy.rollout(prompts, seeds, sampling, entropy=entropy)
        if main["mask"].any():
            self.mean = float(-main["logp_old"][main["mask"]].double().mean())
            record("aepo/surprise", self.mean)
        record("aepo/temperature", heat)
        main = main.with_columns(heat=torch.ones_like(main["logp_old"][:, 0]))
        count = int(self.share * len(prompts) + 1e-9)
        if count == 0:
            return main
        other = [[stream(seed, "tempered") for seed in own] for own in seeds[:count]]
        extra = policy.rollout(prompts[:count], other, replace(sampling, temperature=sampling.temperature * heat))
        extra = replace(extra, sampling=sampling)
        names = {"logp": "logp_old", "entropy": "entropy_old"} if entropy else {"logp": "logp_old"}
        found = {column: torch.zeros_like(extra["logp_old"]) for column in names.values()}
        with torch.no_grad():
            for group in range(count):
                rows = (extra["groups"] == group).nonzero().squeeze(-1)
                for name, x in policy.score(extra.rows(rows), set(names)).items():
                    found[names[name]][rows, : x.shape[1]] = x.to(extra["logp_old"].dtype)
        extra = extra.with_columns(heat=torch.full_like(extra["logp_old"][:, 0], heat), **found)
        return Rollouts.concat([main, extra])

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]
