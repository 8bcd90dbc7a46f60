"""Talks with somebody who wants to be understood."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.environments.base import World, episode_return
from coterie.environments.emotional_user import TURNS, WISHES, EmotionalUser
from coterie.pieces import task
from coterie.rewards.functions import WeightedReward
from coterie.tasks.base import Task
from coterie.tasks.split import Row, generate

TOPICS = {
    "exam": ("I failed an exam", "I studied for months"), "job": ("I lost my job", "they told me by mail"),
    "move": ("I had to move", "I know nobody here"), "friend": ("A friend stopped talking to me", "we were so close"),
    "dog": ("My dog is ill", "she is so old already"), "boss": ("My boss shouts at me", "in front of everybody"),
    "sister": ("My sister and I fight all day", "about nothing"), "rent": ("I cannot pay my rent", "it went up again"),
    "sleep": ("I do not sleep any more", "I am so tired"), "team": ("My team left me out", "I saw the pictures"),
}  # fmt: skip
MANNERS = ("", "To be honest: ", "I do not like to say it, but: ", "Where do I begin. ", "It is silly, but: ")
_REPLIES = {
    "acknowledge": ("I am sorry about the {}, that must be hard.", "I understand, the {} sounds hard.",
                    "It makes sense that the {} hurts.", "I hear you, the {} is much.", "I feel for you with the {}."),
    "ask": ("What about the {} hurts most?", "How did it begin with the {}?", "Who knows about the {}?",
            "When is the {} on your mind?", "Why does the {} matter so much?"),
    "advise": ("You could tell somebody you trust about the {}.", "You might write down what the {} does to you.",
               "I suggest one small step with the {}.", "Have you tried to let the {} rest for a day?",
               "Would it help to plan the {} together?"),
}  # fmt: skip


@task(paper="arXiv:2507.03112")
def emotional_user(
    *, think: bool = False, chat: bool = True, train: int = 200, held_out: int = 50, seed: int = 0
) -> Task:
    """A user tells a sorrow; replies that are what the user wishes for raise an emotion from 30 up to 100 (RLVER).

    The user is a small machine that understands keywords, so that rewards are exact. Wishes are not told. think:
    replies begin with <think>…</think>, which the user does not hear. chat: prompts are conversations, else plain text.
    Held out are stories with wishes of their own.
    """

    def make(rng: np.random.Generator) -> Row:
        topic = str(rng.choice(list(TOPICS)))
        opener, detail = TOPICS[topic]
        text = f"{rng.choice(MANNERS)}{opener}, {detail}."
        wishes = ["acknowledge", *rng.choice(WISHES, int(rng.integers(1, 4))).tolist()]
        prompt = [{"role": "user", "content": text}] if chat else f"User: {text}\nYou: "
        return {"prompt": prompt, "topic": topic, "wishes": wishes}

    def script(row: Row, observations: Sequence[Any]) -> str:
        at = len(observations)
        reply = _REPLIES[row["wishes"][min(at, len(row["wishes"]) - 1)]][at % 5].format(row["topic"])
        return f"<think>They wish for something.</think>{reply}" if think else reply

    def key(row: Row) -> tuple[str, ...]:
        return (str(row["prompt"]), *row["wishes"])

    rows, held = generate(make, train, held_out, seed, key=key, distinct=key)
    return Task(
        "emotional-user", rows, held, rewards=[WeightedReward(episode_return, "emotion")], script=script,
        world=World(functools.partial(EmotionalUser, think=think), turns=TURNS),
    )  # fmt: skip
