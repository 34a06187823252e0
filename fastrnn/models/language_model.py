"""A recurrent language model: embedding, any of fastrnn's layers, tied softmax; training and generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .. import _checks
from .._run.scan import hooked
from .._run.streaming import Streamer
from ..modules import GRU, LSTM, RNN, SRU, SRUpp
from . import _inputs
from .sampling import probabilities

#: Steps of generation before a layer's weights are packed. Packing costs what 5 to 80 steps gain by it (one
#: core of a Zen 4, LSTM and GRU of 160 to 1024 units, one row and four): short texts do not pay for it.
PACK_AFTER = 32
#: What a layer carries from one chunk to the next: a tensor, or tensors in tuples and lists.
State = Tensor | tuple | list | None


class LanguageModel(nn.Module):
    r"""Scores of the next token of each sequence.

    .. math::
        y_t, s_t = \mathrm{RNN}(\sqrt{I}\, E[w_t], s_{t-1}), \qquad
        \log p(w_{t+1} | w_1 ... w_t) = \mathrm{logsoftmax}(E P y_t + b)

    The output uses the embedding E (V, I) again: O. Press and L. Wolf, "Using the Output Embedding to Improve
    Language Models", EACL 2017 (arXiv:1608.05859). P (I, H) is there where the layer's output has another
    size than the embedding, the root where E is used twice. Truncated backpropagation through time is
    ``loss`` on chunk after chunk with the state carried on: T. Mikolov et al., "Extensions of Recurrent
    Neural Network Language Model", ICASSP 2011.

    Args:
        rnn: a layer of fastrnn or fastrnn.models, (T, B, I) and one direction: LSTM, GRU, RNN, SRU, SRUpp,
            MogrifierLSTM. SRUpp attends to the ``memory`` last steps before a chunk.
        vocabulary: V, tokens.
        tied: whether the output uses the embedding; else it has a matrix (V, H) of its own.
        dropout: probability, on the embeddings and on the layer's output, in training mode.
        memory: M, steps that an SRUpp remembers from chunk to chunk, 0 for none.

    Raises:
        ValueError: a size below 1, a layer with ``batch_first`` or two directions.
        TypeError: anything else than such a layer.
    """

    def __init__(
        self, rnn: nn.Module, vocabulary: int, *, tied: bool = True, dropout: float = 0.0, memory: int = 128
    ) -> None:
        super().__init__()
        name = "LanguageModel"
        if (
            not hasattr(rnn, "input_size")
            or not hasattr(rnn, "hidden_size")
            or not hasattr(rnn, "num_layers")
        ):
            raise TypeError(
                f"{name}: rnn should be a layer of fastrnn or fastrnn.models, got {_checks.kind(rnn)}"
            )
        for option in ("batch_first", "bidirectional"):
            if getattr(rnn, option, False):
                raise ValueError(f"{name}: rnn should have {option}=False")
        self.vocabulary = _inputs.size(name, "vocabulary", vocabulary)
        self.memory = _inputs.size(name, "memory", memory, least=0)
        features = rnn.input_size
        outputs = getattr(rnn, "output_size", 0) or getattr(rnn, "proj_size", 0) or rnn.hidden_size
        self.embedding = nn.Embedding(vocabulary, features)
        self.drop = nn.Dropout(_inputs.number(name, "dropout", dropout, 0, 1))
        self.rnn = rnn
        projected = tied and outputs != features
        self.projection = nn.Linear(outputs, features, bias=False) if projected else nn.Identity()
        self.head = nn.Linear(features if tied else outputs, vocabulary)
        if tied:
            # A softmax over scores of size one, whatever the layer's size; the layer sees inputs of size one.
            nn.init.normal_(self.embedding.weight, std=features**-0.5)
            self.head.weight = self.embedding.weight
        nn.init.zeros_(self.head.bias)
        self.scale = features**0.5 if tied else 1.0

    def forward(
        self, tokens: Tensor, state: State = None, *, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, State]:
        """Scores of every next token.

        Args:
            tokens: (T, B), int64 or int32. state: what an earlier call returned; None to begin.
            lengths: (B,), 1 to T, how many steps of each row there are. Scores beyond are to be ignored; the
                state is that of a row's last step. Not with SRUpp.

        Returns:
            scores (T, B, V), unnormalised log probabilities, and the state, the layer's own.

        Raises:
            ValueError: an empty batch, tokens out of range, lengths that do not fit. TypeError: other types.
        """
        _inputs.tokens("LanguageModel", "tokens", tokens, self.vocabulary, ("T", "B"))
        if lengths is not None:
            lengths = _inputs.row_lengths("LanguageModel", lengths, tokens.size(1), tokens.size(0))
        y, state = self._layer(self._read(tokens), state, lengths)
        return self._scores(y), state

    def _read(self, tokens: Tensor) -> Tensor:
        """The layer's input."""
        return self.drop(self.embedding(tokens) * self.scale)

    def _scores(self, y: Tensor) -> Tensor:
        """What the layer's output says of the next token."""
        return self.head(self.projection(self.drop(y)))

    def _layer(self, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """The layer's output and state, whatever it calls its arguments."""
        if isinstance(self.rnn, SRUpp):
            if lengths is not None:
                raise ValueError("LanguageModel: lengths should be None with SRUpp, pad no rows")
            c, past = (None, None) if state is None else state
            y, c, saved = self.rnn(x, c, memory=past, is_causal=True)
            recent = saved["saved_inputs"]
            if past is not None:
                recent = [torch.cat(pair) for pair in zip(past, recent, strict=True)]
            return y, (c, [t[t.size(0) - min(t.size(0), self.memory) :] for t in recent])
        if lengths is None:
            return self.rnn(x, state)
        if isinstance(self.rnn, SRU):
            return self.rnn(x, state, mask_pad=~_inputs.steps_within(lengths, x.size(0), x.device))
        return self.rnn(x, state, lengths=lengths)

    def loss(
        self, tokens: Tensor, state: State = None, *, lengths: Tensor | Sequence[int] | None = None
    ) -> tuple[Tensor, State]:
        """The mean cross-entropy, in nats, of every token but the first given those before it in its row.

        Args:
            tokens: (T + 1, B): the last step is target alone. state, lengths: as in ``forward``, lengths of
                the T steps that are read.

        Returns:
            The loss and the state, detached: gradients do not reach back into the chunk before.
        """
        _inputs.tokens("LanguageModel", "tokens", tokens, self.vocabulary, ("T + 1", "B"))
        if tokens.size(0) < 2:
            raise ValueError(
                "LanguageModel: tokens should have two steps or more, one to read and one to guess"
            )
        scores, state = self(tokens[:-1], state, lengths=lengths)
        target = tokens[1:].long()
        if lengths is not None:
            read = _inputs.steps_within(torch.as_tensor(lengths), len(target), target.device)
            target = target.masked_fill(~read, -100)
        return nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten()), detach(state)

    def _streamer(self) -> Streamer | None:
        """The layer on weights packed once, where that is the same as calling it, and faster."""
        layer = self.rnn
        if type(layer) not in (LSTM, GRU, RNN) or hooked(layer) or torch.is_autocast_enabled("cpu"):
            return None
        drops = layer.training and layer.dropout and layer.num_layers > 1
        return None if drops or not self.head.weight.is_cpu else layer.streamer()

    def _step(self, tokens: Tensor, state: State, streamer: Streamer | None) -> tuple[Tensor, State]:
        """Scores (B, V) after one more token (B,)."""
        if streamer is None:
            scores, state = self(tokens[None], state)
            return scores[0], state
        y, state = streamer.step(self._read(tokens), state)
        return self._scores(y), state

    @torch.no_grad()
    def stream(
        self,
        prompt: Tensor,
        count: int,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        state: State = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield up to ``count`` tokens (B,) after the prompt, each as soon as it is drawn.

        Args:
            prompt: (T, B). lengths: (B,), of each row's prompt. state: what came before the prompt.
            temperature, top_k, top_p: see :func:`fastrnn.models.sampling.probabilities`; temperature 0 takes
                the best token.
            eos: the token that ends a row; after it the row goes on with ``eos``, and when every row has
                ended, the stream does.
            generator: of the random numbers, on the model's device.

        Dropout follows the module's mode, as everywhere: call ``eval()`` first. On the CPU an LSTM, GRU or
        RNN that writes for long runs as a :class:`fastrnn.Streamer`, on weights packed once.

        Raises:
            ValueError, TypeError: on the first step, for what does not fit. RuntimeError: where such a
                layer's weights are changed while it streams.
        """
        name = "LanguageModel"
        _inputs.size(name, "count", count)
        if eos is not None:
            _inputs.token(name, "eos", eos, self.vocabulary)
        scores, state = self(prompt, state, lengths=lengths)
        if lengths is None:
            scores = scores[-1]
        else:
            last = torch.as_tensor(lengths, device=scores.device) - 1
            scores = scores[last, torch.arange(prompt.size(1), device=scores.device)]
        streamer = None
        ended = torch.zeros(prompt.size(1), dtype=torch.bool, device=scores.device)
        for number in range(count):
            chances = probabilities(scores, temperature=temperature, top_k=top_k, top_p=top_p)
            tokens = torch.multinomial(chances, 1, generator=generator)[:, 0]
            if eos is not None:
                tokens = tokens.masked_fill(ended, eos)
                ended = tokens == eos
            yield tokens
            if number + 1 == count or (eos is not None and bool(ended.all())):
                return
            if number == PACK_AFTER:
                streamer = self._streamer()
            scores, state = self._step(tokens, state, streamer)

    def generate(self, prompt: Tensor, count: int, **options) -> Tensor:
        """What :meth:`stream` yields with the same arguments, as one tensor (N, B), N <= ``count``."""
        return torch.stack(list(self.stream(prompt, count, **options)))


def detach(state: State) -> State:
    """The same state without its history."""
    if isinstance(state, Tensor):
        return state.detach()
    return None if state is None else type(state)(detach(part) for part in state)


def chunks(tokens: Tensor, steps: int) -> Iterator[Tensor]:
    """Cut long rows (N, B) into chunks (steps + 1, B) for :meth:`LanguageModel.loss`; each begins with the
    last token of the one before, which was a target there. What is left over at the end is dropped."""
    _inputs.size("chunks", "steps", steps)
    for begin in range(0, tokens.size(0) - steps, steps):
        yield tokens[begin : begin + steps + 1]
