from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetOfferRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SignedOffer(_message.Message):
    __slots__ = ("offer", "signature")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    offer: Offer
    signature: bytes
    def __init__(self, offer: _Optional[_Union[Offer, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("operator", "receiver", "sequence", "issued_at", "expires_at", "endpoints", "tls_certificate", "sealing_key", "tokens", "models", "slots", "slots_free", "queue_free", "credit_first", "credit_mined", "credit_max", "open_fee", "top_up_fee", "close_fee", "min_top_up", "min_withdrawal_delay", "min_deposit", "evidence_seconds", "details")
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    TLS_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SEALING_KEY_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FREE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FREE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIRST_FIELD_NUMBER: _ClassVar[int]
    CREDIT_MINED_FIELD_NUMBER: _ClassVar[int]
    CREDIT_MAX_FIELD_NUMBER: _ClassVar[int]
    OPEN_FEE_FIELD_NUMBER: _ClassVar[int]
    TOP_UP_FEE_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FEE_FIELD_NUMBER: _ClassVar[int]
    MIN_TOP_UP_FIELD_NUMBER: _ClassVar[int]
    MIN_WITHDRAWAL_DELAY_FIELD_NUMBER: _ClassVar[int]
    MIN_DEPOSIT_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    operator: bytes
    receiver: bytes
    sequence: int
    issued_at: int
    expires_at: int
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    tls_certificate: bytes
    sealing_key: bytes
    tokens: _containers.RepeatedScalarFieldContainer[bytes]
    models: _containers.RepeatedCompositeFieldContainer[ModelOffer]
    slots: int
    slots_free: int
    queue_free: int
    credit_first: bytes
    credit_mined: bytes
    credit_max: bytes
    open_fee: bytes
    top_up_fee: bytes
    close_fee: bytes
    min_top_up: bytes
    min_withdrawal_delay: int
    min_deposit: bytes
    evidence_seconds: int
    details: str
    def __init__(self, operator: _Optional[bytes] = ..., receiver: _Optional[bytes] = ..., sequence: _Optional[int] = ..., issued_at: _Optional[int] = ..., expires_at: _Optional[int] = ..., endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., tls_certificate: _Optional[bytes] = ..., sealing_key: _Optional[bytes] = ..., tokens: _Optional[_Iterable[bytes]] = ..., models: _Optional[_Iterable[_Union[ModelOffer, _Mapping]]] = ..., slots: _Optional[int] = ..., slots_free: _Optional[int] = ..., queue_free: _Optional[int] = ..., credit_first: _Optional[bytes] = ..., credit_mined: _Optional[bytes] = ..., credit_max: _Optional[bytes] = ..., open_fee: _Optional[bytes] = ..., top_up_fee: _Optional[bytes] = ..., close_fee: _Optional[bytes] = ..., min_top_up: _Optional[bytes] = ..., min_withdrawal_delay: _Optional[int] = ..., min_deposit: _Optional[bytes] = ..., evidence_seconds: _Optional[int] = ..., details: _Optional[str] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("route", "address")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    route: int
    address: str
    def __init__(self, route: _Optional[int] = ..., address: _Optional[str] = ...) -> None: ...

class ModelOffer(_message.Message):
    __slots__ = ("name", "digest", "profile", "kinds", "service", "price_per_million_prompt_tokens", "price_per_million_output_tokens", "price_per_thousand_steps", "max_context", "max_output", "canvas_size", "max_steps", "tokens_per_second", "first_canvas_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PRICE_PER_MILLION_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_PER_MILLION_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRICE_PER_THOUSAND_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    CANVAS_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    FIRST_CANVAS_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: bytes
    profile: str
    kinds: int
    service: int
    price_per_million_prompt_tokens: bytes
    price_per_million_output_tokens: bytes
    price_per_thousand_steps: bytes
    max_context: int
    max_output: int
    canvas_size: int
    max_steps: int
    tokens_per_second: int
    first_canvas_ms: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[bytes] = ..., profile: _Optional[str] = ..., kinds: _Optional[int] = ..., service: _Optional[int] = ..., price_per_million_prompt_tokens: _Optional[bytes] = ..., price_per_million_output_tokens: _Optional[bytes] = ..., price_per_thousand_steps: _Optional[bytes] = ..., max_context: _Optional[int] = ..., max_output: _Optional[int] = ..., canvas_size: _Optional[int] = ..., max_steps: _Optional[int] = ..., tokens_per_second: _Optional[int] = ..., first_canvas_ms: _Optional[int] = ...) -> None: ...

class Channel(_message.Message):
    __slots__ = ("payer", "authorizer", "receiver", "operator", "token", "withdrawal_delay", "salt")
    PAYER_FIELD_NUMBER: _ClassVar[int]
    AUTHORIZER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWAL_DELAY_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    payer: bytes
    authorizer: bytes
    receiver: bytes
    operator: bytes
    token: bytes
    withdrawal_delay: int
    salt: bytes
    def __init__(self, payer: _Optional[bytes] = ..., authorizer: _Optional[bytes] = ..., receiver: _Optional[bytes] = ..., operator: _Optional[bytes] = ..., token: _Optional[bytes] = ..., withdrawal_delay: _Optional[int] = ..., salt: _Optional[bytes] = ...) -> None: ...

class Funding(_message.Message):
    __slots__ = ("authorization", "opening")
    AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    authorization: FundingAuthorization
    opening: OpeningAuthorization
    def __init__(self, authorization: _Optional[_Union[FundingAuthorization, _Mapping]] = ..., opening: _Optional[_Union[OpeningAuthorization, _Mapping]] = ...) -> None: ...

class FundingAuthorization(_message.Message):
    __slots__ = ("funded", "fee", "deadline", "signature")
    FUNDED_FIELD_NUMBER: _ClassVar[int]
    FEE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    funded: bytes
    fee: bytes
    deadline: int
    signature: bytes
    def __init__(self, funded: _Optional[bytes] = ..., fee: _Optional[bytes] = ..., deadline: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class OpeningAuthorization(_message.Message):
    __slots__ = ("amount", "fee", "valid_after", "valid_before", "signature")
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    FEE_FIELD_NUMBER: _ClassVar[int]
    VALID_AFTER_FIELD_NUMBER: _ClassVar[int]
    VALID_BEFORE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    amount: bytes
    fee: bytes
    valid_after: int
    valid_before: int
    signature: bytes
    def __init__(self, amount: _Optional[bytes] = ..., fee: _Optional[bytes] = ..., valid_after: _Optional[int] = ..., valid_before: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Parameters(_message.Message):
    __slots__ = ("seed", "max_tokens", "max_steps", "temperature_start", "temperature_end", "entropy_bound", "confidence_threshold", "stability_steps", "service")
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_START_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_END_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_BOUND_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    STABILITY_STEPS_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    seed: int
    max_tokens: int
    max_steps: int
    temperature_start: int
    temperature_end: int
    entropy_bound: int
    confidence_threshold: int
    stability_steps: int
    service: int
    def __init__(self, seed: _Optional[int] = ..., max_tokens: _Optional[int] = ..., max_steps: _Optional[int] = ..., temperature_start: _Optional[int] = ..., temperature_end: _Optional[int] = ..., entropy_bound: _Optional[int] = ..., confidence_threshold: _Optional[int] = ..., stability_steps: _Optional[int] = ..., service: _Optional[int] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("channel", "salt", "offer", "entry", "model", "kind", "content", "parameters", "max_amount", "deadline", "reply_key")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MAX_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    REPLY_KEY_FIELD_NUMBER: _ClassVar[int]
    channel: bytes
    salt: bytes
    offer: bytes
    entry: int
    model: bytes
    kind: int
    content: bytes
    parameters: Parameters
    max_amount: bytes
    deadline: int
    reply_key: bytes
    def __init__(self, channel: _Optional[bytes] = ..., salt: _Optional[bytes] = ..., offer: _Optional[bytes] = ..., entry: _Optional[int] = ..., model: _Optional[bytes] = ..., kind: _Optional[int] = ..., content: _Optional[bytes] = ..., parameters: _Optional[_Union[Parameters, _Mapping]] = ..., max_amount: _Optional[bytes] = ..., deadline: _Optional[int] = ..., reply_key: _Optional[bytes] = ...) -> None: ...

class Voucher(_message.Message):
    __slots__ = ("channel", "cumulative", "count", "receipts_root")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_ROOT_FIELD_NUMBER: _ClassVar[int]
    channel: bytes
    cumulative: bytes
    count: int
    receipts_root: bytes
    def __init__(self, channel: _Optional[bytes] = ..., cumulative: _Optional[bytes] = ..., count: _Optional[int] = ..., receipts_root: _Optional[bytes] = ...) -> None: ...

class CloseChannel(_message.Message):
    __slots__ = ("channel", "cumulative", "count", "receipts_root", "fee")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    CUMULATIVE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_ROOT_FIELD_NUMBER: _ClassVar[int]
    FEE_FIELD_NUMBER: _ClassVar[int]
    channel: bytes
    cumulative: bytes
    count: int
    receipts_root: bytes
    fee: bytes
    def __init__(self, channel: _Optional[bytes] = ..., cumulative: _Optional[bytes] = ..., count: _Optional[int] = ..., receipts_root: _Optional[bytes] = ..., fee: _Optional[bytes] = ...) -> None: ...

class AccountRequest(_message.Message):
    __slots__ = ("channel", "deadline")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    channel: bytes
    deadline: int
    def __init__(self, channel: _Optional[bytes] = ..., deadline: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("job", "canvas", "output_digest", "trace_root", "steps", "units", "amount", "finish", "total_prompt_tokens", "total_units", "total_steps", "total_amount", "previous")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CANVAS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRACE_ROOT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    TOTAL_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_UNITS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    canvas: int
    output_digest: bytes
    trace_root: bytes
    steps: int
    units: int
    amount: bytes
    finish: int
    total_prompt_tokens: int
    total_units: int
    total_steps: int
    total_amount: bytes
    previous: bytes
    def __init__(self, job: _Optional[bytes] = ..., canvas: _Optional[int] = ..., output_digest: _Optional[bytes] = ..., trace_root: _Optional[bytes] = ..., steps: _Optional[int] = ..., units: _Optional[int] = ..., amount: _Optional[bytes] = ..., finish: _Optional[int] = ..., total_prompt_tokens: _Optional[int] = ..., total_units: _Optional[int] = ..., total_steps: _Optional[int] = ..., total_amount: _Optional[bytes] = ..., previous: _Optional[bytes] = ...) -> None: ...

class ClientFrame(_message.Message):
    __slots__ = ("submit", "pay", "cancel")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    PAY_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    submit: SubmitJob
    pay: PayVoucher
    cancel: CancelJob
    def __init__(self, submit: _Optional[_Union[SubmitJob, _Mapping]] = ..., pay: _Optional[_Union[PayVoucher, _Mapping]] = ..., cancel: _Optional[_Union[CancelJob, _Mapping]] = ...) -> None: ...

class SubmitJob(_message.Message):
    __slots__ = ("job", "signature", "channel", "sealed_content", "received", "last_receipt", "funding", "drafts")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SEALED_CONTENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    LAST_RECEIPT_FIELD_NUMBER: _ClassVar[int]
    FUNDING_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    job: Job
    signature: bytes
    channel: Channel
    sealed_content: bytes
    received: int
    last_receipt: bytes
    funding: Funding
    drafts: bool
    def __init__(self, job: _Optional[_Union[Job, _Mapping]] = ..., signature: _Optional[bytes] = ..., channel: _Optional[_Union[Channel, _Mapping]] = ..., sealed_content: _Optional[bytes] = ..., received: _Optional[int] = ..., last_receipt: _Optional[bytes] = ..., funding: _Optional[_Union[Funding, _Mapping]] = ..., drafts: _Optional[bool] = ...) -> None: ...

class LeafRef(_message.Message):
    __slots__ = ("job", "canvas")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CANVAS_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    canvas: int
    def __init__(self, job: _Optional[bytes] = ..., canvas: _Optional[int] = ...) -> None: ...

class PayVoucher(_message.Message):
    __slots__ = ("voucher", "signature", "base_count", "leaves")
    VOUCHER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    BASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    voucher: Voucher
    signature: bytes
    base_count: int
    leaves: _containers.RepeatedCompositeFieldContainer[LeafRef]
    def __init__(self, voucher: _Optional[_Union[Voucher, _Mapping]] = ..., signature: _Optional[bytes] = ..., base_count: _Optional[int] = ..., leaves: _Optional[_Iterable[_Union[LeafRef, _Mapping]]] = ...) -> None: ...

class CancelJob(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerFrame(_message.Message):
    __slots__ = ("accepted", "draft", "canvas", "voucher_accepted", "ended", "progress", "behind")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    CANVAS_FIELD_NUMBER: _ClassVar[int]
    VOUCHER_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    draft: Draft
    canvas: CanvasDelivered
    voucher_accepted: VoucherAccepted
    ended: JobEnded
    progress: Progress
    behind: _containers.RepeatedCompositeFieldContainer[WorkerFrame]
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., draft: _Optional[_Union[Draft, _Mapping]] = ..., canvas: _Optional[_Union[CanvasDelivered, _Mapping]] = ..., voucher_accepted: _Optional[_Union[VoucherAccepted, _Mapping]] = ..., ended: _Optional[_Union[JobEnded, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., behind: _Optional[_Iterable[_Union[WorkerFrame, _Mapping]]] = ...) -> None: ...

class Account(_message.Message):
    __slots__ = ("voucher", "signature", "peaks")
    VOUCHER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PEAKS_FIELD_NUMBER: _ClassVar[int]
    voucher: Voucher
    signature: bytes
    peaks: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, voucher: _Optional[_Union[Voucher, _Mapping]] = ..., signature: _Optional[bytes] = ..., peaks: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("job", "prompt_tokens", "accepted_at", "signature", "available", "account")
    JOB_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_AT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    prompt_tokens: int
    accepted_at: int
    signature: bytes
    available: int
    account: Account
    def __init__(self, job: _Optional[bytes] = ..., prompt_tokens: _Optional[int] = ..., accepted_at: _Optional[int] = ..., signature: _Optional[bytes] = ..., available: _Optional[int] = ..., account: _Optional[_Union[Account, _Mapping]] = ...) -> None: ...

class Draft(_message.Message):
    __slots__ = ("job", "canvas", "step", "sealed_output")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CANVAS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SEALED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    canvas: int
    step: int
    sealed_output: bytes
    def __init__(self, job: _Optional[bytes] = ..., canvas: _Optional[int] = ..., step: _Optional[int] = ..., sealed_output: _Optional[bytes] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("job", "canvas", "step", "prompt_tokens", "queue_position", "paused_until")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CANVAS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    PAUSED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    canvas: int
    step: int
    prompt_tokens: int
    queue_position: int
    paused_until: int
    def __init__(self, job: _Optional[bytes] = ..., canvas: _Optional[int] = ..., step: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., queue_position: _Optional[int] = ..., paused_until: _Optional[int] = ...) -> None: ...

class CanvasDelivered(_message.Message):
    __slots__ = ("receipt", "signature", "sealed_output", "leaves")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    SEALED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    receipt: Receipt
    signature: bytes
    sealed_output: bytes
    leaves: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, receipt: _Optional[_Union[Receipt, _Mapping]] = ..., signature: _Optional[bytes] = ..., sealed_output: _Optional[bytes] = ..., leaves: _Optional[_Iterable[bytes]] = ...) -> None: ...

class VoucherAccepted(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class JobEnded(_message.Message):
    __slots__ = ("job", "canvases", "reason", "message")
    JOB_FIELD_NUMBER: _ClassVar[int]
    CANVASES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    job: bytes
    canvases: int
    reason: str
    message: str
    def __init__(self, job: _Optional[bytes] = ..., canvases: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class CloseChannelRequest(_message.Message):
    __slots__ = ("channel", "final", "signature")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    channel: Channel
    final: CloseChannel
    signature: bytes
    def __init__(self, channel: _Optional[_Union[Channel, _Mapping]] = ..., final: _Optional[_Union[CloseChannel, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class CloseChannelResponse(_message.Message):
    __slots__ = ("operator_signature", "transaction")
    OPERATOR_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    operator_signature: bytes
    transaction: bytes
    def __init__(self, operator_signature: _Optional[bytes] = ..., transaction: _Optional[bytes] = ...) -> None: ...

class GetAccountRequest(_message.Message):
    __slots__ = ("request", "signature")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    request: AccountRequest
    signature: bytes
    def __init__(self, request: _Optional[_Union[AccountRequest, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SignedReceipt(_message.Message):
    __slots__ = ("receipt", "signature")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    receipt: Receipt
    signature: bytes
    def __init__(self, receipt: _Optional[_Union[Receipt, _Mapping]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ShownVoucher(_message.Message):
    __slots__ = ("voucher", "signature", "base_count", "peaks")
    VOUCHER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    BASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PEAKS_FIELD_NUMBER: _ClassVar[int]
    voucher: Voucher
    signature: bytes
    base_count: int
    peaks: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, voucher: _Optional[_Union[Voucher, _Mapping]] = ..., signature: _Optional[bytes] = ..., base_count: _Optional[int] = ..., peaks: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ShowReceiptsRequest(_message.Message):
    __slots__ = ("channel", "voucher", "receipts")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    VOUCHER_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    channel: Channel
    voucher: ShownVoucher
    receipts: _containers.RepeatedCompositeFieldContainer[SignedReceipt]
    def __init__(self, channel: _Optional[_Union[Channel, _Mapping]] = ..., voucher: _Optional[_Union[ShownVoucher, _Mapping]] = ..., receipts: _Optional[_Iterable[_Union[SignedReceipt, _Mapping]]] = ...) -> None: ...
