"""The training data and losses of the bundled checkpoint."""

from __future__ import annotations

import random

import torch

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.training import batches, grammar, loop, vocabulary


def test_every_story_is_made_of_the_grammars_sentences_and_has_what_was_asked() -> None:
    rng, pattern = random.Random(4), grammar.sentence_patterns()
    for _ in range(200):
        example = grammar.example(rng)
        assert pattern.sub("", example.story).strip() == ""
        assert all(noun in example.story for noun in example.nouns)


def test_the_tokenizer_has_a_piece_for_every_word_of_every_story() -> None:
    rng, tokenizer = random.Random(5), vocabulary.build_tokenizer()
    for _ in range(200):
        story = grammar.example(rng).story
        encoding = tokenizer.encode(story)
        assert tokenizer.decode(encoding.ids) == story
        assert all(len(piece) > 1 or piece in '.,?!"' for piece in encoding.tokens)


def test_the_bundled_tokenizer_is_the_one_that_training_builds(bundled: LoadedModel) -> None:
    text = "Write a story about a fox, xyz and 漢字."
    assert bundled.tokenizer.encode_content(text) == tuple(
        vocabulary.build_tokenizer().encode(text).ids
    )


def test_a_batch_packs_prompt_and_earlier_canvases_in_front_of_each_canvas() -> None:
    batch = batches.pack([([2, 3], [7] * 40), ([2], [8] * 128)], canvas=32)
    assert batch.context.shape == (2, 2 + 96)
    assert batch.context[0, :2].tolist() == [2, 3]
    assert batch.context[0, 2:42].tolist() == [7] * 40
    assert batch.context[1, 1:97].tolist() == [8] * 96
    assert batch.weights.sum(dim=1).tolist() == [64.0, 128.0]


def test_the_training_pass_equals_the_engines_pass_canvas_by_canvas(bundled: LoadedModel) -> None:
    """All canvases at once behind masks, against prompt and canvases one by one through the sliding
    cache."""
    from piecework_model.engine.denoiser import Denoiser

    rng, tokenizer = random.Random(6), vocabulary.build_tokenizer()
    pairs = batches.draw_examples(tokenizer, rng, 2, 32)
    batch = batches.pack(pairs, 32)
    noisy = batches.corrupt(
        batch.canvases, 32, bundled.limits.vocab_size, torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        _, logits = loop.run_model(bundled.model, batch, noisy, conditioned=False)
        denoiser = Denoiser(bundled.model)
        for row, (prompt, _) in enumerate(pairs):
            cache = denoiser.new_cache()
            denoiser.prefill(cache, tuple(prompt))
            for start in range(0, 128, 32):
                raw = denoiser.raw_logits(cache, noisy[row, start : start + 32], None)
                expected = torch.tanh(raw / denoiser.cap) * denoiser.cap
                torch.testing.assert_close(
                    logits[row, start : start + 32], expected, atol=2e-3, rtol=1e-3
                )
                denoiser.prefill(cache, tuple(batch.canvases[row, start : start + 32].tolist()))


def test_a_replayed_run_sees_the_same_stories() -> None:
    settings = loop.TrainingSettings(steps=2, rows=3)
    tokenizer = vocabulary.build_tokenizer()
    first = loop.training_stories(tokenizer, settings, 32)
    assert first == loop.training_stories(tokenizer, settings, 32)
    assert len(first) == 6
