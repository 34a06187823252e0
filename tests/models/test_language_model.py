"""LanguageModel: scores, truncated backpropagation, generation step by step, sampling, errors, export."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn.models import LanguageModel, language_model
from fastrnn.models.language_model import chunks, detach
from fastrnn.models.sampling import probabilities

V, E, H = 11, 6, 8
LAYERS = {
    "LSTM": lambda: fastrnn.LSTM(E, H, 2),
    "LSTM projected": lambda: fastrnn.LSTM(E, H, proj_size=3),
    "GRU": lambda: fastrnn.GRU(E, E),
    "RNN": lambda: fastrnn.RNN(E, H),
    "SRU": lambda: fastrnn.SRU(E, H, 2),
    "SRU++": lambda: fastrnn.SRUpp(E, H, 3, 2),
}


def model(layer: str = "LSTM", **options) -> LanguageModel:
    torch.manual_seed(3)
    return LanguageModel(LAYERS[layer](), V, **options).double().eval()


def words(steps: int = 9, rows: int = 3) -> torch.Tensor:
    return torch.randint(V, (steps, rows))


def test_scores_by_hand():
    """Protects the equation: tied weights, the projection, the bias."""
    ours, tokens = model(), words()
    table = ours.embedding.weight
    y, _ = ours.rnn(table[tokens] * E**0.5)
    expected = y @ ours.projection.weight.t() @ table.t() + ours.head.bias
    torch.testing.assert_close(ours(tokens)[0], expected)
    assert len([n for n, _ in ours.named_parameters() if n.startswith(("embedding", "head"))]) == 2
    untied = model(tied=False)
    assert untied.head.weight.shape == (V, H)
    torch.testing.assert_close(untied(tokens)[0], untied.head(untied.rnn(untied.embedding(tokens))[0]))


@pytest.mark.parametrize("layer", LAYERS)
def test_state_carries_on(layer):
    """Protects truncated backpropagation and streaming: chunk after chunk scores what one call does."""
    ours, tokens = model(layer), words()
    whole, _ = ours(tokens)
    state, parts = None, []
    for part in tokens.split((4, 1, 4)):
        scores, state = ours(part, state)
        parts.append(scores)
        state = detach(state)
    torch.testing.assert_close(torch.cat(parts), whole)


def test_memory_of_srupp_is_bounded():
    """Protects the memory: an SRU++ remembers ``memory`` steps and no more."""
    ours = model("SRU++", memory=3)
    _, (_, past) = ours(words(), ours(words())[1])
    assert [t.size(0) for t in past] == [3, 3]


def test_gradients_stop_at_the_chunk():
    """Protects loss(): within a chunk the gradient is whole, into the one before there is none."""
    ours, tokens = model(), words(7)
    first, second = chunks(tokens, 3)
    assert first.tolist() == tokens[:4].tolist()
    assert second.tolist() == tokens[3:].tolist()
    _, state = ours.loss(first)
    assert not any(t.requires_grad for t in state)
    loss, _ = ours.loss(second, state)
    loss.backward()
    got = ours.rnn.weight_hh_l0.grad.clone()
    ours.zero_grad()
    scores = ours(tokens[:-1])[0][3:]
    whole = nn.functional.cross_entropy(scores.flatten(0, 1), tokens[4:].flatten())
    torch.testing.assert_close(loss, whole)
    whole.backward()  # reaches further back: another gradient
    assert not torch.allclose(got, ours.rnn.weight_hh_l0.grad)
    ours.zero_grad()
    scores = ours(tokens[3:-1], tuple(t.clone() for t in state))[0]
    nn.functional.cross_entropy(scores.flatten(0, 1), tokens[4:].flatten()).backward()
    torch.testing.assert_close(got, ours.rnn.weight_hh_l0.grad)


@pytest.mark.parametrize("layer", [name for name in LAYERS if name != "SRU++"])
def test_padded_rows_are_rows_alone(layer):
    """Protects lengths: scores, states, loss and generated tokens of a row are what it has alone."""
    ours, tokens, lengths = model(layer), words(), [9, 2, 5]
    scores, state = ours(tokens, lengths=lengths)
    written = ours.generate(tokens, 4, lengths=lengths, temperature=0)
    following, losses = words(1), []
    scores_after = ours(following, state)[0]
    for b, n in enumerate(lengths):
        row = tokens[:n, b : b + 1]
        alone, state_alone = ours(row)
        torch.testing.assert_close(scores[:n, b], alone[:, 0])
        torch.testing.assert_close(scores_after[:, b], ours(following[:, b : b + 1], state_alone)[0][:, 0])
        assert ours.generate(row, 4, temperature=0)[:, 0].tolist() == written[:, b].tolist()
    with torch.no_grad():
        total, _ = ours.loss(tokens, lengths=[8, 2, 5])
        for b, n in enumerate((8, 2, 5)):
            losses.append(ours.loss(tokens[: n + 1, b : b + 1])[0] * n)
    torch.testing.assert_close(total, sum(losses) / 15)


@pytest.mark.parametrize("layer", LAYERS)
def test_greedy_generation_is_the_step_by_step_reference(layer):
    """Protects generate(): each token is the best after reading everything again from the start."""
    ours, text = model(layer, memory=64), words(4)
    prompt = text
    for _ in range(6):
        text = torch.cat((text, ours(text)[0][-1].argmax(-1)[None]))
    assert ours.generate(prompt, 6, temperature=0).tolist() == text[4:].tolist()


@pytest.mark.parametrize("layer", ["LSTM", "LSTM projected", "GRU", "RNN"])
def test_long_generation_runs_on_packed_weights(layer, monkeypatch):
    """Protects the speed of long texts and their numbers: some steps on, the layer is a streamer, whose
    scores are the layer's; one that drops, has a hook or would follow autocast stays a layer."""
    ours, prompt = model(layer).float(), words(4)
    expected = ours.generate(prompt, 12, temperature=0)
    taken = []

    def streamer(layer):
        taken.append(layer)
        return fastrnn.Streamer(layer)

    monkeypatch.setattr(language_model, "PACK_AFTER", 3)
    monkeypatch.setattr(type(ours.rnn), "streamer", streamer)
    assert ours.generate(prompt, 12, temperature=0).tolist() == expected.tolist()
    assert taken == [ours.rnn]
    with torch.no_grad():
        state = ours(prompt)[1]
        streamed, after = ours._step(prompt[0], state, fastrnn.Streamer(ours.rnn))
        plain, after_plain = ours._step(prompt[0], state, None)
    torch.testing.assert_close((streamed, after), (plain, after_plain))

    stream = ours.stream(prompt, 12)
    for _ in range(5):
        next(stream)
    with torch.no_grad():
        ours.rnn.weight_hh_l0 += 1
    with pytest.raises(RuntimeError, match="weight_hh_l0 has changed"):
        next(stream)

    with torch.autocast("cpu"):
        assert ours._streamer() is None
    with ours.rnn.register_forward_hook(lambda *_: None):
        assert ours._streamer() is None
    ours.rnn.num_layers, ours.rnn.dropout = 2, 0.5
    assert ours.train()._streamer() is None


