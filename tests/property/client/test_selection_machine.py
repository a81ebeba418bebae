"""Selection while the market changes: offers come, change and expire, workers fail and rest."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from piecework.client.jobs.requests import Filters, TextRequest, job_parameters
from piecework.client.jobs.selection import Choice, rank
from piecework.client.journal.learning import learn, learn_broken, learn_silence, reliability
from piecework.client.journal.records import Experience, Memories
from piecework.client.limits import BROKEN_WORKER_REST_S, EXPERIENCE_HALF_LIFE_S
from piecework_protocol.conversation import most_prompt_tokens
from piecework_protocol.objects import ModelOffer, Service
from piecework_protocol.pricing import worst_case
from piecework_protocol.types import Address, Amount, Digest, Seconds, Timestamp, Uint32, keccak256
from piecework_protocol.usual import assumed, price_with_steps
from piecework_protocol.wire import SignedOffer
from tests.support.chain.fake_chain import TOKEN, TOKEN_INFO
from tests.support.client.client_side import ask
from tests.support.market.offers import model, offer, operator

WORKERS = ("ada", "bo", "cy", "dee")
OTHER_TOKEN = Address(bytes([7]) * 20)
START = 1_800_000_000
WORKER = st.sampled_from(WORKERS)

REQUESTS = st.builds(
    lambda tokens, steps, price, best_effort, name: ask(
        max_tokens=tokens,
        max_steps=steps,
        max_price=Amount(price) if price else None,
        best_effort=best_effort,
        model=name,
    ),
    st.one_of(st.none(), st.integers(1, 9000)),
    st.one_of(st.none(), st.integers(1, 64)),
    st.one_of(st.none(), st.integers(1, 40_000)),
    st.booleans(),
    st.sampled_from([None, "tale-1", "tale-2", "unknown"]),
)
LIMITS = st.fixed_dictionaries(
    {
        "max_job_price": st.one_of(st.none(), st.integers(1, 40_000).map(Amount)),
        "max_price_per_million_output": st.one_of(st.none(), st.integers(1, 4_000_000).map(Amount)),
        "max_withdrawal_delay": st.integers(0, 10_000).map(Seconds),
        "second_is_worth": st.integers(0, 1000),
    }
)


class Selection(RuleBasedStateMachine):
    """Offers and memories as a client holds them; time only moves forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.offers: dict[str, SignedOffer] = {}
        self.memories: dict[Address, Experience] = {}

    @rule(
        name=WORKER,
        price=st.integers(0, 4_000_000),
        served=st.sampled_from(["tale-1", "tale-2"]),
        service=st.sampled_from(Service),
        lifetime=st.integers(1, 600),
        delay=st.integers(0, 10_000),
        token=st.sampled_from([TOKEN, OTHER_TOKEN]),
        most=st.sampled_from([512, 4096]),
        free=st.integers(0, 1),
    )
    def offer_appears(self, name: str, price: int, served: str, **rest: Any) -> None:
        """A worker's first offer, or one that takes the place of its last."""
        listed = model(
            served,
            price_per_million_output_tokens=Amount(price),
            service=rest["service"],
            max_output=Uint32(rest["most"]),
            tokens_per_second=Uint32(100 + price % 900),
        )
        self.offers[name] = offer(
            name,
            now=self.now,
            expires_at=Timestamp(self.now + rest["lifetime"]),
            min_withdrawal_delay=Seconds(rest["delay"]),
            tokens=(rest["token"],),
            models=(listed,),
            slots_free=Uint32(rest["free"]),
            queue_free=Uint32(0),
        )

    @rule(name=WORKER)
    def offer_is_withdrawn(self, name: str) -> None:
        self.offers.pop(name, None)

    @rule(seconds=st.sampled_from([1, 30, 301, 3600, BROKEN_WORKER_REST_S]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(name=WORKER, success=st.booleans())
    def job_ends(self, name: str, success: bool) -> None:
        """A job teaches in its own direction only, and the memory of it fades to the prior."""
        before = self._memory(name)
        after = learn(before, Timestamp(self.now), success=success)
        now = Timestamp(self.now)
        assert (reliability(after, now) > reliability(before, now)) is success
        assert 0 < reliability(after, now) < 1
        later = Timestamp(self.now + 60 * EXPERIENCE_HALF_LIFE_S)
        assert abs(reliability(after, later) - 0.75) < 1e-6
        self.memories[operator(name).address] = after

    @rule(name=WORKER)
    def worker_breaks_a_clause(self, name: str) -> None:
        self.memories[operator(name).address] = learn_broken(
            self._memory(name), Timestamp(self.now), "4.1"
        )

    @rule(name=WORKER)
    def worker_says_nothing(self, name: str) -> None:
        self.memories[operator(name).address] = learn_silence(
            self._memory(name), Timestamp(self.now)
        )

    @rule(request=REQUESTS, limits=LIMITS)
    def request_is_ranked(self, request: TextRequest, limits: dict[str, Any]) -> None:
        """The ranking holds exactly the workers that no filter forbids, the best one first."""
        filters = Filters(now=self.now, token=TOKEN_INFO, **limits)
        ranking = rank(request, self.offers.values(), Memories(self.memories), filters)
        allowed = {
            operator(name).address
            for name, signed in self.offers.items()
            if self._allowed(request, signed, signed.offer.models[0], filters)
        }
        assert {choice.operator for choice in ranking.choices} == allowed
        assert len(ranking.choices) == len(allowed)
        assert len(ranking.choices) + len(ranking.unfit) == len(
            [s for s in self.offers.values() if request.model in (None, s.offer.models[0].name)]
        )
        for choice in ranking.choices:
            self._costs_what_it_says(request, choice, filters)
        order = [(choice.resting, choice.score) for choice in ranking.choices]
        assert order == sorted(order)
        again = rank(
            request, reversed(list(self.offers.values())), Memories(self.memories), filters
        )
        assert again.choices == ranking.choices

    def _allowed(
        self, request: TextRequest, signed: SignedOffer, listed: ModelOffer, filters: Filters
    ) -> bool:
        """The filters once more, one line each."""
        terms, wanted = signed.offer, request.generation
        tokens = wanted.max_tokens or min(1024, listed.max_output)
        steps = wanted.max_steps or min(48, listed.max_steps)
        memory = self.memories.get(terms.operator)
        resting = bool(
            memory and memory.broken_clause and self.now < memory.broken_at + BROKEN_WORKER_REST_S
        )
        replayable = listed.service is Service.REPLAYABLE
        # An answer whose length the caller left open is shortened, to one canvas at the least.
        least = min(tokens, listed.canvas_size) if request.may_be_shortened else tokens
        ceiling = self._ceiling(request, listed, least, steps)
        return (
            request.model in (None, listed.name)
            and self.now < terms.expires_at
            and TOKEN in terms.tokens
            and terms.min_withdrawal_delay <= filters.max_withdrawal_delay
            and not resting
            and (replayable or (request.best_effort and wanted.max_steps is None))
            and tokens <= listed.max_output
            and (not replayable or steps <= listed.max_steps)
            and all(
                ceiling <= limit
                for limit in (request.max_price, filters.max_job_price)
                if limit is not None
            )
            and (
                filters.max_price_per_million_output is None
                or price_with_steps(listed, assumed(listed).steps_p50)
                <= filters.max_price_per_million_output
            )
        )

    def _ceiling(self, request: TextRequest, listed: ModelOffer, tokens: int, steps: int) -> Amount:
        wanted = ask(max_tokens=tokens, max_steps=steps).generation
        parameters = job_parameters(listed, wanted, 0)
        most = most_prompt_tokens(request.conversation)
        return worst_case(listed, request.kind, parameters, most)

    def _costs_what_it_says(self, request: TextRequest, choice: Choice, filters: Filters) -> None:
        assert choice.expected <= choice.ceiling
        for limit in (request.max_price, filters.max_job_price):
            assert limit is None or choice.ceiling <= limit
        signed = job_parameters(choice.model, choice.generation, 1)
        assert signed.max_tokens <= choice.model.max_output
        assert choice.score >= choice.expected

    def _memory(self, name: str) -> Experience:
        address = operator(name).address
        return self.memories.get(address, Experience(address))


def test_a_digest_names_a_model_as_its_name_does() -> None:
    signed = offer("ada")
    filters = Filters(now=START, token=TOKEN_INFO)
    by_digest = ask(model="0x" + Digest(keccak256(b"tale-1")).hex().upper())
    assert len(rank(by_digest, [signed], Memories(), filters).choices) == 1


TestSelection = Selection.TestCase
TestSelection.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
