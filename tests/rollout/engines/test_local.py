from __future__ import annotations

from itertools import product

import pytest
import torch

from coterie.errors import PolicyError
from coterie.policies.shared_prefix import SharedPrefix
from coterie.policies.split import SplitModel
from coterie.policies.tiny import TinySpec, build
from coterie.rollout.engines.base import Request
from coterie.rollout.engines.local import LocalEngine
from coterie.rollouts import Sampling

CHARACTERS = "abcdefgh"


@pytest.fixture(params=["shared", "cached"])
def make_engine(request):
    """Engines of both kinds: our attention over shared stretches, and transformers' own cache."""

    def make(family="llama", vocabulary=CHARACTERS, context=32, **settings):
        model, tokenizer = build(TinySpec(family=family, width=32, vocabulary=vocabulary, context=context), 3)
        with torch.no_grad():  # larger logits than a fresh model's, so that tokens are far from equally likely
            model.get_output_embeddings().weight.mul_(20)
        shared = SharedPrefix(SplitModel(model)) if request.param == "shared" else None
        assert shared is None or shared.exact
        return LocalEngine(model, tokenizer, shared=shared, **settings)

    return make


def request(prompt, seeds, **sampling):
    return Request(tuple(prompt), tuple(seeds), Sampling(**{"max_tokens": 8, **sampling}))


MIXED = [
    request((1, 3, 4, 5), (1, 2)),
    request((1,), (3,)),
    request((1, 6, 7, 8, 9, 3, 3), (4, 5, 6)),
    request((1, 4), (7,)),
]


def rows(generation):
    return [t[m].tolist() for t, m in zip(generation.tokens, generation.mask, strict=True)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_greedy_tokens_are_those_of_transformers(make_engine, family):
    engine = make_engine(family)
    made = engine.generate([request(r.prompt, (0,), temperature=0.0) for r in MIXED])
    for r, tokens in zip(MIXED, rows(made), strict=True):
        ids = torch.tensor([r.prompt])
        want = engine.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0
        )
        assert tokens == want[0, len(r.prompt) :].tolist()


def test_a_sample_does_not_depend_on_its_batch(make_engine):
    alone = [
        tokens for r in MIXED for s in r.seeds for tokens in rows(make_engine().generate([request(r.prompt, (s,))]))
    ]
    for engine in (make_engine(), make_engine(max_rows=2), make_engine(max_cache_tokens=1)):
        assert rows(engine.generate(MIXED)) == alone
    backwards = make_engine().generate(MIXED[::-1])
    assert sorted(rows(backwards)) == sorted(alone)
    assert len({tuple(t) for t in alone}) > 4


def test_samples_follow_the_exact_distribution_of_two_token_completions(make_engine):
    engine = make_engine(vocabulary="ab")
    sampling = {"temperature": 1.2, "top_k": 4, "max_tokens": 2}
    made = engine.generate(
        [request((1, 3), range(2000), **sampling), request((1, 3, 4), range(2000, 2100), **sampling)]
    )
    counts = {}
    for tokens in rows(made)[:2000]:
        counts[tuple(tokens)] = counts.get(tuple(tokens), 0) + 1
    vocabulary = range(5)

    def next_probs(*ids):
        with torch.no_grad():
            logits = engine.model(torch.tensor([ids])).logits[0, -1].double() / 1.2
        return logits.masked_fill(logits < logits.topk(4).values[-1], -torch.inf).softmax(-1).tolist()

    first = next_probs(1, 3)
    exact = {(2,): first[2]}
    exact |= {(a, b): first[a] * next_probs(1, 3, a)[b] for a, b in product(vocabulary, vocabulary) if a != 2}
    assert sum(exact.values()) == pytest.approx(1.0)
    assert all(exact[key] > 0 for key in counts)
    cells = [(counts.get(key, 0), 2000 * p) for key, p in exact.items() if 2000 * p >= 5]
    rest = 2000 - sum(n for n, _ in cells), 2000 - sum(e for _, e in cells)
    statistic = sum((n - e) ** 2 / e for n, e in [*cells, rest] if e > 1)
    degrees = len(cells)
    assert degrees >= 5
    assert statistic < degrees + 3.5 * (2 * degrees) ** 0.5 + 4  # beyond the 0.999 quantile of chi-square


