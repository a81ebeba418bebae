"""The environment variables of every program of the family.

One shared environment file may hold the variables of a worker and of a gateway. So every program
knows the names of all roles. It refuses a name that none of them reads, because a mistyped limit
must not vanish.

The names stand here as text, so that the command line can check them before it imports a role. A
test holds them equal to the settings.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from piecework.base.errors import SettingsError
from piecework.base.text import one_line

FAMILY: Final = "PIECEWORK_"
SHARED: Final = {
    "PIECEWORK_HOME": "The folder with the homes of all roles.",
    "PIECEWORK_MODELS": "The folder of pulled models.",
    "PIECEWORK_PASSWORD": "The password of the role's key.",
    "PIECEWORK_DEPLOYER_KEY": "The key that `chain deploy` sends with.",
    "PIECEWORK_MARKET_DATABASE": "`--database` of `market start`.",
    "PIECEWORK_MARKET_RPC": "`--rpc` of the commands of `market`.",
    "PIECEWORK_PUBLIC": "Read by the compose file: the address on which clients reach the worker.",
    "PIECEWORK_SECRETS": "Read by the compose file: the folder of the password files.",
    "PIECEWORK_VERSION": "Read by the compose file: the tag of the image.",
}
"""Variables that are not settings of a role, and what each is."""
_WRITTEN: Final = {
    "WORKER": """
    payout price_per_million_prompt_tokens price_per_million_output_tokens
    price_per_thousand_steps automatic_prices automatic_least_percent automatic_step_percent
    accepted_tokens min_deposit credit_first credit_mined credit_max stranger_credit write_off_s
    open_fee top_up_fee close_fee min_top_up min_withdrawal_delay_s slots queue jobs_per_channel
    payment_timeout_s drain_grace_s bind endpoint relays indexes offer_lifetime_s
    sealing_key_rotation_s requests_per_minute paid_requests_per_minute max_streams
    streams_per_address max_connections connections_per_address trusted_proxies admin_host
    admin_port admin_public rpc_url rpc_urls rpc_quorum rpc_timeout_s finality_depth
    chain_poll_s channel_refresh_s block_time_s chain_outage_s settle_interval_s
    settle_gas_multiple native_coin_price max_fee_gwei stuck_after_s evidence_s evidence_bytes
    min_free_disk_mib backend vllm_endpoints vllm_model vllm_api_key vllm_programs model
    model_store device precision planned_context threads benchmark_s pause_schedule
    pause_gpu_share pause_gpu_memory_mib pause_temperature_c pause_power_w pause_on_battery
    pause_quiet_s pause_max_s pause_frees_memory gpu_number gpu_numbers usd_per_token
    usd_per_kwh busy_power_w alert_webhook signer log_level log_format
    """,
    "CLIENT": """
    indexes rpc_url rpc_urls rpc_quorum rpc_timeout_s deposit open_from_account max_fee
    withdrawal_delay_s funding_lifetime_s max_job_price spend_per_day spend_per_month
    default_max_tokens
    max_price_per_million_output price_cap second_is_worth job_lifetime_s stall_timeout_s
    start_timeout_s acknowledgement_timeout_s resume_attempts keep_text audit_rate audit_by
    audit_check_rate audit_model gateway_api_key gateway_max_concurrent gateway_max_waiting
    gateway_wait_s gateway_max_connections gateway_trusted_proxies gateway_allowed_origins
    gateway_heartbeat_s gateway_best_effort gateway_strict_parameters token_usd_price
    """,
    "SIGNER": """
    payouts coins_to leaving daily_signatures daily_gas data_wei_per_byte daily_tokens users
    """,
}
SETTINGS: Final = {role: tuple(names.split()) for role, names in _WRITTEN.items()}
"""Settings of each role that are read from the environment, in lower case."""
KNOWN: Final = frozenset(SHARED) | {
    f"{FAMILY}{role}_{name.upper()}" for role, names in SETTINGS.items() for name in names
}
_MAX_SHOWN: Final = 60
_USUAL: Final = 0.6
"""How alike a name must be that somebody meant for us."""
_CLOSE: Final = 0.9
"""How alike a name must be that does not begin as ours do."""
_SERVICE_LINK: Final = re.compile(
    r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)\w*)"
)
"""What Kubernetes and container links set for a service whose name begins with ours."""
_LINKED_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")


def check_names(environment: Mapping[str, str]) -> None:
    """Refuse variables that somebody meant for us and that no program of the family reads.

    Raises:
        SettingsError: one line for each such variable, with the nearest right name.
    """
    problems = [
        f"there is no variable {one_line(name, _MAX_SHOWN)}{_nearest_variable(name)}"
        for name in unknown_names(environment)
    ]
    if problems:
        raise SettingsError(*problems)


def unknown_names(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield the variables that are meant for us and that nobody reads."""
    for name, value in environment.items():
        upper = name.upper()
        if name in KNOWN or (upper.startswith(FAMILY) and is_service_link(upper, value)):
            continue
        if upper.startswith(FAMILY) or _is_almost_ours(upper):
            yield name


def did_you_mean(
    name: str, names: Collection[str], lead: str = "", *, cutoff: float = _USUAL
) -> str:
    """Return the question that names the nearest of the names, or nothing if none is near.

    Args:
        name: One that does not exist.
        names: Those that do.
        lead: What stands before a name in the question.
        cutoff: How alike two names must be, from 0 to 1.
    """
    import difflib  # only somebody with a mistyped name waits for it

    near = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f". Did you mean {lead}{near[0]}?" if near else ""


def _nearest_variable(name: str) -> str:
    rest = name.upper().removeprefix(FAMILY)  # the common beginning would make all alike
    near = did_you_mean(rest, [known.removeprefix(FAMILY) for known in KNOWN], FAMILY)
    return near or did_you_mean(name.upper(), KNOWN, cutoff=_CLOSE)


def is_service_link(name: str, value: str) -> bool:
    """Whether a container platform has set a variable, for a service whose name begins with ours.

    name: in upper case.
    """
    if _SERVICE_LINK.fullmatch(name):
        return True
    return name.endswith("_PORT") and _LINKED_ADDRESS.match(value) is not None


def _is_almost_ours(name: str) -> bool:
    """Whether the family's own name is mistyped, as in PIECWORK_PASSWORD."""
    first = name.partition("_")[0] + "_"
    if first[0] != "P" or abs(len(first) - len(FAMILY)) > 1:
        return False
    import difflib

    if difflib.SequenceMatcher(None, first, FAMILY).ratio() < _CLOSE:
        return False
    return bool(did_you_mean(name, KNOWN, cutoff=_CLOSE))
