"""The training data, the noise and the losses of the bundled checkpoint."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model import kinds
from piecework_model.engine.denoiser import Denoiser
from piecework_model.engine.scheduler import PrefillChunk
from piecework_model.training import (
    architecture,
    batches,
    grammar,
    loop,
    skills,
    vocabulary,
    writer,
)
from piecework_model.training.network import Network
from piecework_model.training.skills import CANVAS, TrainingSample

SETTINGS = loop.TrainingSettings(steps=4, reads_first=False, warmup_steps=1)


def small_model(seed: int = 3, spread: float = 0.1) -> DiffusionGemmaForBlockDiffusion:
    """The bundled architecture with random weights, narrow and with two layers."""
    config = architecture.build_config(vocabulary.build_tokenizer().get_vocab_size())
    text = config.text_config
    fields = {**text.to_dict(), "hidden_size": 32, "intermediate_size": 32}
    fields |= {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    fields |= {"initializer_range": spread, "per_layer_config": {"1": {"head_dim": 64}}}
    narrow = type(config)(**{**config.to_dict(), "text_config": fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DiffusionGemmaForBlockDiffusion(narrow)
    model.set_experts_implementation("eager")
    return model


@pytest.fixture(scope="module")
def model() -> DiffusionGemmaForBlockDiffusion:
    """A small random model, which no test changes."""
    return small_model().eval().requires_grad_(False)


def every_sample(rng: random.Random) -> Iterator[TrainingSample]:
    """Yields one sample of each skill."""
    asks = (
        skills.ask_story,
        skills.ask_thought,
        skills.ask_filling,
        skills.ask_middle,
        skills.ask_card,
        skills.ask_tool,
        skills.ask_story_beside_tools,
    )
    for ask in asks:
        yield skills.sample(ask(rng))
    yield skills.read_sample(rng)


def test_every_story_is_made_of_the_grammars_sentences_and_has_what_was_asked() -> None:
    rng, pattern = random.Random(4), grammar.sentence_patterns()
    for _ in range(200):
        example = grammar.example(rng)
        assert pattern.sub("", example.tale.text).strip() == ""
        assert all(noun in example.tale.text for noun in example.nouns)


def test_every_story_keeps_its_hero() -> None:
    rng = random.Random(9)
    assert all(grammar.keeps_its_hero(grammar.example(rng).tale.text) for _ in range(200))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("Milo sat down and began to cry.", "Leo sat down and began to cry."),
        ("He did not know what to do.", "She did not know what to do."),
        (
            "The fox looked everywhere but found nothing.",
            "The owl looked everywhere but found nothing.",
        ),
    ],
)
def test_another_name_pronoun_or_kind_is_another_hero(right: str, wrong: str) -> None:
    opening = "Long ago, a brave fox named Milo lived in the forest."
    assert grammar.keeps_its_hero(f"{opening} {right}")
    assert not grammar.keeps_its_hero(f"{opening} {wrong}")


def test_the_tokenizer_has_a_piece_for_every_word_of_every_story() -> None:
    rng, tokenizer = random.Random(5), vocabulary.build_tokenizer()
    for _ in range(200):
        story = grammar.example(rng).tale.text
        encoding = tokenizer.encode(story)
        assert tokenizer.decode(encoding.ids) == story
        assert all(len(piece) > 1 or piece in '.,?!"▁AI' for piece in encoding.tokens)


@pytest.mark.parametrize(
    "text", [" a fox", "a  fox ", "\n\nÄ漢\x00", '{"a": ["b"]}', "<|turn>user"]
)
def test_any_text_comes_back_from_its_ids_wherever_it_stands(text: str) -> None:
    codec = vocabulary.build_codec()
    assert codec.decode(codec.encode_content(text)) == text


def test_every_label_of_every_question_is_one_token_and_stands_in_the_slot() -> None:
    rng, codec = random.Random(10), vocabulary.build_codec()
    for _ in range(50):
        content, _ = skills.draw_questions(rng, 4)
        encoded = kinds.encode(codec, content, CANVAS, skills.MOST_PROMPT)
        slots = [slot for canvas in encoded.reads for slot in canvas]
        assert [[codec.decode((token,)) for token in slot.label_ids] for slot in slots] == [
            [f" {label.name}" for label in question.labels] for question in content.questions
        ]


def test_what_is_pinned_is_what_the_product_pins_and_what_is_free_is_learnt() -> None:
    rng = random.Random(11)
    for _ in range(20):
        for sample in every_sample(rng):
            assert len(sample.target) % CANVAS == 0
            assert all(
                (weight == 0) == pinned
                for weight, pinned in zip(sample.weights, sample.pinned, strict=True)
            )


def test_a_form_without_the_ends_of_its_holes_is_its_answer() -> None:
    rng, codec = random.Random(12), vocabulary.build_codec()
    for _ in range(60):
        for asked in (skills.ask_card(rng), skills.ask_middle(rng), skills.ask_filling(rng)):
            ids = [token for token in skills.sample(asked).target if token != vocabulary.TURN_END]
            assert codec.decode(tuple(ids)) == asked.answer


def test_the_answer_to_a_question_is_the_right_label_itself() -> None:
    rng, codec = random.Random(13), vocabulary.build_codec()
    content, answered = skills.draw_questions(rng, 4)
    story = content.conversation.messages[0].text
    for each in answered:
        assert 0 <= each.right < len(each.question.labels)
        if not each.predicate and "called" in each.question.instructions:
            assert each.question.labels[each.right].name in story
    sample = skills.read_sample(random.Random(13))
    written = codec.decode(
        tuple(t for t, pin in zip(sample.target, sample.pinned, strict=True) if not pin)
    )
    shown = codec.decode(sample.prompt)
    assert written
    assert all(f"\n- {word}" in shown for word in written.split())


def test_a_tool_call_ends_where_the_model_waits_for_the_response() -> None:
    rng = random.Random(14)
    called = next(a for a in iter(lambda: skills.ask_tool(rng), None) if a.call and not a.parts)
    ids = skills.sample(called).target
    closing = skills.text_ids("<tool_call|>")[0]
    assert ids[ids.index(closing) + 1] == vocabulary.TOOL_RESPONSE
    assert called.call is not None
    assert set(json.loads(called.call.arguments).values()) <= set(grammar.words_of(called.answer))


def plain_sample(prompt: tuple[int, ...], canvases: int, reads: bool = False) -> TrainingSample:
    size = canvases * CANVAS
    ids = tuple(range(100, 100 + size))
    return TrainingSample(prompt, ids, (False,) * size, (1.0,) * size, reads)


def test_a_batch_packs_prompt_and_earlier_canvases_in_front_of_each_canvas() -> None:
    batch = batches.pack([plain_sample((2, 3), 2), plain_sample((2,), 4)])
    assert batch.context.shape == (2, 1 + 3 * CANVAS)
    assert batch.context[0, :2].tolist() == [2, 3]
    assert batch.context[0, 2 : 2 + 2 * CANVAS].tolist() == list(range(100, 164))
    assert batch.context[1, 1:].tolist() == list(range(100, 196))
    assert batch.starts.tolist() == [[2, 34, 66, 97], [1, 33, 65, 97]]
    assert batch.weights.sum(dim=1).tolist() == [64.0, 128.0]


def test_the_canvases_of_a_read_all_stand_right_behind_the_prompt() -> None:
    batch = batches.pack([plain_sample((2, 3, 4), 2, reads=True)])
    assert batch.starts.tolist() == [[3, 3]]


@pytest.mark.parametrize("mixture", (skills.TELLING, skills.SERVING, skills.READING))
def test_the_training_pass_equals_the_engines_pass_canvas_by_canvas(
    model: DiffusionGemmaForBlockDiffusion, mixture: skills.Mixture
) -> None:
    """All canvases at once behind masks, against prompt and canvases one by one through the sliding
    cache."""
    samples = mixture.draw(random.Random(6))[:3]
    batch = batches.pack(samples)
    size = model.config.text_config.vocab_size
    noisy = batches.corrupt(batch, size, torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = loop.Pass(Network(model, torch.float32), batch).denoise(noisy, None)
        denoiser = Denoiser(model)
        for row, sample in enumerate(samples):
            cache = denoiser.new_cache()
            denoiser.prefill(cache, PrefillChunk(sample.prompt))
            for start in range(0, len(sample.target), CANVAS):
                raw = denoiser.raw_logits(cache, noisy[row, start : start + CANVAS], None)
                expected = torch.tanh(raw / denoiser.cap) * denoiser.cap
                torch.testing.assert_close(
                    logits[row, start : start + CANVAS], expected, atol=2e-3, rtol=1e-3
                )
                if not sample.reads:
                    denoiser.prefill(cache, PrefillChunk(sample.target[start : start + CANVAS]))


def test_noise_and_the_samplers_own_states_leave_what_is_pinned(
    model: DiffusionGemmaForBlockDiffusion,
) -> None:
    batch = batches.pack(skills.SERVING.draw(random.Random(7)))
    size = model.config.text_config.vocab_size
    generator = torch.Generator().manual_seed(2)
    noisy = batches.corrupt(batch, size, generator)
    with torch.no_grad():
        logits = loop.Pass(Network(model), batch).denoise(noisy, None)
    state = loop.sampler_step(logits, batch, 0.1, generator)
    for canvases in (noisy, state):
        assert (canvases[batch.pinned] == batch.target[batch.pinned]).all()
        assert (canvases[~batch.pinned] != batch.target[~batch.pinned]).any()


def test_no_more_of_a_canvas_is_noise_than_was_asked_for(
    model: DiffusionGemmaForBlockDiffusion,
) -> None:
    batch = batches.pack(skills.TELLING.draw(random.Random(7)))
    size = model.config.text_config.vocab_size
    shares = []
    for most in (0.25, 1.0):
        noisy = batches.corrupt(batch, size, torch.Generator().manual_seed(2), most)
        shares.append(float((noisy != batch.target)[~batch.pinned].float().mean()))
    assert 0 < shares[0] < 0.3 * shares[1]


def test_the_samplers_states_keep_what_is_certain() -> None:
    batch = batches.pack([plain_sample((2,), 1)])
    logits = torch.zeros(1, CANVAS, 300)
    logits[0, torch.arange(8), torch.arange(200, 208)] = 100.0  # eight positions are certain
    state = loop.sampler_step(logits, batch, 0.1, torch.Generator().manual_seed(3))
    assert state[0, :8].tolist() == list(range(200, 208))


def weights_after(
    steps: int, workers: int = 1, state: Path | None = None
) -> dict[str, torch.Tensor]:
    """Train a small model, from a saved state if there is one."""
    trainer = loop.Trainer(small_model(spread=0.02), SETTINGS, workers)
    if state is not None and state.exists():
        trainer.load(state)

    def report(step: int, losses: loop.Losses) -> None:
        assert (losses.reading is not None) == (step % 2 == 0)
        assert losses.telling is not None and losses.telling > 0
        if state is not None and step + 1 == steps:
            trainer.save(state)

    trainer.run(report)
    return dict(trainer.model.state_dict())


def test_workers_and_a_stop_between_two_steps_change_no_weight(tmp_path: Path) -> None:
    whole = weights_after(SETTINGS.steps)
    saved = weights_after(2, workers=2, state=tmp_path / "run.safetensors")
    resumed = weights_after(SETTINGS.steps, state=tmp_path / "run.safetensors")
    for name, weight in whole.items():
        assert torch.equal(weight, saved[name])
        assert torch.equal(weight, resumed[name])


def test_a_run_may_begin_with_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    written = small_model(spread=0.02)
    writer.write_checkpoint(written, tmp_path)
    begun = architecture.load_model(tmp_path)
    assert begun.dtype == torch.float32
    for name, weight in begun.named_parameters():
        assert torch.equal(weight, written.get_parameter(name)), name
    writer.write_checkpoint(begun, tmp_path / "again")
    before, after = ((f / "config.json").read_text() for f in (tmp_path, tmp_path / "again"))
    assert before == after
    trainer = loop.Trainer(begun, SETTINGS)
    found: list[loop.Losses] = []
    trainer.run(lambda _, losses: found.append(losses))
    assert len(found) == SETTINGS.steps


def test_the_parts_of_a_step_are_the_step_and_the_longest_work_comes_first() -> None:
    samples = loop.step_samples(SETTINGS, 0)
    parts = loop._parts(samples)
    for batch, whole in enumerate(samples):
        own = [part for part in parts if part.batch == batch]
        assert sorted(len(part.samples) for part in own) == [len(whole) // 2, -(-len(whole) // 2)]
        assert sum(part.share for part in own) == pytest.approx(1)
        left = [sample for part in own for sample in part.samples]
        assert all(sample in left for sample in whole)
    assert [part.work for part in parts] == sorted((part.work for part in parts), reverse=True)
    assert sorted(part.number for part in parts) == list(range(len(parts)))


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    loop.Trainer(small_model(), SETTINGS).save(path)
    with pytest.raises(ValueError, match="other settings"):
        loop.Trainer(small_model(), dataclasses.replace(SETTINGS, seed=5)).load(path)


@pytest.mark.parametrize(("steps", "same"), [(8, True), (6, True), (5, False)])
def test_a_run_may_be_made_longer_or_shorter_until_the_rate_falls(
    tmp_path: Path, steps: int, same: bool
) -> None:
    path = tmp_path / "run.safetensors"
    settings = dataclasses.replace(SETTINGS, steps=7, decay_steps=3, own_states_steps=2)
    trainer = loop.Trainer(small_model(), settings)
    trainer.step = 3
    trainer.save(path)
    other = loop.Trainer(small_model(), dataclasses.replace(settings, steps=steps))
    if same:
        other.load(path)
        assert other.step == 3
    else:
        with pytest.raises(ValueError, match="other settings"):
            other.load(path)


def test_the_samples_of_a_step_depend_on_seed_and_step_alone() -> None:
    assert loop.step_samples(SETTINGS, 3) == loop.step_samples(SETTINGS, 3)
    assert loop.step_samples(SETTINGS, 3) != loop.step_samples(SETTINGS, 4)


def test_the_first_steps_read_and_do_nothing_else() -> None:
    defaults = loop.TrainingSettings()
    for until, _ in skills.FIRST_MIXTURES:
        for samples in loop.step_samples(defaults, until - 1):
            assert all(sample.reads for sample in samples)
    for turn in (0, 1):
        found = loop.step_samples(defaults, loop.FIRST_STEPS + turn)
        reads = [any(sample.reads for sample in samples) for samples in found]
        assert reads == [False, False, turn == 0]
    plain = dataclasses.replace(defaults, reads_first=False)
    assert not any(sample.reads for sample in loop.step_samples(plain, 0)[0])


def test_a_step_that_only_reads_learns() -> None:
    settings = dataclasses.replace(SETTINGS, steps=2, reads_first=True)
    trainer = loop.Trainer(small_model(spread=0.02), settings)
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    found: list[loop.Losses] = []
    trainer.run(lambda _, losses: found.append(losses))
    assert all(each.reading is not None and each.telling is None for each in found)
    changed = [n for n, w in trainer.model.named_parameters() if not torch.equal(w, before[n])]
    assert any("q_proj" in name for name in changed)


@given(seed=st.integers(0, 2**32), sentences=st.sampled_from([1, 2, 3, None]))
@settings(max_examples=100)
def test_a_lesson_asks_for_what_its_text_says_and_among_its_few_words(
    seed: int, sentences: int | None
) -> None:
    rng = random.Random(seed)
    lesson = skills.Difficulty(sentences, few=rng.choice((2, 4, None)))
    content, answered = skills.draw_questions(rng, 3, lesson)
    text = content.conversation.messages[0].text
    for each in answered:
        names = [label.name for label in each.question.labels]
        assert len(set(names)) == len(names) >= 2
        if not each.predicate and sentences is not None:
            assert names[each.right] in grammar.words_of(text)
        if not each.predicate and lesson.few == 2 and "helped" not in each.question.instructions:
            assert len(names) <= 3
