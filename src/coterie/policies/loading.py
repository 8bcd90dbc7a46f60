"""What a recipe says about a language model, and loading it: every way this goes wrong has its own message."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from coterie.errors import PolicyError
from coterie.hardware import device_of
from coterie.policies import own_code
from coterie.policies.tiny import TinySpec, build
from coterie.policies.wide_head import widen_head


class LoraSpec(BaseModel):
    """Low-rank adapters (arXiv:2106.09685), trained in place of the weights. Needs the extra `peft`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    """Acts in supervised warm starts only: RL scores with dropout off."""
    target_modules: str | tuple[str, ...] = "all-linear"


class SourceSpec(BaseModel):
    """Which language model is the policy: a folder or hub id by `name`, or a tiny one from scratch by `init`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    """The class of transformers that loads it."""
    remote_classes: ClassVar[tuple[str, ...]] = ()
    """Others under which a model that brings its own code may be known instead."""

    name: str | None = None
    init: Any = None
    seed: int = 0
    """Random weights of `init` and of new LoRA adapters."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """`auto` is the dtype the checkpoint was saved in."""
    sample_dtype: Literal["float32", "bfloat16"] | None = None
    """Sample from a copy of the weights in this precision; none samples from the weights that are trained. The update
    corrects for the difference (update.correction)."""
    float32_head: bool = False
    """Compute logits in float32, in sampler and trainer alike, while the rest of the model stays in `dtype`: log-probs
    of both then differ less."""
    device: str = "auto"
    """`auto` is CUDA where there is one, else the CPU."""
    lora: LoraSpec | None = None
    attn: str | None = None
    """Attention implementation, as transformers names them (sdpa, eager, flash_attention_2, ...)."""
    trust_remote_code: bool = False
    """Run Python that the model's repository brings. Off unless you have read it."""
    revision: str | None = None
    chat_template: Path | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    system: str | None = None
    """System prompt. A plain-text prompt then becomes the user's message of a conversation."""
    max_context: int | None = Field(None, ge=2)
    """Bounds prompt plus completion below the model's own context."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name is None) == (self.init is None):
            raise ValueError("give exactly one of `name` (a folder or hub id) and `init` (a tiny model from scratch)")
        return self

    def build(self) -> tuple[Any, Any]:
        """The tiny model of `init` and its tokenizer."""
        raise NotImplementedError


class ModelSpec(SourceSpec):
    """Which causal LM is the policy: a folder or hub id by `name`, or a tiny one from scratch by `init`."""

    kind: Literal["causal_lm"] = "causal_lm"
    init: TinySpec | None = None
    gradient_checkpointing: bool = False
    shared_prefix: bool = True
    """Encode the prompt of a group once when scoring its rollouts: the same values, less work. Models that cannot are
    found out and score row by row."""
    compile_decode: bool = False
    """Sample through torch.compile, with our own engine and a model built like Llama. The first samples wait for the
    compilation."""
    engine: Literal["local", "vllm"] = "local"
    """What samples: our own engine, or vLLM, which must be installed."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """Arguments of vllm.LLM, such as gpu_memory_utilization or tensor_parallel_size."""

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.engine == "vllm" and self.sample_dtype is not None:
            raise ValueError("model.sample_dtype is of the local engine; with vLLM say model.vllm.dtype")
        if self.engine == "vllm" and self.compile_decode:
            raise ValueError("model.compile_decode is of the local engine; vLLM compiles by itself")
        if self.compile_decode and not self.shared_prefix:
            raise ValueError("model.compile_decode needs model.shared_prefix=true")
        if self.engine != "vllm" and self.vllm:
            raise ValueError("model.vllm needs model.engine=vllm")
        return self

    def build(self) -> tuple[Any, Any]:
        assert self.init is not None
        return build(self.init, self.seed)


_ALIGNED = 64
"""Bytes at whose multiples torch lays out what it allocates."""


def load_model_and_tokenizer(spec: SourceSpec, tokenizer: Any = None) -> tuple[Any, Any]:
    """The model on its device in eval mode (in a PEFT wrapper where it has adapters), and its tokenizer."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would write over the run's own progress, at every checkpoint too
    device = device_of(spec.device)
    if spec.init is not None:
        model, own = spec.build()
        if spec.dtype == "bfloat16":
            for parameter in model.parameters():  # buffers (RoPE frequencies) stay float32, as from_pretrained has them
                parameter.data = parameter.data.bfloat16()
    else:
        model, own = _pretrained(spec, tokenizer)
    tokenizer = tokenizer or own
    if spec.chat_template is not None:
        tokenizer.chat_template = _read_template(spec.chat_template)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise PolicyError(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeds {rows}",
            where=spec.name,
            hint="use the tokenizer the model was trained with",
        )
    if spec.float32_head:
        widen_head(model)
    if spec.lora is not None:
        model = _add_lora(model, spec)
    model = model.to(device).eval()
    for parameter in model.parameters():  # weights of a file may lie anywhere, and how kernels round depends on that:
        if parameter.data_ptr() % _ALIGNED:  # a resumed run has them where one that was not stopped has
            parameter.data = parameter.data.clone()
    return model, tokenizer


