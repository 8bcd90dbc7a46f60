"""The experiments. One entry is one claim; what an entry cannot say in settings is a world of its own."""

from __future__ import annotations

from bench.claims import Experiment, Side
from bench.claims import worlds as w
from bench.claims.tabular import bandit
from bench.claims.training import tiny

GROUPS = ["draw.prompts=8", "rollout.group_size=8"]
TOKEN = "objective.aggregation=token"
NO_FILTER = "selection.filters=[]"
RATES = (1.0, 4.0, 16.0)
SORT = [
    "steps=60", "draw.prompts=16", "rollout.max_tokens=7", "warm_start.steps=200", "warm_start.check_every=5",
    "optimizer.lr=5e-4",
]  # fmt: skip
THINKING = [*GROUPS, "optimizer={sgd: {lr: 8.0}}"]
GRPO = Side("GRPO", "grpo")


def _shortens(slug: str, claim: str, how: str, ours: Side) -> Experiment:
    """Shorter thoughts at equal accuracy, against GRPO."""
    return Experiment(
        slug=slug,
        claim=claim,
        how=how,
        ours=ours,
        baseline=GRPO,
        setting=bandit(w.thinking(), 200, THINKING),
        figure="length",
        higher=False,
        keeps=("accuracy", 0.02),
    )


