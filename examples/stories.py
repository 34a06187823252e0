"""Stories: people walk about a house and pick things up; where is somebody, and where is something?

The tasks with one and with two supporting facts of the bAbI set (J. Weston et al.: Towards AI-complete
question answering, 2015, arXiv:1502.05698), generated here. "Where is John?" needs the latest of the
sentences that say where he went. "Where is the ball?" needs the one that says who took it, and then the
latest of those that say where that person went. A network that reads its memory once cannot do both.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import ClassVar

import _demo
import torch
from _run import main
from torch import Tensor
from torch.nn import functional as F

from fastrnn.models import MemoryNetwork

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


@functools.cache
def encode(sentence: str) -> list[int]:
    """The numbers of the words, filled up with zeros; not to be changed."""
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


class Demo(_demo.Demo):
    """Figures: the share of right answers to questions with one and with two supporting facts, and by how
    much the latter is above that of a network with one hop, trained for as many steps on the same stories."""

    title = "Memory network: questions about stories"
    steps, quick_steps = 700, 200
    targets: ClassVar = {
        "one_fact": (">=", 0.95),
        "two_facts": (">=", 0.85),
        "two_facts_above_one_hop": (">=", 0.2),
    }
    quick_targets: ClassVar = {"one_fact": (">=", 0.8)}
    learning_rate = 2e-2
    rows = 32

    def __init__(self, seed: int = 0, hops: int = 3) -> None:
        super().__init__(seed)
        self.model = MemoryNetwork(len(WORDS), 32, hops, memory_size=LONG)
        self.rng = random.Random(seed)

    def batch(self) -> tuple[Tensor, ...]:
        parts = [batch(self.rows, facts, self.rng) for facts in (1, 2)]
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))

    def loss(self, story: Tensor, question: Tensor, answer: Tensor) -> Tensor:
        return F.cross_entropy(self.model(story, question), answer)

    def score(self) -> dict[str, float]:
        return {"one_fact": self.right(1), "two_facts": self.right(2)}

    def compare(self) -> dict[str, float]:
        rival = Demo(self.seed, hops=1)
        rival.train(self.trained)
        return {"two_facts_above_one_hop": self.right(2) - rival.right(2)}

    @torch.no_grad()
    def right(self, facts: int) -> float:
        """The share of right answers."""
        story, question, answer = batch(500, facts, random.Random(12345))
        return (self.model(story, question).argmax(-1) == answer).float().mean().item()

    def sample(self) -> str:
        sentences, question, answer, got, _ = self._example(2)
        return "\n".join([*sentences, f"{question}? {got} (right: {answer})"])

    def picture(self, path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 5), layout="constrained")
        axes = figure.subplots(1, 2)
        for facts, axis in zip((1, 2), axes, strict=True):
            sentences, question, answer, got, attention = self._example(facts)
            image = axis.imshow(attention.T.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axis.set_title(f"{question}? {got} (right: {answer})")
            axis.set_yticks(range(len(sentences)), sentences)
            axis.set_xticks(range(len(attention)), [f"hop {k + 1}" for k in range(len(attention))])
        figure.colorbar(image, ax=axes.tolist(), label="attention")
        figure.suptitle("Which sentences each hop attends to, with one and with two supporting facts")
        figure.savefig(path)

    @torch.no_grad()
    def _example(self, facts: int) -> tuple[list[str], str, str, str, Tensor]:
        """Sentences, question, answer, the network's answer, and its attention (hops, sentences)."""
        sentences, question, answer = story(facts, random.Random(54321))
        words = torch.tensor([[encode(sentence) for sentence in sentences]])
        logits, attention = self.model(words, torch.tensor([encode(question)]), return_attention=True)
        return sentences, question, answer, WORDS[int(logits.argmax())], attention[0]


if __name__ == "__main__":
    main(Demo)
