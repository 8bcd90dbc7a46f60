"""The launch examples pass their linters, and the commands in them are ones that Coterie takes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from coterie.recipe import resolve

FOLDER = Path(__file__).parent.parent / "examples" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
DIRECTIVES = set("job-name nodes ntasks-per-node gpus-per-node cpus-per-task time signal requeue output".split())
RAY_JOB = set(
    "entrypoint entrypointNumCpus entrypointNumGpus shutdownAfterJobFinishes ttlSecondsAfterFinished backoffLimit "
    "rayClusterSpec".split()
)
YAML_RULES = "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}"


def recipe_of(words: list[str]) -> dict:
    """The scale settings that `coterie train RECIPE --out RUN --resume key=value …` asks for."""
    assert words[:1] == ["train"] and (words[2], words[4]) == ("--out", "--resume"), words
    return resolve(overrides=["task=sort", *words[5:]]).settings.scale.model_dump()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_batch_script_is_clean_shell(script):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_a_batch_script_asks_slurm_before_its_first_command(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    asked = [line for line in lines if line.startswith("#SBATCH")]
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines[0] == "#!/bin/bash" and asked and all(lines.index(line) < first for line in asked)
    names = {re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line).group(1) for line in asked}
    assert names <= DIRECTIVES


def test_the_ray_script_asks_for_as_many_workers_as_it_has_gpus():
    text = (FOLDER / "ray.sbatch").read_text(encoding="utf-8")
    words = shlex.split(re.search(r"command=\((train .*)\)", text).group(1))
    scale = recipe_of(words)
    nodes, gpus = (int(re.search(rf"--{name}=(\d+)", text).group(1)) for name in ("nodes", "gpus-per-node"))
    assert scale["engine"] == "ray" and scale["train_workers"] + scale["rollout_workers"] == nodes * gpus


def test_the_manifest_is_a_ray_job_that_kuberay_takes():
    pytest.importorskip("yamllint")
    lint = [sys.executable, "-m", "yamllint", "-s", "-d", YAML_RULES]
    done = subprocess.run([*lint, FOLDER / "rayjob.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) == RAY_JOB
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        assert isinstance(group["rayStartParams"], dict)
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert set(container["resources"]) == {"requests", "limits"}
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    gpus = workers["replicas"] * int(
        workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    )
    program, *words = shlex.split(spec["entrypoint"])
    scale = recipe_of(words)
    assert program == "coterie" and scale["engine"] == "ray"
    assert scale["train_workers"] + scale["rollout_workers"] == gpus