def test_specs_mix_in_one_batch(make_engine):
    engine = make_engine()
    greedy, hot = request((1, 3), (5, 6), temperature=0.0), request((1, 3), (5, 6), temperature=2.0, max_tokens=3)
    mixed = engine.generate([greedy, hot], entropy=True)
    for part, alone in ((slice(0, 2), greedy), (slice(2, 4), hot)):
        single = engine.generate([alone], entropy=True)
        width = single.tokens.shape[1]
        assert rows(mixed)[part] == rows(single)
        assert torch.allclose(mixed.logp[part, :width], single.logp, atol=1e-5)
        assert torch.allclose(mixed.entropy[part, :width], single.entropy, atol=1e-5)


def watch(engine):
    """What goes through the model: the prompts of each prefill, and for each step how many rows."""
    prefill, step = engine.decoder.prefill, engine.decoder.step
    seen = []

    def prefilling(prompts):
        seen.append([list(p) for p in prompts])
        return prefill(prompts)

    def stepping(states, tokens):
        seen.append(sum(len(t) for t in tokens))
        step(states, tokens)

    engine.decoder.prefill, engine.decoder.step = prefilling, stepping
    return seen


def test_each_distinct_prompt_is_encoded_once(make_engine):
    engine = make_engine(max_rows=3)
    seen = watch(engine)
    engine.generate([request((1, 3, 4), range(7)), request((1, 5, 6), (7,)), request((1, 3, 4), (8,))])
    assert sorted(p for batch in seen if isinstance(batch, list) for p in batch) == [[1, 3, 4], [1, 5, 6]]
    assert max(n for n in seen if isinstance(n, int)) <= 3


def test_finished_rows_leave_the_batch(make_engine):
    engine = make_engine()
    force(engine, 4)
    seen = watch(engine)
    engine.generate([request((1, 3), range(8), max_tokens=2), request((1, 4), range(8), max_tokens=6, temperature=0.0)])
    assert seen == [[[1, 3], [1, 4]], 16, 8, 8, 8, 8]


def test_rows_that_wait_take_the_place_of_those_that_finish(make_engine):
    """Eight places; four rows of two tokens end first, and four that waited are let in beside the other four."""
    engine = make_engine(max_rows=8)
    force(engine, 4)
    seen = watch(engine)
    made = engine.generate(
        [
            request((1, 3), range(4), max_tokens=2),
            request((1, 4), range(4), max_tokens=6, temperature=0.0),
            request((1, 3, 5), range(4), max_tokens=3),
            request((1, 3, 6, 7), range(4), max_tokens=2),
        ]
    )
    assert seen == [[[1, 3], [1, 4]], 8, [[1, 3, 5]], 4, 8, 8, [[1, 3, 6, 7]], 4, 4]
    assert made.mask.sum(-1).tolist() == [2] * 4 + [6] * 4 + [3] * 4 + [2] * 4


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_rows_let_in_one_by_one_are_completed_alike(make_engine, family):
    """Groups are parted where only some of their rows find room, and every prompt is still encoded once."""
    asked = [request(r.prompt, range(10 * i, 10 * i + 7), max_tokens=2 + 5 * (i % 3)) for i, r in enumerate(MIXED)]
    asked.append(request((1, 5, 5), range(40, 43), stop=("cd", "h"), max_tokens=20))
    together = make_engine(family).generate(asked, entropy=True)
    engine = make_engine(family, max_rows=5)
    seen = watch(engine)
    made = engine.generate(asked, entropy=True)
    assert rows(made) == rows(together)
    assert torch.equal(made.truncated, together.truncated)
    for captured in ("logp", "entropy"):
        torch.testing.assert_close(getattr(made, captured), getattr(together, captured), atol=2e-5, rtol=0)
    assert max(n for n in seen if isinstance(n, int)) == 5
    assert sorted(p for batch in seen if isinstance(batch, list) for p in batch) == sorted(
        list(r.prompt) for r in asked
    )


