"""The plain settings of a recipe, section by section. Field docs are the help text; unknown keys are errors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from coterie.layers import Layer
from coterie.schedules import Schedule

Number = float | Schedule


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Draw(Section):
    prompts: PositiveInt = Field(8, description="prompts an update; each is answered by a group")
    demonstrations: PositiveInt = Field(8, description="demonstrations an optimizer step, where they are imitated")


class Rollout(Section):
    group_size: PositiveInt = Field(8, description="rollouts a prompt")
    temperature: Number = Field(1.0, description="sampling temperature, > 0")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus mass kept")
    top_k: int = Field(0, ge=0, description="most likely tokens kept, 0 keeps all")
    min_p: float = Field(0.0, ge=0, lt=1, description="tokens under min_p times the best are cut")
    max_tokens: PositiveInt = Field(64, description="completion budget; longer ones are truncated")
    stop: list[str] = Field(default_factory=list, description="strings that end a completion")


class Denoise(Section):
    """Of policies that denoise; language models take none of these."""

    steps: PositiveInt = Field(10, description="denoising steps of a training rollout, each a decision")
    eval_steps: PositiveInt | None = Field(None, description="steps of held-out samples, by the ODE; default: as many")
    shift: float = Field(1.0, gt=0, description="above 1 more steps are taken at high noise (SD3 and FLUX use 3)")
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance scale; 1 is none")
    shared_noise: bool = Field(False, description="rollouts of a group start from the same noise")
    resolution: float = Field(
        1.0, gt=0, le=1, description="sides of training pictures, as a share of those of held-out ones"
    )
    logp: Literal["mean", "sum", "unscaled"] = Field(
        "mean", description="a step's log-prob: its numbers' log-densities averaged or summed, or -mean (x' - mean)^2"
    )


class Unmask(Section):
    """How a masked diffusion model fills its canvas of rollout.max_tokens places, and how log-probs are found; other
    policies take none of these."""

    steps: PositiveInt | None = Field(None, description="denoising steps of a rollout; default: one a place")
    growth: Literal["uniform", "ascending"] = Field(
        "uniform", description="places a step: as many in each, or 1, 2, 4 … and in the last what is left"
    )
    blocks: PositiveInt = Field(1, description="blocks filled one after another, left to right; 1 is full decoding")
    order: Literal["confidence", "peak", "margin", "entropy", "random"] = Field(
        "confidence",
        description="places unmasked first: where the drawn token is likeliest (confidence), the likeliest token is "
        "(peak), it leads most (margin), the distribution is sharpest (entropy), or any",
    )
    threshold: float | None = Field(
        None, gt=0, le=1, description="unmask every place that scores this much, at least one a step, in place of steps"
    )
    eos_from: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the score of EOS is multiplied by a factor that rises from this to 1 over the steps",
    )
    after_end: bool = Field(
        False, description="fill the canvas behind the first EOS too, and learn from those decisions"
    )
    likelihood: Literal["trajectory", "one_step", "elbo"] = Field(
        "trajectory",
        description="log-probs of the recorded steps (exact), of one forward of the masked canvas, or of random masks",
    )
    masks: PositiveInt = Field(1, description="random masks a rollout, or pairs of them (elbo)")
    coupled: bool = Field(True, description="each mask comes with its complement, and one that hides everything (elbo)")
    prompt_masking: float = Field(0.0, ge=0, lt=1, description="share of prompt tokens hidden (one_step)")
    learned: bool = Field(
        False,
        description="the policy decides before each forward pass how hot to draw and how many places to unmask, and "
        "learns that too",
    )
    explore: float = Field(0.3, gt=0, description="standard deviation of these decisions (learned)")
    rate: float = Field(100.0, gt=0, description="how much faster than the model their means move (learned)")

    @model_validator(mode="after")
    def _consistent(self) -> Unmask:
        if self.threshold is not None and (self.steps is not None or self.growth != "uniform"):
            raise ValueError("unmask.threshold takes the place of unmask.steps and unmask.growth: give one of them")
        if self.prompt_masking and self.likelihood != "one_step":
            raise ValueError("unmask.prompt_masking is of unmask.likelihood=one_step")
        if self.learned and (self.threshold is not None or self.growth != "uniform" or self.likelihood != "trajectory"):
            raise ValueError(
                "unmask.learned decides how many places a step unmasks, and is scored step by step: it needs "
                "unmask.growth=uniform and unmask.likelihood=trajectory, and no unmask.threshold"
            )
        plain = type(self).model_fields
        if not self.learned and any(getattr(self, n) != plain[n].default for n in ("explore", "rate")):
            raise ValueError("unmask.explore and unmask.rate are of unmask.learned=true")
        return self


class Offline(Section):
    rollouts: str | list[str] | None = Field(
        None,
        description="recorded rollouts or pairs to learn from, nothing is generated: files, folders, globs, runs",
    )
    revise: str | None = Field(
        None, description="text between an answer and its improvement: pairs are also learned as revisions"
    )


class Rewards(Section):
    weights: dict[str, float] = Field(default_factory=dict, description="weight of each component, by name")
    timeout: float | None = Field(None, gt=0, description="seconds a user's reward function may take a call")
    on_error: Literal["fail", "none", "zero"] | None = Field(
        None, description="a reward function that raises or times out: stop, leave the rollout out, or score 0"
    )
    step_separator: str = Field("\n", min_length=1, description="what stands between the steps that a process scores")


class Update(Section):
    epochs: PositiveInt = Field(1, description="passes over each batch")
    minibatches: PositiveInt = Field(1, description="optimizer steps an epoch; groups are never split between them")
    staleness: int = Field(0, ge=0, description="updates by which the batch trained on is late")
    tokens_per_microbatch: PositiveInt = Field(16384, description="prompt and completion tokens a forward; memory only")
    keep_mib: int = Field(
        1024,
        ge=0,
        description="memory for what generation computed, which the first update then does not; 0 keeps none",
    )
    max_grad_norm: float = Field(
        1.0, gt=0, description="gradient norm is clipped to this; not where an optimizer evaluates the loss itself"
    )
    recompute_logp: bool = Field(False, description="take logp_old from a forward of the trainer, not from the sampler")
    correction: bool = Field(True, description="importance weights where the sampler is not the trainer")


class Reference(Section):
    update: Literal["frozen", "ema", "periodic"] = Field("frozen", description="how the reference follows the policy")
    decay: float = Field(0.99, ge=0, lt=1, description="of the EMA, a step")
    every: PositiveInt = Field(50, description="steps between periodic copies")
    momentum: float = Field(
        0.0, ge=0, lt=1, description="periodic copies go on past the policy by this share of its way since the last one"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Reference:
        plain = type(self).model_fields
        for name, update in OF_UPDATE.items():
            if getattr(self, name) != plain[name].default and self.update != update:
                raise ValueError(f"reference.{name} is for reference.update={update}, not {self.update}")
        return self


OF_UPDATE = {"decay": "ema", "every": "periodic", "momentum": "periodic"}
"""Settings of `reference` that belong to one way of following."""


class Teacher(Section):
    model: Any = Field(None, description="a path, a hub id or a mapping, as model; loaded where a piece reads it")


class WarmStart(Section):
    steps: int = Field(0, ge=0, description="most SFT steps on the task's reference completions; 0 is no warm start")
    batch: PositiveInt = Field(64, description="examples a step")
    lr: float = Field(1e-3, gt=0, description="AdamW learning rate")
    stop_at: float | None = Field(None, gt=0, le=1, description="sampled training accuracy at which it stops")
    check_every: PositiveInt = Field(10, description="steps between those accuracy checks")


class Evaluation(Section):
    every: int = Field(0, ge=0, description="steps between evaluations on held-out problems; 0 is only first and last")
    prompts: PositiveInt = Field(128, description="held-out problems used (the first ones)")
    samples: PositiveInt = Field(1, description="completions a problem for avg@k, pass@k and maj@k")
    temperature: float = Field(1.0, gt=0, description="of the sampled completions")
    greedy: bool = Field(True, description="also report greedy accuracy")


class Checkpoint(Section):
    every: int = Field(50, ge=0, description="steps between checkpoints; the last step always writes one")
    keep: PositiveInt = Field(2, description="checkpoints kept")


class Log(Section):
    rollouts_every: int = Field(10, ge=0, description="steps between recorded rollouts (Parquet); 0 is never")
    writers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)


class Scale(Section):
    engine: Literal["torchrun", "ray"] | None = Field(
        None,
        description="torchrun trains on several processes (torch.distributed); ray rolls out and grades in others too, "
        "on a Ray cluster; default: one process",
    )
    train_workers: PositiveInt = Field(
        1, description="processes that train together, each on its share of the prompts; under torchrun its own number"
    )

    rollout_workers: PositiveInt = Field(1, description="Ray workers that roll out")
    reward_workers: PositiveInt = Field(1, description="Ray workers that grade")
    max_staleness: int = Field(
        0,
        ge=0,
        description="steps by which the weights that made a rollout may be behind those it trains; above 0 Ray workers "
        "go on while the trainer learns",
    )
    sync: Literal["auto", "objects", "direct"] = Field(
        "auto",
        description="how weights reach Ray workers that roll out: objects is Ray's object store, direct is sent by the "
        "trainer to each (nccl or gloo); auto is objects on the trainer's machine, direct to others",
    )
    timeout: float = Field(1800.0, gt=0, description="seconds after which a Ray worker that is silent is replaced")
    slow: float = Field(
        10.0,
        gt=1,
        description="a Ray worker that is at a new job for so many times the median, and a minute, is replaced",
    )
    restarts: int = Field(
        3, ge=0, description="times at most that trainers begin anew from the last checkpoint because one has died"
    )
    cpus: float = Field(1.0, gt=0, description="CPUs that Ray keeps for each worker")
    shard: bool = Field(
        False,
        description="spread gradients, optimizer state and float32 weights over the training processes (FSDP2); "
        "each also keeps the policy whole, to sample with",
    )
    offload: bool = Field(False, description="keep what is spread in main memory, not on the GPU")

    @model_validator(mode="after")
    def _consistent(self) -> Scale:
        if self.train_workers > 1 and self.engine is None:
            raise ValueError("scale.train_workers needs an engine: scale.engine=torchrun")
        for name in ("rollout_workers", "reward_workers", "max_staleness", "sync"):
            if getattr(self, name) != type(self).model_fields[name].default and self.engine != "ray":
                raise ValueError(f"scale.{name} is of scale.engine=ray")
        if self.restarts != type(self).model_fields["restarts"].default and self.engine is None:
            raise ValueError("scale.restarts is of several trainers: scale.engine=torchrun")
        if self.offload and not self.shard:
            raise ValueError("scale.offload is of what scale.shard=true spreads")
        return self


class Apart(Section):
    """Of several policies that are trained in runs of their own."""

    path: str | None = Field(
        None, description="where these runs meet: a folder or URL that fsspec knows, or redis://HOST:PORT/DATABASE#NAME"
    )
    train: list[str] = Field(
        default_factory=list, description="policies that this run trains; the one that trains the first plays"
    )
    staleness: int = Field(
        0, ge=0, description="steps by which the weights that are played with may be behind those that learn"
    )
    patience: float = Field(
        1800.0, gt=0, description="seconds for which another run, or a place that does not answer, is waited for"
    )

    @field_validator("train", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Apart:
        if self.path is not None and not self.train:
            raise ValueError("apart.path is set, and not which policies this run trains: apart.train=[NAME]")
        for name in ("train", "staleness", "patience"):
            default = type(self).model_fields[name].get_default(call_default_factory=True)
            if self.path is None and getattr(self, name) != default:
                raise ValueError(f"apart.{name} is of runs that meet: apart.path=FOLDER_OR_URL")
        return self


class Settings(Section):
    """Everything of a run that is not a piece."""

    model: Any = Field(None, description="a path, a hub id, or a mapping: name, dtype, lora, init …")
    steps: PositiveInt = Field(100, description="optimisation steps")
    seed: int = Field(0, description="of every random stream")
    threads: PositiveInt | None = Field(None, description="CPU threads of torch; tiny models are fastest with 1")
    draw: Draw = Field(default_factory=Draw)
    rollout: Rollout = Field(default_factory=Rollout)
    denoise: Denoise = Field(default_factory=Denoise)
    unmask: Unmask = Field(default_factory=Unmask)
    offline: Offline = Field(default_factory=Offline)
    rewards: Rewards = Field(default_factory=Rewards)
    update: Update = Field(default_factory=Update)
    reference: Reference = Field(default_factory=Reference)
    teacher: Teacher = Field(default_factory=Teacher)
    warm_start: WarmStart = Field(default_factory=WarmStart)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    log: Log = Field(default_factory=Log)
    scale: Scale = Field(default_factory=Scale)
    apart: Apart = Field(default_factory=Apart)

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.update.minibatches > self.draw.prompts:
            raise ValueError(
                f"update.minibatches is {self.update.minibatches} but draw.prompts only {self.draw.prompts}"
            )
        temperature = self.rollout.temperature
        lowest = temperature.lowest if isinstance(temperature, Schedule) else temperature
        if lowest <= 0:
            raise ValueError(
                "rollout.temperature must be > 0: greedy rollouts are all the same and cannot be trained on"
            )
        return self


PIECE_KEYS = {
    "task": {}, "optimizer": {}, "model": {}, "method": {},
    "draw": ["curriculum"], "rollout": ["strategy", "sampler"],
    "rewards": ["shaping", "functions", "process", "pairwise"],
    "credit": ["baseline", "modifiers"], "selection": ["filters", "weights"],
    "objective": ["ratio", "trust_region", "loss", "aggregation", "terms", "imitation"],
}  # fmt: skip


def _sections() -> dict[str, Any]:
    """Every key there is, nested; a leaf is None."""
    out: dict[str, Any] = {}
    for name, info in Settings.model_fields.items():
        inner = info.annotation
        fields = inner.model_fields if isinstance(inner, type) and issubclass(inner, BaseModel) else None
        out[name] = {field: None for field in fields} if fields else None
    for name, keys in PIECE_KEYS.items():
        if isinstance(keys, list):
            out[name] = {**(out.get(name) or {}), **{key: None for key in keys}}
        else:
            out[name] = None
    out["rewards"]["pairwise"] = {"judge": None, "scheme": None}
    return out


SECTIONS = _sections()
LEAVES = frozenset(
    f"{name}.{key}" if key else name
    for name, inner in SECTIONS.items()
    for key in (inner if inner is not None else [""])
) - {"rewards.weights", "rewards.pairwise"} | {"rewards.pairwise.judge", "rewards.pairwise.scheme"}  # fmt: skip
"""Settings whose value is one thing, whatever its type; the weights of rewards are settings by name."""
DEFAULTS = Layer(
    "defaults",
    {
        "draw": {"curriculum": "shuffled"},
        "rollout": {"strategy": "plain"},
        "credit": {"baseline": "group_norm"},
        "objective": {"ratio": "token", "trust_region": "ppo_clip", "aggregation": "sequence"},
        "optimizer": "adamw",
    },
)
"""What a recipe is before anything is said: plain GRPO."""
