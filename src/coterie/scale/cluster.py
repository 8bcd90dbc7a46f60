"""The Ray cluster of a run: connected to or started, asked whether it is large enough, and its trainers."""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from coterie.errors import RecipeError
from coterie.scale.processes import GRACE, Ended, Team

if TYPE_CHECKING:
    from coterie.recipe import Recipe


class Cluster:
    """Ray, with the workers of one run on it. The trainer that leads is this process."""

    def __init__(self, recipe: Recipe) -> None:
        self.ray = _ray()
        scale = recipe.settings.scale
        self.mine = not self.ray.is_initialized()
        if self.mine:
            start_here(self.ray)
        self.pool: Any = None
        self.trainers: Trainers | None = None
        try:
            self.gpus = int(self.ray.cluster_resources().get("GPU", 0) > 0)
            self._check(recipe)
            from coterie.scale.pool import Pool

            if scale.train_workers > 1:
                self.trainers = Trainers(recipe, scale.train_workers, self.gpus, self.ray)
            self.pool = Pool(recipe.to_yaml(), scale, self.gpus)
        except BaseException:
            self.close()
            raise

    def _check(self, recipe: Recipe) -> None:
        """Raise RecipeError where the cluster could never hold what the recipe asks for: Ray would wait for ever."""
        scale, there = recipe.settings.scale, self.ray.cluster_resources()
        others = scale.rollout_workers + scale.train_workers - 1
        need = {"CPU": scale.cpus * (others + scale.reward_workers), "GPU": float(self.gpus * others)}
        for kind, count in need.items():
            if count > there.get(kind, 0.0) + 1e-6:
                raise RecipeError(
                    f"the workers need {count:g} {kind}s beside the trainer that leads, and the Ray cluster has "
                    f"{there.get(kind, 0.0):g}",
                    hint="fewer scale.rollout_workers, reward_workers or train_workers; or lower scale.cpus",
                )

    def close(self) -> None:
        if self.pool is not None:
            self.pool.close()
        if self.trainers is not None:
            self.trainers.end()
        if self.mine:
            self.ray.shutdown()


class Trainers(Team):
    """The trainers beside the one that leads, each an actor that runs the loop with it."""

    def __init__(self, recipe: Recipe, size: int, gpus: int, ray: Any) -> None:
        self.ray = ray
        address = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self.environment = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        make = ray.remote(_Trainer).options(num_cpus=recipe.settings.scale.cpus, num_gpus=gpus)
        self.actors = [make.remote() for _ in range(1, size)]
        self.running = [
            actor.run.remote(recipe.to_yaml(), {**self.environment, "RANK": str(rank), "LOCAL_RANK": "0"})
            for rank, actor in enumerate(self.actors, 1)
        ]
        self.ended = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def said(self) -> Ended | None:
        for rank, reference in enumerate(self.running, 1):
            if self.ray.wait([reference], timeout=0)[0]:
                died = False
                try:
                    why = self.ray.get(reference)
                except self.ray.exceptions.RayTaskError as error:
                    why = f"failed: {str(error.cause).splitlines()[0]}"
                except self.ray.exceptions.RayError as error:
                    why, died = f"died ({type(error).__name__})", True
                if why is not None:
                    return Ended(f"trainer {rank} of {len(self.actors) + 1} {why}", died)
        return None

    def end(self) -> None:
        """Let those that are done go, and stop the others."""
        patient = GRACE if sys.exc_info()[0] is None else 0.0
        self.ray.wait(self.running, num_returns=len(self.running), timeout=patient)
        self.ended.set()
        for actor in self.actors:
            self.ray.kill(actor)


class _Trainer:
    """A trainer's actor."""

    def run(self, recipe: str, environment: dict[str, str]) -> str | None:
        """Take part until the run is done. Why not, if not; None where another trainer was lost."""
        from coterie.errors import CoterieError
        from coterie.hardware import use_threads
        from coterie.scale import follow
        from coterie.scale.maker import written
        from coterie.scale.processes import Lost, Processes

        os.environ.update(environment)
        resolved = written(recipe)
        use_threads(resolved.settings.threads)
        try:
            workers = Processes(resolved.settings.scale)
            with workers.talking():
                follow(resolved, workers)
            workers.close()
        except Lost:
            return None
        except CoterieError as error:
            return f"failed: {error}"
        return None


def start_here(ray: Any, **settings: Any) -> None:
    """Start Ray on this machine for this program."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent out unless the user wants it
    os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15 they stand still where the trainer has all cores
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **settings)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RecipeError(
            "scale.engine=ray needs the package ray, which is not installed", hint="pip install 'coterie[scale]'"
        ) from error
    return ray