def force(engine, token):
    """Make the model predict `token` always."""
    head = engine.model.get_output_embeddings()
    head.register_forward_hook(
        lambda module, args, out: torch.zeros_like(out).index_fill(-1, torch.tensor(token), 50.0)
    )


def test_eos_at_once_is_one_decision(make_engine):
    engine = make_engine()
    force(engine, 2)
    made = engine.generate([request((1, 3), (1, 2))])
    assert rows(made) == [[2], [2]] and made.logp.shape == (2, 1) and not made.truncated.any()


def test_every_listed_eos_ends_a_completion(make_engine):
    engine = make_engine()
    engine.model.generation_config.eos_token_id = [2, 5]
    engine = LocalEngine(engine.model, engine.tokenizer)
    force(engine, 5)
    assert engine.stop_ids == (2, 5)
    assert rows(engine.generate([request((1, 3), (1,))])) == [[5]]


def test_budget_and_context_truncate(make_engine):
    engine = make_engine(context=16)
    force(engine, 4)
    made = engine.generate([request((1, 3), (1,), max_tokens=3), request((1,) * 14, (2,)), request((1,) * 15, (3,))])
    assert rows(made) == [[4] * 3, [4] * 2, [4]] and made.truncated.all()
    assert not made.tokens[~made.mask].any() and not made.logp[~made.mask].any()


def test_prompts_that_cannot_be_completed_are_refused(make_engine):
    engine = make_engine(context=16)
    with pytest.raises(PolicyError, match=r"17 tokens fills the model's context of 16\n  mend: "):
        engine.generate([request((1,) * 17, (1,))])
    with pytest.raises(PolicyError, match="16 tokens fills"):
        engine.generate([request((1,) * 16, (1,))])
    with pytest.raises(PolicyError, match="empty prompt"):
        engine.generate([request((), (1,))])
    with pytest.raises(PolicyError, match="at least 1"):
        engine.generate([request((1,), (1,), max_tokens=0)])
    with pytest.raises(PolicyError, match="no request has a seed"):
        engine.generate([request((1,), ())])


def test_logits_that_are_not_numbers_are_refused(make_engine):
    engine = make_engine()
    with torch.no_grad():
        engine.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(PolicyError, match="NaN"):
        engine.generate([request((1, 3), (1, 2))])


def test_stop_strings_end_the_rows_that_ask_for_them(make_engine):
    engine = make_engine()
    engine.forbid = (0, 1)
    long = {"max_tokens": 24, "temperature": 1.5}
    free = engine.generate([request((1, 3), range(30), **long)])
    stopped = engine.generate(
        [request((1, 3), range(30), stop=("ab", "g"), **long), request((1, 3), range(30), **long)]
    )
    texts = ["".join("<>#abcdefgh"[i] for i in row) for row in rows(free)]
    found = 0
    for text, row, with_stop, other in zip(texts, rows(free), rows(stopped)[:30], rows(stopped)[30:], strict=True):
        ends = [text.index(s) + len(s) for s in ("ab", "g") if s in text]
        found += bool(ends)
        assert with_stop == (row[: min(ends)] if ends else row)
        assert other == row
    assert found > 5
    for i, row in enumerate(rows(stopped)[:30]):
        ended = engine.tokenizer.decode(row).endswith(("ab", "g", "<eos>"))
        assert bool(stopped.truncated[i]) != ended


def test_the_prompt_does_not_count_towards_a_stop_string(make_engine):
    engine = make_engine()
    force(engine, 4)  # b after a prompt that ends in a
    assert rows(engine.generate([request((1, 3), (1,), stop=("ab",), max_tokens=3)])) == [[4, 4, 4]]


def test_modes_are_restored_and_results_may_enter_a_backward_pass(make_engine):
    engine = make_engine()
    engine.model.train()
    engine.model.model.layers[0].eval()
    made = engine.generate([request((1, 3), (1, 2))])
    assert engine.model.training and not engine.model.model.layers[0].training and engine.model.model.layers[1].training
    weight = torch.ones_like(made.logp, requires_grad=True)
    (weight * made.logp).sum().backward()
    assert torch.equal(weight.grad, made.logp)
