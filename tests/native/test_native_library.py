"""The compiled functions are built once, found again, and done without where they cannot be had."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from coterie import native
from coterie.native import pieces
from coterie.policies.causal_lm import CausalLM
from coterie.policies.loading import ModelSpec
from coterie.policies.tiny import TinySpec
from coterie.rollouts import Prompt, Sampling

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
TO_OUTPUT = 'while [ "$1" != -o ]; do shift; done\n'


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of libraries, that is not there yet; nothing is loaded."""
    for name in ("CC", "COTERIE_NATIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native._loaded.cache_clear()
    yield tmp_path / "cache" / "coterie"
    native._loaded.cache_clear()


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """compiler(body) makes a shell script with this body the compiler."""

    def make(body: str) -> str:
        script = tmp_path / "compiler"
        script.write_text(f"#!/bin/sh\n{body}")
        script.chmod(0o700)
        monkeypatch.setenv("CC", str(script))
        return str(script)

    return make


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="other systems' compilers may lack OpenMP")
def test_a_machine_with_a_compiler_has_the_functions():
    assert native.functions() is not None and native.missing() is None


@needs_compiler
def test_built_once_and_found_again(cache, compiler, tmp_path):
    compiler(f'echo >> "{tmp_path}/calls"; exec "{COMPILER}" "$@" -O0')  # the last -O counts: quickly
    library = native.functions()
    assert library is not None and native.functions() is library
    [built] = cache.iterdir()
    made = built.stat()
    assert built.name.startswith("native-") and Path(library._name) == built
    native._loaded.cache_clear()
    assert native.functions() is not None
    again = built.stat()
    assert (again.st_mtime_ns, again.st_ino) == (made.st_mtime_ns, made.st_ino) and names(cache) == [built.name]
    assert (tmp_path / "calls").read_text() == "\n"
    gates = torch.linspace(-3, 3, 16).view(1, 16)
    out = torch.empty_like(gates)
    library.gate(1, 1, 16, *map(pieces._lines, (gates, gates, out)))
    torch.testing.assert_close(out, torch.nn.functional.silu(gates) * gates)


@needs_compiler
def test_each_type_has_a_library_and_others_none(cache, compiler):
    compiler(f'exec "{COMPILER}" "$@" -O0')
    for dtype in (torch.float64, torch.float16, torch.int16):
        assert native.functions(dtype) is None
    assert not cache.exists()
    library = native.functions(torch.bfloat16)
    assert library is not None and native.functions(torch.bfloat16) is library and len(names(cache)) == 1
    assert not pieces.suits(torch.zeros(2, 8, device="meta")) and len(names(cache)) == 1  # nor where it is of no use
    gates = torch.linspace(-3, 3, 16).bfloat16().view(1, 16)
    out = torch.full((1, 24), 7.0, dtype=torch.bfloat16)
    library.gate(1, 1, 16, *map(pieces._lines, (gates, gates, out)))
    want = torch.nn.functional.silu(gates.float()) * gates.float()
    torch.testing.assert_close(out[:, :16].float(), want, rtol=2**-8, atol=0)
    assert bool((out[:, 16:] == 7.0).all())  # of its own width, not of another type's


def test_two_at_once_both_have_it(cache, compiler, tmp_path):
    """Neither compiler ends before the other has begun."""
    wait = f'for i in $(seq 100); do [ $(wc -l < "{tmp_path}/calls") -ge 2 ] && break; sleep 0.1; done\n'
    name = compiler(f'echo >> "{tmp_path}/calls"\n{wait}{TO_OUTPUT}echo built > "$2"')
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(native._built, [name] * 2, ["FLOAT32"] * 2)
    assert (tmp_path / "calls").read_text() == "\n\n"
    assert first == second and first.read_text() == "built\n" and names(cache) == [first.name]


