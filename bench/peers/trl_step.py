"""TRL's side: its GRPOTrainer, which stops before each optimizer step until the bench asks for it.

Runs in TRL's own environment (bench/environments.py). The same model folder, prompts, group size, lengths, optimizer
and thread count as bench/ours_step.py; no KL (beta 0), temperature 1, no logging, no checkpoints, no gradient
checkpointing (all of which would slow it down).
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from bench.protocol import Channel, columns, forget_peak, peak_mib, read_rows
from bench.rewards import REWARDS


def main(config: dict[str, Any]) -> None:
    channel = Channel()
    sys.path += [config["liger"]] if "liger" in config else []
    import torch
    import transformers
    import trl
    from datasets import Dataset

    torch.set_num_threads(config["threads"])
    transformers.logging.set_verbosity_error()
    seconds: dict[str, float] = {}

    def timed(name: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began

    class Trainer(trl.GRPOTrainer):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            return timed("generate", super()._generate, *args, **kwargs)

        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
            out = timed("roll_out", super()._generate_and_score_completions, *args, **kwargs)
            seconds["prompt"] = float(out["prompt_mask"].sum(-1).float().mean())
            seconds["completion"] = float(out["completion_mask"].sum(-1).float().mean())
            return out

    class Paced(transformers.TrainerCallback):
        began = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            parameters = sum(p.numel() for p in model.parameters())
            forget_peak()
            channel.reply(
                torch=torch.__version__, trl=trl.__version__, transformers=transformers.__version__,
                parameters=parameters, threads=torch.get_num_threads(), peak_mib=peak_mib(),
            )  # fmt: skip

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            while channel.wait() == "eval":
                channel.reply(accuracy=evaluate(model, tokenizer, config))
            seconds.clear()
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            total = time.perf_counter() - self.began
            channel.reply(
                seconds=total, generate=seconds["generate"], score=seconds["roll_out"] - seconds["generate"],
                learn=total - seconds["roll_out"], prompt=seconds["prompt"], completion=seconds["completion"],
                reward=trainer._metrics["train"]["reward"][-1], peak_mib=peak_mib(),
            )  # fmt: skip

    dtype = getattr(torch, config["dtype"])
    autocast = config.get("autocast", False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        config["model"], dtype=torch.float32 if autocast else dtype
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(config["model"])
    rows = config["prompts"] * config["group_size"]
    micro = config.get("microbatch", rows)
    # Liger's RMSNorm does not run in Triton's interpreter, which is what a CPU has
    liger = {"use_liger_kernel": True, "liger_kernel_config": {"rope": True, "swiglu": True, "rms_norm": False}}
    args = trl.GRPOConfig(
        output_dir=config["scratch"], use_cpu=True, bf16=autocast, seed=config.get("seed", 0),
        per_device_train_batch_size=micro, gradient_accumulation_steps=rows // micro,
        num_generations=config["group_size"], max_completion_length=config["max_tokens"], temperature=1.0,
        beta=0.0, loss_type="grpo", scale_rewards="group", num_iterations=1, epsilon=0.2,
        learning_rate=config["lr"], lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
        max_steps=10**6, gradient_checkpointing=False, logging_strategy="no", save_strategy="no", report_to="none",
        disable_tqdm=True, generation_kwargs={"min_new_tokens": config["max_tokens"]} if config["ignore_eos"] else None,
        **(liger if "liger" in config else {}),
    )  # fmt: skip
    trainer = Trainer(
        model=model, reward_funcs=REWARDS[config["reward"]], args=args, processing_class=tokenizer,
        train_dataset=Dataset.from_list(read_rows(config["data"])), callbacks=[Paced()],
    )  # fmt: skip
    trainer.train()


def evaluate(model: Any, tokenizer: Any, config: dict[str, Any]) -> float:
    """Mean reward of sampled completions of the held-out prompts."""
    import torch

    rows, samples = read_rows(config["held_out"]), config["eval_samples"]
    prompts = [row["prompt"] for row in rows for _ in range(samples)]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with torch.no_grad():
        made = model.generate(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], do_sample=True, temperature=1.0,
            top_k=0, max_new_tokens=config["max_tokens"], pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    texts = tokenizer.batch_decode(made[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    marks = REWARDS[config["reward"]](texts, **columns(rows, samples))
    return sum(marks) / len(marks)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
