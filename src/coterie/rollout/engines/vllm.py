"""vLLM (arXiv:2309.06180) as the engine: the trained weights are put into it whenever they have changed.

Written against vLLM 0.33. Its kernels and precision are its own, so `exact` is False and the update corrects for the
difference. `tests/rollout/engines/test_contract.py` is what any engine must do, this one where it can be installed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PolicyError
from coterie.rollout.engines.base import Generation, Progress, Request, Until, room_for
from coterie.rollout.engines.stops import stop_ids

_SHARED_MEMORY = Path("/dev/shm")


class VLLMEngine:
    """Samples with vLLM on this machine's accelerators. `options` are arguments of `vllm.LLM`, as they are there.

    The first call starts vLLM from a folder of the weights as they are; later ones load those that changed into the
    running engine, in the same process with tensor_parallel_size=1, else through files in shared memory. What vLLM has
    cached of prompts is then dropped. Log-probs are those of the distribution sampled from, as those of `LocalEngine`.
    """

    exact = False

    def __init__(self, model: Any, tokenizer: Any, *, options: dict[str, Any], context: int | None) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.context = context or getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.forbid: tuple[int, ...] = ()
        self.stop_ids = stop_ids(model, tokenizer)
        self._llm: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._loaded: list[int] = []
        self._asked = 0

    def generate(self, requests: Sequence[Request], *, entropy: bool = False, until: Until | None = None) -> Generation:
        """As LocalEngine does; it has no entropies."""
        if entropy:
            raise PolicyError(
                "vLLM gives no entropies while it samples",
                where="model.engine=vllm",
                hint="leave out the piece that reads entropy_old, or use model.engine=local",
            )
        llm = self._up_to_date()
        core, rows = llm.llm_engine, sum(len(r.seeds) for r in requests)
        if not rows:
            raise PolicyError("nothing to generate: no request has a seed", where="VLLMEngine")
        limits = [room_for(r, self.context) for r in requests for _ in r.seeds]
        made = _Made(rows, max(limits))
        named: dict[str, int] = {}
        for row, (request, seed) in enumerate((r, s) for r in requests for s in r.seeds):
            name = str(self._asked + row)
            parameters = self._parameters(request, seed, limits[row], until is not None)
            core.add_request(name, {"prompt_token_ids": list(request.prompt)}, parameters)
            named[name] = row
        self._asked += rows
        try:
            while core.has_unfinished_requests():
                if until is not None and until(Progress(made.ended, made.tokens, made.mask)):
                    break
                for output in core.step():
                    made.take(named[output.request_id], output.outputs[0])
        finally:
            core.abort_request([name for name, row in named.items() if not made.ended[row]])
        return made.generation(self.model.device, until is not None)

    def _parameters(self, request: Request, seed: int, limit: int, partly: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked = request.sampling
        words = self.model.get_output_embeddings().weight.shape[0]
        return SamplingParams(
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p,
            max_tokens=limit,
            seed=seed % 2**63,
            stop=list(asked.stop) or None,
            stop_token_ids=[i for i in self.stop_ids if i not in self.forbid],
            ignore_eos=True,  # stop_token_ids has it, unless it is forbidden
            logprobs=0,
            flat_logprobs=True,
            detokenize=bool(asked.stop),
            skip_special_tokens=False,
            allowed_token_ids=sorted(set(range(words)) - set(self.forbid)) if self.forbid else None,
            output_kind=RequestOutputKind.DELTA if partly else RequestOutputKind.FINAL_ONLY,
        )

    # Weights

    @torch.no_grad()
    def _up_to_date(self) -> Any:
        now = [p._version for p in self.model.parameters()]
        if self._llm is None:
            self._llm = self._start()
        elif now != self._loaded:
            if self.options.get("tensor_parallel_size", 1) == 1:
                how: dict[str, Any] = {"weights_iterator": merged_weights(self.model)}
            else:
                how = {"weights_path": str(self._write())}
            self._llm.collective_rpc("reload_weights", kwargs=how)
            if not self._llm.reset_prefix_cache(reset_connector=True):  # which keeps keys and values elsewhere
                raise PolicyError(
                    "vLLM still holds keys and values of requests that have ended, made by the weights before",
                    where="model.engine=vllm",
                    hint="leave out what keeps them, such as model.vllm.kv_transfer_config",
                )
        self._loaded = now
        return self._llm

    def _start(self) -> Any:
        if self.options.get("tensor_parallel_size", 1) == 1:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over in this process
        try:
            from vllm import LLM
        except ImportError as error:
            raise PolicyError(
                f"vLLM cannot be imported: {error}",
                where="model.engine=vllm",
                hint="pip install vllm, in an environment of its own (it pins torch), or use model.engine=local",
            ) from error
        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        mine = {"dtype": dtype, "max_model_len": self.context, "logprobs_mode": "processed_logprobs"}
        return LLM(model=str(self._write()), **{**mine, **self.options})

    def _write(self) -> Path:
        """A folder that vLLM loads: configuration, tokenizer and the weights as they are now."""
        from safetensors.torch import save_file

        if self._folder is None:
            memory = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
            self._folder = tempfile.TemporaryDirectory(prefix="coterie-vllm-", dir=memory)
            _base(self.model).config.save_pretrained(self._folder.name)
            self.tokenizer.save_pretrained(self._folder.name)
        folder = Path(self._folder.name)
        weights = {name: w.contiguous() for name, w in merged_weights(self.model)}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder


class _Made:
    """What has come so far, a row a sample."""

    def __init__(self, rows: int, width: int) -> None:
        self.tokens = torch.zeros(rows, width, dtype=torch.int64)
        self.mask = torch.zeros(rows, width, dtype=torch.bool)
        self.logp = torch.zeros(rows, width)
        self.truncated = torch.ones(rows, dtype=torch.bool)
        self.ended = torch.zeros(rows, dtype=torch.bool)
        self.lengths = [0] * rows

    def take(self, row: int, output: Any) -> None:
        """What came since the last time."""
        ids, start = list(output.token_ids), self.lengths[row]
        new = slice(start, start + len(ids))
        self.tokens[row, new], self.mask[row, new] = torch.tensor(ids, dtype=torch.int64), True
        self.logp[row, new] = torch.tensor([p[i].logprob for p, i in zip(output.logprobs, ids, strict=True)])
        self.lengths[row] = new.stop
        if output.finish_reason is not None:
            self.ended[row], self.truncated[row] = True, output.finish_reason == "length"

    def generation(self, device: Any, early: bool) -> Generation:
        width = int(self.mask.any(0).sum())
        tokens, mask, logp = (x[:, :width].to(device) for x in (self.tokens, self.mask, self.logp))
        ended = self.ended.to(device) if early else None
        return Generation(tokens, mask, logp, self.truncated.to(device), ended=ended)


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and weights as a checkpoint of the base model has them, adapters added in."""
    base = _base(model)
    modules = dict(base.named_modules())
    for name, weight in base.named_parameters():
        if ".lora_" in name or "modules_to_save" in name:
            continue
        if name.endswith(".base_layer.weight"):
            owner = modules[name.removesuffix(".base_layer.weight")]
            weight = weight.data
            for adapter in [] if owner.disable_adapters or owner.merged else owner.active_adapters:
                weight = weight + owner.get_delta_weight(adapter).to(weight.dtype)
        yield name.replace(".base_layer.", "."), weight.data


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