def test_other_code_types_compilers_and_processors_have_libraries_of_their_own(cache, compiler, monkeypatch, tmp_path):
    name = compiler(f'{TO_OUTPUT}echo > "$2"')
    paths = [native._built(name, holds) for holds in ("FLOAT32", "BFLOAT16")]
    for suffix in (".h", ".c"):
        sources = [tmp_path / s.name for s in native.SOURCES]
        for source, copy in zip(native.SOURCES, sources, strict=True):
            copy.write_text(source.read_text())
        changed = next(s for s in sources if s.suffix == suffix)
        changed.write_text(changed.read_text() + "\n")
        with monkeypatch.context() as patch:
            patch.setattr(native, "SOURCES", sources)
            paths.append(native._built(name, "FLOAT32"))
    other = tmp_path / "another"
    shutil.copy(name, other)
    paths.append(native._built(str(other), "FLOAT32"))
    assert native._processor().strip()
    with monkeypatch.context() as patch:
        patch.setattr(native, "_processor", lambda: "of another kind")
        paths.append(native._built(name, "FLOAT32"))
    assert len(set(paths)) == 6 == len(names(cache)) and native._built(name, "FLOAT32") == paths[0]


def no_compiler(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("PATH", "")


def compiler_nowhere(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("CC", str(tmp_path / "nothing"))


def compiler_that_fails(monkeypatch, tmp_path, compiler):
    compiler("exit 1")


def compiler_that_makes_nothing(monkeypatch, tmp_path, compiler):
    compiler("exit 0")


def compiler_that_makes_something_else(monkeypatch, tmp_path, compiler):
    compiler(f'{TO_OUTPUT}echo no library > "$2"')


def compiler_that_does_not_end(monkeypatch, tmp_path, compiler):
    compiler("exec sleep 60")
    monkeypatch.setattr(native, "_PATIENCE", 0.2)


def cache_that_is_a_file(monkeypatch, tmp_path, compiler):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))


def nobody_at_home(monkeypatch, tmp_path, compiler):
    """As in a container whose user has no entry and no HOME."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)


def not_wanted(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("COTERIE_NATIVE", "0")


WITHOUT = [
    not_wanted,
    no_compiler,
    compiler_nowhere,
    compiler_that_fails,
    compiler_that_makes_nothing,
    compiler_that_makes_something_else,
    compiler_that_does_not_end,
    cache_that_is_a_file,
    nobody_at_home,
]


@pytest.mark.parametrize("damage", WITHOUT)
def test_without_it_there_is_none(cache, compiler, monkeypatch, tmp_path, damage):
    damage(monkeypatch, tmp_path, compiler)
    assert native.functions() is None and native.functions(torch.bfloat16) is None and native.missing()
    if cache.exists() and damage is not compiler_that_makes_something_else:
        assert not names(cache)  # nothing half-made is left


def outcome():
    """What a policy samples, keeps and learns from it."""
    policy = CausalLM.load(ModelSpec(init=TinySpec(family="qwen3", vocabulary="abcdefgh", kv_heads=2)))
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(10)
    prompts = [Prompt((1, 5, 6, 7)), Prompt((1, 9))]
    with policy.kept.keeping(2**24):
        rollouts = policy.rollout(prompts, [[1, 2, 3], [4, 5]], Sampling(max_tokens=7))
    results = [rollouts["tokens"], rollouts["logp_old"]]
    for _ in range(2):  # read from what was kept, then computed
        policy.model.zero_grad()
        logp = policy.score(rollouts)["logp"]
        (logp * torch.linspace(-1, 2, 5).unsqueeze(1)).sum().backward()
        results += [logp.detach(), *(p.grad.clone() for p in policy.model.parameters())]
        policy.kept.forget()
    return results


@needs_compiler
def test_policies_sample_and_learn_alike_without_it(monkeypatch, tmp_path):
    native._loaded.cache_clear()
    want = outcome()
    native._loaded.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("CC", str(tmp_path / "nothing"))
        assert native.functions() is None
        got = outcome()
    native._loaded.cache_clear()
    assert torch.equal(got[0], want[0])
    for mine, its in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-5 * max(1.0, float(its.abs().max())))
