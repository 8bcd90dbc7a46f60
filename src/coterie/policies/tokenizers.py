"""Text to token ids and back, once: the only place that tokenises a prompt. After it, ids are the truth."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.errors import PolicyError

Message = dict[str, Any]
_STAND_IN = "\u2043action\u2043"
"""Stands for an action while a template is rendered; nobody writes that."""


def encode(tokenizer: Any, prompt: str | Sequence[Message], system: str | None = None) -> tuple[int, ...]:
    """Token ids of a prompt, with the tokenizer's own special tokens exactly once.

    Plain text gets what the tokenizer puts around a sequence, less a second BOS (text that writes its own) and less a
    closing EOS (after which nothing would be left to say). A conversation goes through the chat template with
    `add_generation_prompt`; the template is the authority on BOS, so none is added. With `system`, a plain prompt
    becomes the user's message. `tools` of a prompt (see `coterie.environments.tools.Conversation`) are shown by the
    template. Raises PolicyError where there is no template, or nothing to condition on.
    """
    return encode_all(tokenizer, [prompt], system)[0]


def encode_all(
    tokenizer: Any, prompts: Sequence[str | Sequence[Message]], system: str | None = None
) -> list[tuple[int, ...]]:
    """What `encode` gives for each of some prompts, by a few calls of the tokenizer in all."""
    plain = [isinstance(p, str) and system is None for p in prompts]
    texts = iter(_encode_texts(tokenizer, [str(p) for p, alone in zip(prompts, plain, strict=True) if alone]))
    talks = [_render(tokenizer, p, system) for p, alone in zip(prompts, plain, strict=True) if not alone]
    chats = iter(_ids(tokenizer, talks))
    return [next(texts) if alone else tuple(next(chats)) for alone in plain]


def _encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    every = _ids(tokenizer, texts, add_special_tokens=True)
    closed = [eos is not None and ids[-1:] == [eos] for ids in every]
    bare = iter(_ids(tokenizer, [text for text, ends in zip(texts, closed, strict=True) if ends]))
    out = []
    for ids, ends in zip(every, closed, strict=True):
        if ends and next(bare)[-1:] != [eos]:
            ids = ids[:-1]
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        if not ids and bos is not None:
            ids = [bos]
        if not ids:
            raise PolicyError(
                "the prompt is empty and this tokenizer has no BOS to start from",
                where="encode",
                hint="give the prompt at least one token",
            )
        out.append(tuple(ids))
    return out


def _tools(prompt: Any) -> list[Message] | None:
    return getattr(prompt, "tools", None) or None


def _render(tokenizer: Any, prompt: str | Sequence[Message], system: str | None) -> str:
    """A conversation as the chat template writes it."""
    from jinja2 import TemplateError

    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system is not None and not (messages and messages[0]["role"] == "system"):
        messages = [{"role": "system", "content": system}, *messages]
    tools = _tools(prompt)
    if not messages:
        raise PolicyError("the conversation has no messages", where="encode", hint="give it at least a user message")
    if not tokenizer.chat_template:
        raise PolicyError(
            "the prompt is a conversation and this tokenizer has no chat template",
            where="encode",
            hint="set model.chat_template=PATH to a Jinja template, use an instruct model, or give plain-text prompts",
        )
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        if tools and text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True):
            raise PolicyError(
                "the prompt has tools and the chat template does not show them",
                where="encode",
                hint="a template that knows tools (model.chat_template=PATH), or the task's plain-text prompts",
            )
    except TemplateError as error:
        raise PolicyError(
            f"the chat template rejects the conversation: {error}",
            where="encode",
            hint=f"it has roles {[m.get('role') for m in messages]}; check them against the model's template",
        ) from error
    return text


def reply(
    tokenizer: Any, prompt: str | Sequence[Message], observation: str | Mapping[str, Any], ended: bool
) -> tuple[int, ...]:
    """Token ids of what stands between an action and the next one: the observation, and what a chat template puts
    around it. `ended`: the action ended with its own end-of-turn token, which is then not repeated.

    In a conversation an observation is a message (text is one of the user). The template renders the prompt, a stand-in
    for the action and the observation; what comes after the stand-in is encoded. What was sampled is never rendered.
    Raises PolicyError where the template hides the action or makes something else of it.
    """
    if isinstance(prompt, str):
        if not isinstance(observation, str):
            raise PolicyError(
                "the environment answers with a message, and the prompt is plain text",
                where="reply",
                hint="give conversational prompts, or observations that are text",
            )
        return encode_completion(tokenizer, observation)
    message = {"role": "user", "content": observation} if isinstance(observation, str) else dict(observation)
    messages = [*prompt, {"role": "assistant", "content": _STAND_IN}, message]
    text = tokenizer.apply_chat_template(messages, tools=_tools(prompt), tokenize=False, add_generation_prompt=True)
    _, found, after = text.partition(_STAND_IN)
    if not found or _STAND_IN in after:
        raise PolicyError(
            "the chat template does not show what the assistant said as it is",
            where="reply",
            hint="give another template: model.chat_template=PATH",
        )
    (ids,) = _ids(tokenizer, [after])
    eos = tokenizer.eos_token_id
    return tuple(ids[1:] if ended and ids[:1] == [eos] else ids)


def encode_completion(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Ids of a completion's text: no special tokens added, no EOS."""
    return tuple(_ids(tokenizer, [text])[0])


def decode(tokenizer: Any, ids: Sequence[Sequence[int]], stop: Sequence[str] = ()) -> list[str]:
    """Texts of completions for graders and people: no special tokens (EOS is one), cut before a stop string."""
    texts = spell(tokenizer, ids, skip_special_tokens=True)
    for s in stop:
        texts = [text.partition(s)[0] for text in texts]
    return texts


def spell(tokenizer: Any, ids: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
    """Texts of token ids as they are, with nothing cleaned up."""
    if _decoded_by_backend(tokenizer.__class__):
        return tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=skip_special_tokens)
    return tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)


def digest(tokenizer: Any) -> str:
    """What tells one vocabulary from another: a hash of its tokens with their ids."""
    entries = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0])))
    return hashlib.sha256(entries.encode()).hexdigest()[:16]


@functools.cache
def _decoded_by_backend(kind: type) -> bool:
    """Whether tokenizers of a class decode as the Rust library does. Then that is asked for all texts at once, since
    transformers asks it for one at a time and looks at every id before.
    """
    from transformers import PreTrainedTokenizerFast as Backed

    decoding = ("decode", "batch_decode", "_decode")
    return issubclass(kind, Backed) and all(getattr(kind, name) is getattr(Backed, name) for name in decoding)


def _ids(tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
    if not texts:
        return []
    _check_characters(tokenizer, texts)
    # Not truncated and not warned about: the engine compares prompts with the context and says so better.
    return tokenizer(
        list(texts),
        add_special_tokens=add_special_tokens,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]


def _check_characters(tokenizer: Any, texts: Sequence[str]) -> None:
    """A word-level vocabulary without an unknown token (the tiny models') fails on new characters: name them."""
    from tokenizers.models import WordLevel

    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if not isinstance(model, WordLevel) or tokenizer.unk_token_id is not None:
        return
    vocabulary = tokenizer.get_vocab().keys()
    if not set().union(*texts) - vocabulary:
        return
    left = list(texts)
    for special in tokenizer.all_special_tokens:
        left = [text.replace(special, "") for text in left]
    unknown = sorted(set().union(*left) - vocabulary)
    if unknown:
        raise PolicyError(
            f"the vocabulary has no {', '.join(map(repr, unknown))}",
            where="encode",
            hint="add the characters to model.init.vocabulary",
        )
