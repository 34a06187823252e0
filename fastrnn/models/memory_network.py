"""End-to-end memory network: answers questions about a set of sentences by attending to them repeatedly."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .. import _checks
from ..modules import GRU
from . import _inputs

__all__ = ["MemoryNetwork"]

SENTENCES = ("position", "bag", "gru")


class MemoryNetwork(nn.Module):
    r"""An end-to-end memory network.

    S. Sukhbaatar, A. Szlam, J. Weston, R. Fergus: End-to-end memory networks. NeurIPS 2015, arXiv:1503.08895.
    Encoders A, B and C turn sentences x_i and a question q into vectors (section 2):

    .. math::
        u^1 &= B(q), \qquad m_i^k = A^k(x_i), \qquad c_i^k = C^k(x_i) \\
        p_i^k &= \mathrm{softmax}_i(u^k \cdot m_i^k), \qquad o^k = \textstyle\sum_i p_i^k c_i^k, \qquad
        u^{k+1} = u^k + o^k \\
        \mathrm{logits} &= W u^{K+1}

    with the weights tied between adjacent hops: :math:`A^{k+1} = C^k`, :math:`B = A^1` and W the embedding of
    :math:`C^K`, so that K hops have K + 1 encoders. A sentence of the words x_1 ... x_J becomes

    .. math::
        \textstyle\sum_j l_j \odot E x_j + T(\mathrm{age}), \qquad
        l_{kj} = (1 - j/J) - (k/d)(1 - 2j/J)

    where l encodes the words' positions and T, a table of vectors, how many sentences came after it (the
    last one's age is 0; questions have none).

    A memory is a set, and time enters as T alone: no recurrent layer is in the paper's network. With
    ``sentence="gru"`` the last state of a fused GRU over the words takes the place of the sum.

    Args:
        vocabulary: V, number of words, of which word 0 is padding.
        embedding_size: d of the vectors.
        hops: K, how often the memory is read.
        sentence: "position" as above, "bag" with all l = 1, or "gru".
        memory_size: largest number of sentences of a story, for T; None for no T.
        device, dtype: of the parameters.

    Attributes:
        linear: whether p is left without its softmax: the paper trains like that at first, which spares it
            poor local minima. False by default; change it at any time.
    """

    def __init__(
        self,
        vocabulary: int,
        embedding_size: int = 32,
        hops: int = 3,
        *,
        sentence: str = "position",
        memory_size: int | None = 50,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        _inputs.size("MemoryNetwork", "vocabulary", vocabulary, 2)
        _inputs.size("MemoryNetwork", "embedding_size", embedding_size)
        _inputs.size("MemoryNetwork", "hops", hops)
        if memory_size is not None:
            _inputs.size("MemoryNetwork", "memory_size", memory_size)
        _checks.one_of("MemoryNetwork", "sentence", sentence, SENTENCES)
        self.vocabulary, self.hops, self.memory_size = vocabulary, hops, memory_size
        self.linear = False
        options = {"device": device, "dtype": dtype}
        self.encoders = nn.ModuleList(
            SentenceEncoder(vocabulary, embedding_size, sentence, memory_size or 0, **options)
            for _ in range(hops + 1)
        )

    def forward(self, story: Tensor, question: Tensor, *, return_attention: bool = False):
        """Answer a question about each story.

        Args:
            story: (B, N, J) integers, the words of the sentences from the oldest to the latest, each with
                zeros after its words; a sentence of zeros alone is padding, wherever it is.
            question: (B, Q) integers, with zeros after the words.
            return_attention: return p as well.

        Returns:
            logits (B, V) of the answer, one word; with ``return_attention`` also p, (B, K, N). A row's
            result does not depend on how far it was padded.

        Raises:
            TypeError: words that are not int64 or int32.
            ValueError: wrong number of dimensions, rows that do not match, an empty batch, story or question,
                more sentences than ``memory_size``, or words outside of the vocabulary.
        """
        self._check(story, question)
        u = self.encoders[0].words(question)
        present = (story != 0).any(-1)
        age = present.flip(1).cumsum(1).flip(1) - present.long()
        memories = [encoder(story, age) for encoder in self.encoders]
        attention = []
        for memory, output in pairwise(memories):
            p = (memory @ u.unsqueeze(-1)).squeeze(-1)
            if not self.linear:
                p = p.masked_fill(~present, torch.finfo(p.dtype).min).softmax(-1)
            p = p * present  # a story without a sentence says nothing
            u = u + (p.unsqueeze(1) @ output).squeeze(1)
            attention.append(p)
        logits = u @ self.encoders[-1].embedding.weight.mT
        return (logits, torch.stack(attention, 1)) if return_attention else logits

    def _check(self, story: Tensor, question: Tensor) -> None:
        _inputs.tokens("MemoryNetwork", "story", story, self.vocabulary, ("B", "N", "J"))
        _inputs.tokens("MemoryNetwork", "question", question, self.vocabulary, ("B", "Q"))
        if story.size(0) != question.size(0):
            raise ValueError(
                f"MemoryNetwork: story and question should have as many rows, got {story.size(0)} and "
                f"{question.size(0)}"
            )
        if self.memory_size is not None and story.size(1) > self.memory_size:
            raise ValueError(
                f"MemoryNetwork: a story should have at most memory_size = {self.memory_size} sentences, "
                f"got {story.size(1)}; leave out the oldest, or choose a larger memory_size"
            )


class SentenceEncoder(nn.Module):
    """Words to a vector a sentence, with what one of A^1, C^1 ... C^K has learned."""

    def __init__(
        self, vocabulary: int, features: int, sentence: str, ages: int, device=None, dtype=None
    ) -> None:
        super().__init__()
        options = {"device": device, "dtype": dtype}
        self.sentence = sentence
        self.embedding = nn.Embedding(vocabulary, features, padding_idx=0, **options)
        self.gru = GRU(features, features, **options) if sentence == "gru" else None
        self.ages = nn.Parameter(torch.empty(ages, features, **options)) if ages else None
        # The paper draws with 0.1; 0.3 leaves the first plateau sooner (examples/stories.py).
        for weight in self.embedding.weight.data[1:], self.ages:
            if weight is not None:
                nn.init.normal_(weight, std=0.3)

    def forward(self, story: Tensor, age: Tensor) -> Tensor:
        """Sentences (B, N, J) and their ages (B, N) to (B, N, d)."""
        encoded = self.words(story.flatten(0, 1)).unflatten(0, story.shape[:2])
        return encoded if self.ages is None else encoded + self.ages[age]

    def words(self, words: Tensor) -> Tensor:
        """Sentences (S, J) to (S, d)."""
        embedded = self.embedding(words)
        if self.sentence == "bag":
            return embedded.sum(1)
        count = (words != 0).sum(1)
        if self.gru is not None:
            return self.gru(embedded.transpose(0, 1), lengths=count)[1].squeeze(0)
        # l is the sum of a part that is the same for all k and one that grows with k: two weighted sums.
        features = embedded.size(-1)
        share = self._count(words.size(1)) / count.clamp(min=1).unsqueeze(1)
        constant, growing = (torch.stack([1 - share, 1 - 2 * share], 1) @ embedded).unbind(1)
        return constant - growing * (self._count(features) / features)

    def _count(self, end: int) -> Tensor:
        """1, 2 ... end."""
        weight = self.embedding.weight
        return torch.arange(1, end + 1, dtype=weight.dtype, device=weight.device)