def test_sampled_generation_is_the_step_by_step_reference():
    """Protects the random path: the same generator, tokens drawn from the re-read text's probabilities."""
    ours, text = model(), words(4)
    options = {"temperature": 0.8, "top_k": 6, "top_p": 0.9}
    got = ours.generate(text, 6, generator=torch.Generator().manual_seed(5), **options)
    generator = torch.Generator().manual_seed(5)
    for _ in range(6):
        chances = probabilities(ours(text)[0][-1], **options)
        text = torch.cat((text, torch.multinomial(chances, 1, generator=generator).t()))
    assert got.tolist() == text[4:].tolist()


def test_streaming_yields_as_it_goes_and_can_go_on():
    """Protects stream(): a token a time, none computed ahead; a state from before replaces its prompt."""
    ours, prompt = model(), words(4)
    stream = ours.stream(prompt, 1000, temperature=0)
    with torch.no_grad():
        _, state = ours(prompt[:3])
    first = [next(stream) for _ in range(3)]
    again = ours.generate(prompt[3:], 3, state=state, temperature=0)
    assert torch.stack(first).tolist() == again.tolist()
    assert not first[0].requires_grad


def test_eos_ends_rows_and_the_stream():
    """Protects EOS: a row that has ended says eos, the others go on, and all together end the stream."""
    ours, prompt = model(), words(4, 40)
    plain = ours.generate(prompt, 30, generator=torch.Generator().manual_seed(1))
    got = ours.generate(prompt, 30, eos=2, generator=torch.Generator().manual_seed(1))
    ends = [(column == 2).nonzero()[0].item() if (column == 2).any() else None for column in got.t()]
    assert any(n is not None and n < 5 for n in ends)
    for b, n in enumerate(ends):
        upto = len(got) if n is None else n + 1
        if n is not None:
            assert (got[n:, b] == 2).all()
        assert upto == len(got) or (got[:upto, b] != 2)[:-1].all()
    assert got[0].tolist() == plain[0].tolist()
    with torch.no_grad():
        ours.head.bias[2] += 50
    assert ours.generate(prompt, 30, eos=2).shape == (1, 40)