def _pretrained(spec: SourceSpec, tokenizer: Any) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    assert spec.name is not None
    local = _check_folder(spec.name)
    common: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if spec.revision is not None:
        common["revision"] = spec.revision
    if tokenizer is None:
        tokenizer = _ask(spec.name, local, "tokenizer", lambda: AutoTokenizer.from_pretrained(spec.name, **common))
    options = {**common, "dtype": spec.dtype}
    if spec.attn is not None:
        options["attn_implementation"] = spec.attn
    if local and (Path(spec.name) / "adapter_config.json").is_file():
        return _load_adapters(spec, options), tokenizer
    return _weights(spec, spec.name, local, options), tokenizer


def _weights(spec: SourceSpec, name: str, local: bool, options: dict[str, Any]) -> Any:
    """The model of a folder or hub id. Raises PolicyError where some of its weights are not there: transformers would
    leave them as random numbers.
    """
    from transformers.utils import logging

    load = lambda: _auto(spec, name).from_pretrained(name, output_loading_info=True, **options)  # noqa: E731
    spoken = logging.get_verbosity()
    logging.set_verbosity_error()  # it would print a table of what is missing, which is said below
    try:
        model, info = _ask(name, local, "model", load)
    finally:
        logging.set_verbosity(spoken)
    if missing := sorted(info["missing_keys"]):
        raise PolicyError(
            f"{len(missing)} of the model's weights are not in it, {missing[0]} among them",
            where=name,
            hint="its config.json does not describe its weights, or it is another kind of model than "
            f"{spec.auto_class.removeprefix('AutoModelFor')}",
        )
    return model


def _auto(spec: SourceSpec, name: str | None) -> Any:
    """The class that loads the model `name`: the kind's own, or the one under which its own code is known."""
    import transformers

    chosen = spec.auto_class
    if spec.trust_remote_code and spec.remote_classes and name is not None:
        chosen = own_code.prepare(spec, name, (chosen, *spec.remote_classes)) or chosen
    return getattr(transformers, chosen)


def _check_folder(name: str) -> bool:
    """Whether `name` is a local folder with a model in it. A path that is not there is an error, a hub id is not."""
    path = Path(name)
    if path.is_dir():
        if not any((path / f).is_file() for f in ("config.json", "adapter_config.json")):
            raise PolicyError(
                "not a model folder: it has no config.json",
                where=name,
                hint="name a folder written by save_pretrained, or `coterie export RUN DIR` to make one from a run",
            )
        return True
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists()
    if looks_like_path:
        problem = "not a folder" if path.exists() else "no such folder"
        raise PolicyError(
            problem, where=name, hint="name a model folder, or a hub id such as Qwen/Qwen2.5-0.5B-Instruct"
        )
    return False


def _ask(name: str, local: bool, what: str, load: Any) -> Any:
    """Run a from_pretrained and turn its failures into the user's terms: files and packages that are missing, what is
    not understood, weights that are cut off or of another shape.
    """
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, ValueError, ImportError, KeyError, SafetensorError, RuntimeError) as error:
        if type(error) is RuntimeError and "ignore_mismatched_sizes" not in str(error):
            raise
        if type(error) is RuntimeError:
            error = ValueError("its weights have other shapes than its config.json says")
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not local:
            raise PolicyError(
                f"cannot get the {what} from the hub: {first}",
                where=name,
                hint="check the id and the network, log in for gated models, or name a local folder",
            ) from error
        hint = (
            "the folder needs tokenizer files beside the weights: save the tokenizer there too"
            if what == "tokenizer"
            else "check that the folder is complete and that this version of transformers knows the architecture"
        )
        if "trust_remote_code" in str(error):
            hint = "read the code in the folder; model.trust_remote_code=true then runs it"
        raise PolicyError(f"cannot load the {what}: {first}", where=name, hint=hint) from error


def peft_package() -> Any:
    """peft. Raises PolicyError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise PolicyError(
            "LoRA needs the package peft, which is not installed",
            where="model.lora",
            hint="pip install 'coterie[peft]'",
        ) from error
    return peft


def _add_lora(model: Any, spec: SourceSpec) -> Any:
    import torch

    peft = peft_package()
    assert spec.lora is not None
    if isinstance(model, peft.PeftModel):
        raise PolicyError(
            "the folder already holds adapters",
            where=spec.name,
            hint="leave `lora` out to go on training them, or merge them first (coterie export)",
        )
    targets = spec.lora.target_modules
    config = peft.LoraConfig(
        r=spec.lora.r,
        lora_alpha=spec.lora.alpha,
        lora_dropout=spec.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM" if spec.auto_class == "AutoModelForCausalLM" else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            raise PolicyError(str(error).splitlines()[0], where="model.lora.target_modules") from error


def _load_adapters(spec: SourceSpec, options: dict[str, Any]) -> Any:
    peft = peft_package()
    base = peft.PeftConfig.from_pretrained(spec.name).base_model_name_or_path
    if not base:
        raise PolicyError(
            "the adapters do not say which model they belong to",
            where=spec.name,
            hint="export with the adapters merged into the weights (coterie export does)",
        )
    options = {key: value for key, value in options.items() if key != "revision"}
    model = _weights(spec, base, _check_folder(base), options)
    return peft.PeftModel.from_pretrained(model, spec.name, is_trainable=True)


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise PolicyError(
            f"cannot read the chat template: {error.strerror}", where=str(path), hint="check model.chat_template"
        ) from error
