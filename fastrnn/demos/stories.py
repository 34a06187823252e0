"""Stories: people walk about a house and pick things up; where is somebody, and where is something?

The tasks with one and with two supporting facts of the bAbI set (J. Weston et al.: Towards AI-complete
question answering, 2015, arXiv:1502.05698), generated here. "Where is John?" needs the latest of the sentences
that say where he went. "Where is the ball?" needs the one that says who took it, and then the latest of those
that say where that person went. A network that reads its memory once cannot do both.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import MemoryNetwork
from . import demo

PEOPLE = ("john", "mary", "daniel", "sandra")
PLACES = ("kitchen", "garden", "hallway", "office", "bedroom", "bathroom")
THINGS = ("ball", "book", "milk")
WORDS = ("", *PEOPLE, *PLACES, *THINGS, "went", "to", "took", "where", "is", "the")
NUMBER = {word: number for number, word in enumerate(WORDS)}
#: Sentences of a story and words of a sentence.
LONG, WIDE = 12, 5


def story(facts: int, rng: random.Random) -> tuple[list[str], str, str]:
    """The sentences, a question with `facts` supporting facts, and its answer."""
    while True:
        sentences, place, holder = [], {}, {}
        for _ in range(LONG):
            person, thing = rng.choice(PEOPLE), rng.choice(THINGS)
            if thing not in holder and rng.random() < 0.4:
                holder[thing] = person
                sentences.append(f"{person} took the {thing}")
            else:
                place[person] = rng.choice(PLACES)
                sentences.append(f"{person} went to the {place[person]}")
        places = place if facts == 1 else {t: place[p] for t, p in holder.items() if p in place}
        if places:
            subject = rng.choice(sorted(places))
            return sentences, f"where is {'the ' if facts == 2 else ''}{subject}", places[subject]


def encode(sentence: str) -> list[int]:
    """The numbers of the words, filled up with zeros."""
    numbers = [NUMBER[word] for word in sentence.split()]
    return numbers + [0] * (WIDE - len(numbers))


def batch(rows: int, facts: int, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Stories (rows, LONG, WIDE), questions (rows, WIDE), answers (rows,)."""
    drawn = [story(facts, rng) for _ in range(rows)]
    return (
        torch.tensor([[encode(s) for s in sentences] for sentences, _, _ in drawn]),
        torch.tensor([encode(question) for _, question, _ in drawn]),
        torch.tensor([NUMBER[answer] for _, _, answer in drawn]),
    )


class Demo(demo.Demo):
    title = "End-to-end memory network: questions about stories"
    steps, quick_steps = 1500, 150
    targets: ClassVar = {"one_fact": (">=", 0.95), "two_facts": (">=", 0.85)}
    quick_targets: ClassVar = {"one_fact": (">=", 0.95), "two_facts": (">=", 0.85)}
    learning_rate = 1e-2
    rows = 32

    def __init__(self, seed: int = 0, hops: int = 3) -> None:
        super().__init__(seed)
        self.seed, self.trained = seed, 0
        self.model = MemoryNetwork(len(WORDS), 32, hops, memory_size=LONG)
        self.rng = random.Random(seed)

    def batch(self) -> tuple[Tensor, ...]:
        parts = [batch(self.rows, facts, self.rng) for facts in (1, 2)]
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def loss(self, story: Tensor, question: Tensor, answer: Tensor) -> Tensor:
        return F.cross_entropy(self.model(story, question), answer)

    @torch.no_grad()
    def right(self, facts: int) -> float:
        """The share of right answers to unseen questions."""
        story, question, answer = batch(500, facts, random.Random(12345))
        return (self.model(story, question).argmax(-1) == answer).float().mean().item()
    def score(self): return {}
    def sample(self): return ''
    def picture(self, path): pass
