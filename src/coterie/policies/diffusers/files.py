"""Pipelines from disk or the hub, and back: every way this goes wrong has its own message."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from coterie.errors import PolicyError, did_you_mean
from coterie.policies.diffusers import tiny
from coterie.policies.diffusers.architectures import Architecture
from coterie.policies.diffusers.spec import DiffusersSpec
from coterie.policies.loading import peft_package

INDEX = "model_index.json"
"""What makes a folder a pipeline."""
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Projections of attention, by the last parts of their names."""


def load_pipeline(spec: DiffusersSpec) -> tuple[Any, Path | None]:
    """The pipeline on the CPU, and the folder that it came from; none for a tiny one made here."""
    diffusers = _diffusers()
    if spec.init is not None:
        if spec.init.architecture not in tiny.BUILDERS:
            raise PolicyError(
                f"there is no tiny pipeline {spec.init.architecture!r}",
                where="model.init.architecture",
                hint=did_you_mean(spec.init.architecture, tiny.BUILDERS),
            )
        pipe = tiny.build(spec.init, spec.seed)
        if spec.dtype != "float32":
            for name, part in pipe.components.items():
                if isinstance(part, torch.nn.Module) and name != "vae":
                    part.to(getattr(torch, spec.dtype))
        return pipe, None
    assert spec.name is not None
    folder, here = Path(spec.name), _is_pipeline(spec.name)
    dtypes = {"default": getattr(torch, spec.dtype), "vae": torch.float32}
    try:
        if not here:
            folder = Path(diffusers.DiffusionPipeline.download(spec.name, revision=spec.revision))
        return diffusers.DiffusionPipeline.from_pretrained(folder, dtype=dtypes, local_files_only=True), folder
    except (OSError, ValueError, ImportError, KeyError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PolicyError(
            f"cannot load the pipeline: {first}" if here else f"cannot get the pipeline from the hub: {first}",
            where=spec.name,
            hint="check that the folder is complete and that this version of diffusers knows the pipeline"
            if here
            else "check the id and the network, log in for gated models, or name a local folder",
        ) from error


def _is_pipeline(name: str) -> bool:
    """Whether it is a local pipeline. A path that is not there, or holds none, is an error; a hub id is neither."""
    folder = Path(name)
    if folder.is_dir():
        if (folder / INDEX).is_file():
            return True
        if (folder / LORA).is_file():
            raise PolicyError(
                "the folder holds adapters, and no pipeline",
                where=name,
                hint="export the run with the adapters merged (coterie export), or name the base pipeline",
            )
        raise PolicyError(
            f"not a pipeline: it has no {INDEX}",
            where=name,
            hint="name a folder written by save_pretrained of a pipeline, or model='{init: {architecture: sd3}}'",
        )
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or folder.exists():
        problem = "not a folder" if folder.exists() else "no such folder"
        raise PolicyError(problem, where=name, hint="name the folder of a pipeline, or a hub id")
    return False


def _diffusers() -> Any:
    """diffusers, without its progress bars. Raises PolicyError where it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise PolicyError(
            "pipelines need the package diffusers, which is not installed",
            where="model.kind=diffusers",
            hint="pip install 'coterie[diffusers]'",
        ) from error
    from diffusers.utils import logging
    from transformers.utils import logging as of_transformers

    logging.disable_progress_bar()  # they would write over the run's own progress
    of_transformers.disable_progress_bar()
    return diffusers


# Adapters

LORA = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file of adapters."""


def add_lora(model: torch.nn.Module, spec: DiffusersSpec) -> Any:
    """The denoiser with fresh adapters, which do nothing yet."""
    peft = peft_package()
    assert spec.lora is not None
    targets: str | list[str]
    if spec.lora.target_modules == "attention":
        targets = list(ATTENTION)
    elif spec.lora.target_modules == "all-linear":
        targets = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    else:
        targets = spec.lora.target_modules if isinstance(spec.lora.target_modules, str) else [*spec.lora.target_modules]
    config = peft.LoraConfig(r=spec.lora.r, lora_alpha=spec.lora.alpha, target_modules=targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            raise PolicyError(str(error).splitlines()[0], where="model.lora.target_modules") from error


def save_lora(pipe: Any, model: Any, architecture: Architecture, folder: Path) -> None:
    """The adapters, as `pipe.load_lora_weights` reads them."""
    from peft.utils import get_peft_model_state_dict

    part, prefix = architecture.denoiser, "base_model.model."
    save = getattr(pipe, "save_lora_weights", None)
    if save is None:
        raise PolicyError(
            f"{type(pipe).__name__} does not load adapters", where="model.lora", hint="leave model.lora out"
        )
    layers = {name.removeprefix(prefix): p.contiguous() for name, p in get_peft_model_state_dict(model).items()}
    about = model.peft_config["default"].to_dict()
    save(folder, **{f"{part}_lora_layers": layers, f"{part}_lora_adapter_metadata": about})


@torch.no_grad()
def merged(model: Any) -> Any:
    """A copy of the denoiser with its adapters in its weights."""
    base = model.get_base_model()
    state = {n.replace(".base_layer.", "."): p for n, p in base.state_dict().items() if ".lora_" not in n}
    for name, module in base.named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = module.base_layer.weight
            state[f"{name}.weight"] = (weight + module.get_delta_weight("default")).to(weight.dtype)
    plain = type(base).from_config(base.config).to(base.dtype)
    plain.load_state_dict(state)
    return plain


# Whole pipelines


def save_pipeline(pipe: Any, model: Any, architecture: Architecture, folder: Path, source: Path | None) -> None:
    """The pipeline with `model` as its denoiser, as `DiffusionPipeline.from_pretrained` reads it.

    The parts that nobody trains are linked to the folder that they came from, where the file system can.
    """
    part = architecture.denoiser
    if source is None:
        held = getattr(pipe, part)
        setattr(pipe, part, model)
        try:
            pipe.save_pretrained(folder)
        finally:
            setattr(pipe, part, held)
        return
    index = json.loads((source / INDEX).read_text(encoding="utf-8"))
    shutil.copyfile(source / INDEX, folder / INDEX)
    for name in index:
        if name != part and (source / name).is_dir():
            shutil.copytree(source / name, folder / name, copy_function=_link, dirs_exist_ok=True)
    model.save_pretrained(folder / part)


def _link(source: str, target: str) -> str:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target