EXPERIMENTS = [
    Experiment(
        slug="mc-grpo",
        claim="With two rollouts a prompt to learn from, the median of three is a better baseline than their mean.",
        how="Tiny language model on sorting 4 digits, rewarded with the share of positions that are right; 60 updates "
        "from about 10 % accuracy. Both sides learn from 2 rollouts a prompt; the median has sampled a third.",
        ours=Side("median of 3", "mc-grpo", ["rollout.group_size=3"]),
        baseline=Side("mean of 2", "grpo", ["rollout.group_size=2"]),
        setting=tiny(
            "{sort: {digits: 4, dense: true}}",
            [*SORT, "warm_start.stop_at=0.1"],
            {"accuracy": "eval/accuracy", "reward": "reward/mean"},
        ),
        figure="accuracy",
        also=["reward"],
        seeds=6,
        note="Rewards take five values here, so that two of three are often equal: the median distance is then 0, the "
        "advantage some hundreds, and clipping the gradient leaves such groups alone to set its direction.",
    ),
    Experiment(
        slug="mc-grpo-noise",
        claim="The median keeps outliers from turning the sign of advantages, at equal numbers of rollouts sampled.",
        how="Softmax bandit: 24 prompts, 8 answers with values in [0, 1], rewarded with heavy-tailed noise (Student t, "
        "2 degrees of freedom, scale 0.3). Three rollouts a prompt are sampled on both sides; the median learns from "
        "two of them. Both divide by the standard deviation, to compare the baselines alone.",
        ours=Side("median of 3", "mc-grpo", ["rollout.group_size=3", "credit.baseline.scale=std"]),
        baseline=Side("mean of 3", "grpo", ["rollout.group_size=3"]),
        setting=bandit(w.noisy_values(tail=2), 300, ["draw.prompts=8"]),
        figure="regret",
        higher=False,
        rates=RATES,
    ),
    Experiment(
        slug="ngrpo",
        claim="NGRPO learns on prompts whose groups are all wrong, where GRPO stands still.",
        how="Softmax bandit: 16 prompts, one right answer among 64, first accuracy under 1 %.",
        ours=Side("NGRPO", "ngrpo", [NO_FILTER]),
        baseline=Side("GRPO", "grpo", [TOKEN]),
        setting=bandit(w.hard_prompts(), 250, GROUPS, averaged=["used"]),
        figure="accuracy",
        also=["entropy", "used"],
        rates=RATES,
        note="'used' is the share of rollouts with an advantage. Where prompts share no parameters, pushing down wrong "
        "answers that have one common advantage has almost no mean effect: a constant times the score has mean 0.",
    ),
    Experiment(
        slug="ngrpo-sort",
        claim="NGRPO learns faster than GRPO where nearly every group is all wrong.",
        how="Tiny language model on sorting 5 digits, 60 updates from about 2 % accuracy.",
        ours=Side("NGRPO", "ngrpo", [NO_FILTER]),
        baseline=Side("GRPO", "grpo", [TOKEN]),
        setting=tiny(
            "{sort: {digits: 5}}",
            [*SORT, "warm_start.stop_at=0.02", "rollout.group_size=8"],
            {"accuracy": "eval/accuracy", "entropy": "entropy/mean", "dead groups": "groups/dead_share"},
        ),
        figure="accuracy",
        also=["entropy", "dead groups"],
        seeds=6,
    ),
    Experiment(
        slug="gdpo",
        claim="Normalising each reward by itself keeps one of small scale from being drowned by one of large scale.",
        how="Softmax bandit with two decisions; the first earns 1 where it is right, the second 10.",
        ours=Side("GDPO", "gdpo"),
        baseline=Side("GRPO on the sum", "grpo"),
        setting=bandit(w.two_rewards(), 60, GROUPS),
        figure="both right",
        also=["small reward", "large reward"],
        rates=RATES,
    ),
    Experiment(
        slug="noisy-verifier-backward",
        claim="The backward correction, told how often the verifier errs on each prompt, learns the clean answers "
        "better.",
        how="Softmax bandit over shared parameters: 32 prompts, 6 answers; the verifier errs on 20 % of the verdicts, "
        "from 0 to 40 % by prompt. No division by the standard deviation on either side.",
        ours=Side(
            "corrected",
            "noisy-verifier-backward",
            [
                "rewards.shaping.noisy_verifier_backward.false_positive_from=rho0",
                "rewards.shaping.noisy_verifier_backward.false_negative_from=rho1",
            ],
        ),
        baseline=Side("as seen", "grpo", ["credit.baseline.scale=none"]),
        setting=bandit(w.noisy_verifier(), 200, GROUPS),
        figure="clean accuracy",
        rates=RATES,
    ),
    Experiment(
        slug="noisy-verifier-constant",
        claim="With the same rates for every prompt and a group standard deviation, the backward correction changes "
        "nothing.",
        how="As noisy-verifier-backward, told 20 % for every prompt. An affine map of the rewards is undone by the "
        "group's mean and standard deviation: a check of the bench as much as of the method.",
        ours=Side(
            "corrected",
            "noisy-verifier-backward",
            [
                "rewards.shaping.noisy_verifier_backward.false_positive=0.2",
                "rewards.shaping.noisy_verifier_backward.false_negative=0.2",
                "credit.baseline.scale=std",
            ],
        ),
        baseline=Side("as seen", "grpo"),
        setting=bandit(w.noisy_verifier(), 200, [*GROUPS, "optimizer={sgd: {lr: 4.0}}"]),
        figure="clean accuracy",
        equal=0.005,
    ),
    Experiment(
        slug="spo-single",
        claim="One rollout for each of many prompts, against a tracked value, wastes less than groups that agree.",
        how="Softmax bandit over partly shared parameters: 64 prompts, half nearly solved, half nearly hopeless; 32 "
        "rollouts an update on both sides.",
        ours=Side("single stream", "spo-single", ["draw.prompts=32", "rollout.group_size=1"]),
        baseline=Side("groups of 8", "grpo", ["draw.prompts=4", "rollout.group_size=8"]),
        setting=bandit(w.degenerate_groups(), 250, [], averaged=["used"]),
        figure="accuracy",
        also=["accuracy of hard prompts", "used"],
        rates=RATES,
    ),
    Experiment(
        slug="riskpo",
        claim="A risk-averse objective keeps more entropy than the mean.",
        how="Softmax bandit: 16 prompts, 32 answers of which 6 pass; the same learning rate on both sides.",
        ours=Side("RiskPO", "riskpo"),
        baseline=GRPO,
        setting=bandit(w.several_solutions(), 150, [*GROUPS, "optimizer={sgd: {lr: 2.0}}"]),
        figure="entropy",
        also=["pass@16 on the test", "training accuracy"],
    ),
    Experiment(
        slug="unlikeliness",
        claim="Rewarding unlikely right answers keeps several solutions alive, and raises pass@k.",
        how="Softmax bandit: 16 prompts, 32 answers of which 6 pass, one of them likeliest at first; each holds on the "
        "test with probability one half. One pass over each batch and the same learning rate on both sides.",
        ours=Side("unlikeliness", "unlikeliness", ["update.epochs=1"]),
        baseline=GRPO,
        setting=bandit(w.several_solutions(), 200, [*GROUPS, "optimizer={sgd: {lr: 4.0}}"]),
        figure="pass@16 on the test",
        also=["pass@1 on the test", "training accuracy", "entropy"],
    ),
    Experiment(
        slug="gaussian-grpo",
        claim="Ranks mapped to a normal distribution withstand heavy-tailed rewards.",
        how="Softmax bandit: 24 prompts, 8 answers with values in [0, 1], rewarded with Cauchy noise of scale 0.1.",
        ours=Side("Gaussian", "gaussian-grpo"),
        baseline=GRPO,
        setting=bandit(w.noisy_values(tail=1, scale=0.1), 200, GROUPS),
        figure="regret",
        higher=False,
        rates=RATES,
    ),
    Experiment(
        slug="seed-grpo",
        claim="Smaller updates on prompts the policy is unsure of raise accuracy.",
        how="Softmax bandit over shared parameters: 32 prompts, half of them without a right answer (their reward is a "
        "coin).",
        ours=Side("SEED-GRPO", "seed-grpo"),
        baseline=GRPO,
        setting=bandit(w.uncertain_prompts(), 150, GROUPS),
        figure="accuracy of clear prompts",
        also=["entropy"],
        rates=RATES,
    ),
    Experiment(
        slug="ace",
        claim="Punishing overconfident errors harder frees the mass they hold.",
        how="Softmax bandit: 16 prompts, 16 answers; the policy begins with much of its mass on one wrong answer that "
        "the reference holds for unlikely. The same learning rate on both sides.",
        ours=Side("ACE", "grpo+ace"),
        baseline=GRPO,
        setting=bandit(w.confident_errors(), 100, [*GROUPS, "optimizer={sgd: {lr: 4.0}}"]),
        figure="mass on the confident error",
        higher=False,
        also=["accuracy", "pass@8", "entropy"],
    ),
    _shortens(
        slug="l-grpo",
        claim="Rewarding brevity only where a whole group is right shortens answers at equal accuracy.",
        how="Table of softmaxes: think on or stop, up to 24 times; the answer is right with probability 0.95 once the "
        "rollout thought as long as its prompt needs (3 to 10), else 0.05. The same learning rate on both sides.",
        ours=Side("L-GRPO", "l-grpo", [NO_FILTER]),
    ),
    _shortens(
        slug="grpo-lambda",
        claim="Penalising length only in the groups that are solved best shortens answers at equal accuracy.",
        how="As l-grpo.",
        ours=Side("GRPO-lambda", "grpo-lambda"),
    ),
    _shortens(
        slug="drpo",
        claim="Normalising the length reward over right answers alone shortens them at equal accuracy.",
        how="As l-grpo.",
        ours=Side("DRPO", "drpo"),
    ),
    _shortens(
        slug="s-grpo",
        claim="Early exits from one thought, the first right one earning most, shorten answers at equal accuracy.",
        how="As l-grpo. An exit cuts the thought at a random length and answers.",
        ours=Side("S-GRPO", "s-grpo"),
    ),
    Experiment(
        slug="dcpo-sas",
        claim="Standardising over a prompt's whole history lets more rollouts teach than over the step's group.",
        how="Softmax bandit over partly shared parameters: 64 prompts, half nearly solved, half nearly hopeless. "
        "'used' is the share of rollouts with an advantage. The same learning rate on both sides.",
        ours=Side("smooth", "dcpo-sas"),
        baseline=GRPO,
        setting=bandit(w.degenerate_groups(), 250, [*GROUPS, "optimizer={sgd: {lr: 4.0}}"], averaged=["used"]),
        figure="used",
        also=["accuracy", "accuracy of hard prompts"],
    ),
    Experiment(
        slug="prof",
        claim="Keeping the rollouts whose steps agree with their outcome teaches sounder reasoning.",
        how="Table of softmaxes: 4 steps, each sound or flawed; a flawed rollout is right by luck in 40 %. A process "
        "reward model sees the steps with noise. Both sides sample 8 rollouts a prompt.",
        ours=Side("PROF", "prof"),
        baseline=GRPO,
        setting=bandit(w.lucky_reasoning(), 150, GROUPS),
        figure="sound steps",
        also=["sound rollouts", "accuracy"],
        rates=RATES,
    ),
    Experiment(
        slug="tempo",
        claim="Values read off the tree of shared prefixes assign credit better than the group's mean.",
        how="Table of softmaxes: 5 decisions among 3, rewarded only where all are right.",
        ours=Side("TEMPO", "tempo"),
        baseline=GRPO,
        setting=bandit(w.all_steps_right(), 120, GROUPS),
        figure="accuracy",
        also=["right decisions"],
        rates=RATES,
    ),
]
