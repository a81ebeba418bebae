"""What the benchmark of the paid path counts."""

from __future__ import annotations

from bench.paid import SCHEMAS, STORY_CARD, Document, PaidReads, asked, repairs_of, stories
from piecework.client.gateway.formats.schema import parse_schema
from piecework.client.gateway.formats.structured import Filling


def test_the_share_of_repaired_answers_counts_answers_and_not_jobs() -> None:
    done = [
        Document("list", valid=True, repairs=3, jobs=4, cost=10),
        Document("list", valid=True, jobs=1, cost=5),
        Document("number", valid=False),
        Document("number", valid=True, repairs=1, jobs=2, cost=5),
    ]
    found = repairs_of(done)
    assert (found["answers"], found["valid"], found["repaired"]) == (4, 3, 2)
    assert found["share_repaired"] == 0.5
    assert found["by_schema"]["list"]["share_repaired"] == 0.5
    assert found["by_schema"]["number"]["valid"] == 1


def test_rates_have_a_least_a_median_and_a_largest_and_refusals_are_told() -> None:
    rounds = PaidReads([3.0, 1.0, 2.0], [0.1, 0.3, 0.2], refused=2)
    found = rounds.report()
    assert (found["reads_per_second_min"], found["reads_per_second"]) == (1.0, 2.0)
    assert (found["reads_per_second_max"], found["refused"]) == (3.0, 2)
    assert found["p50_ms"] == 200.0


def test_the_prompts_are_the_same_every_time_and_every_schema_can_be_held() -> None:
    assert stories(40) == stories(40) and len(set(stories(5))) == 5
    for properties in SCHEMAS.values():
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        assert Filling.of(parse_schema(schema, "a schema"), 512) is not None


def test_a_story_card_is_asked_for_as_the_bundled_model_learns_it() -> None:
    cards = [asked(STORY_CARD, number) for number in range(20)]
    assert cards == [asked(STORY_CARD, number) for number in range(20)]
    assert len(set(cards)) > 15
    assert asked("list", 3) == stories(4)[3]