def test_probabilities_by_hand():
    """Protects temperature, top-k and top-p: small cases worked out."""
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    close = torch.testing.assert_close
    close(probabilities(scores), scores.exp())
    close(probabilities(scores, temperature=0.5), torch.tensor([[1.0, 16, 4, 9]]) / 30)
    close(probabilities(scores, temperature=0), torch.tensor([[0.0, 1, 0, 0]]))
    close(probabilities(scores, top_k=2), torch.tensor([[0.0, 4, 0, 3]]) / 7)
    close(probabilities(scores, top_p=0.69), torch.tensor([[0.0, 4, 0, 3]]) / 7)
    close(probabilities(scores, top_p=0.71), torch.tensor([[0.0, 4, 2, 3]]) / 9)
    close(probabilities(scores, top_p=0.01), torch.tensor([[0.0, 1, 0, 0]]))
    close(probabilities(scores, top_k=3, top_p=0.5), torch.tensor([[0.0, 4, 0, 3]]) / 7)
    close(probabilities(torch.zeros(1, 4), top_k=1).sum(), torch.tensor(1.0))
    close(probabilities(torch.tensor([[1e4, 0.0]]), temperature=1e-30), torch.tensor([[1.0, 0.0]]))
    assert probabilities(scores, top_k=100).shape == (1, 4)


def test_sampling_statistics():
    """Protects the draw itself: frequencies of 40,000 tokens within five standard deviations."""
    ours, rows = model(), 40_000
    prompt = torch.full((2, rows), 5)
    options = {"temperature": 1.3, "top_k": 7, "top_p": 0.95}
    drawn = ours.generate(prompt, 1, generator=torch.Generator().manual_seed(0), **options)[0]
    p = probabilities(ours(prompt[:, :1])[0][-1], **options)[0].double()
    counts = torch.bincount(drawn, minlength=V)
    assert 1 < int((p > 0).sum()) <= 7
    assert (counts[p == 0] == 0).all()
    assert ((counts - rows * p).abs() <= 5 * (rows * p * (1 - p)).sqrt() + 1e-9).all()


def test_state_dict_compile_and_export():
    """Protects saving with tied weights, torch.compile with changing sizes, torch.export of the scores."""
    ours, tokens = model(), words()
    again = LanguageModel(LAYERS["LSTM"](), V).double().eval()
    again.load_state_dict(ours.state_dict())
    assert again.head.weight is again.embedding.weight
    torch.testing.assert_close(again(tokens)[0], ours(tokens)[0], rtol=0, atol=0)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="eager")
    for steps, rows in ((9, 3), (5, 4)):
        chunk = words(steps, rows)
        torch.testing.assert_close(compiled(chunk)[0], ours(chunk)[0])
    program = torch.export.export(ours, (tokens,))
    torch.testing.assert_close(program.module()(tokens)[0], ours(tokens)[0])


def test_initial_loss_is_that_of_guessing():
    """Protects the initial values: scores of size one at most, a loss near log V, for wide embeddings too."""
    torch.manual_seed(0)
    ours = LanguageModel(fastrnn.LSTM(64, 64), 50)
    assert ours.loss(torch.randint(50, (30, 8)))[0].item() == pytest.approx(math.log(50), abs=0.3)


def test_wrong_input_is_named():
    """Protects the messages: tokens out of range, empty batches, wrong lengths, options of generate()."""
    ours, good = model(), words()
    for call, error, text in (
        (lambda: ours(torch.tensor([[V]])), ValueError, "tokens should be from 0 to 10, got 11"),
        (lambda: ours(torch.tensor([[-1]])), ValueError, "got -1"),
        (lambda: ours(torch.zeros(0, 2).long()), ValueError, r"tokens should be of size \(T, B\)"),
        (lambda: ours(torch.zeros(2, 0).long()), ValueError, "none of them 0"),
        (lambda: ours(torch.zeros(2, 2)), TypeError, "int64 or int32"),
        (lambda: ours(good, lengths=[9, 0, 1]), ValueError, "lengths should be from 1 to 9"),
        (lambda: ours.loss(good[:1]), ValueError, "two steps"),
        (lambda: ours.generate(good, 0), ValueError, "count"),
        (lambda: ours.generate(good, 2, eos=V), ValueError, "eos should be an integer from 0 to 10, got 11"),
        (lambda: ours.generate(good, 2, temperature=-1), ValueError, "temperature"),
        (lambda: ours.generate(good, 2, temperature=math.nan), ValueError, "temperature"),
        (lambda: ours.generate(good, 2, top_k=0), ValueError, "top_k"),
        (lambda: ours.generate(good, 2, top_p=0.0), ValueError, "top_p"),
        (lambda: ours.generate(good, 2, top_p=1.5), ValueError, "top_p"),
        (lambda: model("SRU++")(good, lengths=[9, 1, 1]), ValueError, "None with SRUpp"),
        (lambda: LanguageModel(fastrnn.GRU(2, 3, bidirectional=True), V), ValueError, "bidirectional"),
        (lambda: LanguageModel(fastrnn.GRU(2, 3, batch_first=True), V), ValueError, "batch_first"),
        (lambda: LanguageModel(fastrnn.GRU(2, 3), 0), ValueError, "vocabulary"),
        (lambda: list(chunks(good, 0)), ValueError, "steps"),
    ):
        with pytest.raises(error, match=text):
            call()
