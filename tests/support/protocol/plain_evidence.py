"""A second reader of evidence files, written from docs/protocol.md alone (clauses 10.1 to 10.8).

It imports nothing of ours, so that an error of the first one cannot hide in it. The types are read
from the page itself. `fault` gives None for a file that holds, and else what does not.
`reply_fault` does so for a gateway's answer of one job that wrote freely.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

from coincurve import PublicKey
from sha3 import keccak_256

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "protocol.md").read_text()
TYPES = dict(re.findall(r"^  (\w+)\((.+)\)$", re.sub(r",\s+", ",", PAGE), re.MULTILINE))
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
MEMBERS = (
    "acceptance chain channel content contradictions escrow format job offer receipts vouchers"
)


def keccak(data: bytes) -> bytes:
    return bytes(keccak_256(data).digest())


def need(truth: object, member: str) -> None:
    if not truth:
        raise ValueError(member)


def raw(text: Any, size: int | None = None) -> bytes:
    need(isinstance(text, str) and re.fullmatch(r"0x([0-9a-f]{2})*", text), "hex")
    need(size is None or len(text) == 2 + 2 * size, "hex")
    return bytes.fromhex(text[2:])


def several(value: Any) -> list[Any]:
    need(isinstance(value, list), "list")
    found: list[Any] = value
    return found


def whole(value: Any) -> int:
    large = isinstance(value, str) and re.fullmatch(r"[1-9][0-9]{15,38}", value)
    found = int(value) if large else value
    need(type(found) is int and found >= 0 and bool(large) == (found >= 2**53), "number")
    return int(found)


def address(text: Any) -> bytes:
    need(isinstance(text, str), "address")
    found = raw(text.lower(), 20)
    mask = keccak(found.hex().encode()).hex()
    cased = (c.upper() if int(m, 16) > 7 else c for c, m in zip(found.hex(), mask, strict=False))
    need("0x" + "".join(cased) == text, "address")
    return found


def full_type(kind: str) -> str:
    inner = {name for name in TYPES if re.search(rf"\b{name}\b", TYPES[kind])}
    return "".join(f"{name}({TYPES[name]})" for name in [kind, *sorted(inner)])


def encoded(kind: str, value: Any) -> bytes:
    if kind.endswith("[]"):
        return keccak(b"".join(encoded(kind[:-2], one) for one in several(value)))
    if kind in TYPES:
        members = [member.split() for member in TYPES[kind].split(",")]
        need(isinstance(value, dict) and set(value) == {name for _, name in members}, "members")
        parts = [encoded(inner, value[name]) for inner, name in members]
        return keccak(keccak(full_type(kind).encode()) + b"".join(parts))
    if kind == "string":
        need(isinstance(value, str), "text")
        return keccak(value.encode())
    if kind in ("address", "bytes32"):
        return (address(value) if kind == "address" else raw(value, 32)).rjust(32, b"\0")
    need(whole(value) < 1 << int(kind[4:]), "number")
    return whole(value).to_bytes(32, "big")


def signer(digest: bytes, signature: bytes) -> bytes:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    need(0 < r < ORDER and 0 < s <= ORDER // 2 and signature[64] in (27, 28), "signature")
    packed = signature[:64] + bytes([signature[64] - 27])
    key = PublicKey.from_signature_and_message(packed, digest, hasher=None)
    return keccak(key.format(compressed=False)[1:])[12:]


def tree(nodes: list[bytes]) -> bytes:
    if not nodes:
        return keccak(b"")
    if len(nodes) == 1:
        return keccak(b"\0" + nodes[0])
    half = 1 << (len(nodes) - 1).bit_length() - 1
    return keccak(b"\1" + tree(nodes[:half]) + tree(nodes[half:]))


def climb(leaf: bytes, index: int, count: int, siblings: list[bytes]) -> bytes:
    """RFC 9162, 2.1.3.1, from the root down: which half the leaf is in says where a sibling is."""
    need(0 <= index < count, "proof")
    if count == 1:
        need(not siblings, "proof")
        return keccak(b"\0" + leaf)
    need(siblings, "proof")
    half = 1 << (count - 1).bit_length() - 1
    *below, sibling = siblings
    if index < half:
        return keccak(b"\1" + climb(leaf, index, half, below) + sibling)
    return keccak(b"\1" + sibling + climb(leaf, index - half, count - half, below))


def read_output(kind: int, data: bytes) -> tuple[int, str, list[list[int]]]:
    """The units of an output, its final text, and the shares of a read's answers."""
    at, final, shares = 0, "", list[list[int]]()

    def take(size: int) -> bytes:
        nonlocal at
        need(at + size <= len(data), "output")
        at += size
        return data[at - size : at]

    def count() -> int:
        return int(struct.unpack(">I", take(4))[0])

    first = count()
    for _ in range(first):
        if kind == 1:
            shares.append([count() for _ in range(count())])
            need(sum(shares[-1]) == 65536, "output")
            continue
        take(count() * (1 if kind == 3 else 4) if kind else 4)
    if kind == 3:
        for _ in range(count()):
            take(count())
        if take(1) == b"\1":
            take(count())
    if kind == 0:
        for _ in range(count()):
            segment = take(1)[0]
            need(segment < 4, "output")
            text = take(count()).decode()
            final += "" if segment else text
    need(at == len(data), "output")
    return (0 if kind else first), final, shares


class Reader:
    """One file whose form is that of clause 10.1."""

    def __init__(self, file: dict[str, Any]) -> None:
        self.file, self.job, self.text = file, file["job"]["object"], ""
        self.canvases: list[list[list[int]]] = []
        domain = (
            "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
        )
        parts = [keccak(text.encode()) for text in (domain, "Piecework", "2")]
        chain = whole(file["chain"]).to_bytes(32, "big")
        escrow = address(file["escrow"]).rjust(32, b"\0")
        self.domain = keccak(b"".join(parts) + chain + escrow)
        self.id = self.digest("Job", self.job)

    def digest(self, kind: str, value: Any) -> bytes:
        return keccak(b"\x19\x01" + self.domain + encoded(kind, value))

    def signed(self, kind: str, shown: Any, by: str, *more: str) -> dict[str, Any]:
        need(set(shown) == {"object", "signature", *more}, kind)
        digest = self.digest(kind, shown["object"])
        need(signer(digest, raw(shown["signature"], 65)) == address(by), f"{kind}.signature")
        found: dict[str, Any] = shown["object"]
        return found

    def check(self) -> None:
        file, job, channel = self.file, self.job, self.file["channel"]
        need(self.digest("Channel", channel) == raw(job["channel"]), "channel")
        self.signed("Job", file["job"], channel["authorizer"])
        offer = self.signed("Offer", file["offer"], file["offer"]["signer"], "signer")
        need(self.digest("Offer", offer) == raw(job["offer"]), "offer")
        need(all(offer[n] == channel[n] for n in ("operator", "receiver")), "offer")
        model = offer["models"][job["entry"]]
        need(model["digest"] == job["model"], "job.entry")
        need(model["service"] == job["parameters"]["service"], "job.parameters")
        if file["content"] is not None:
            salted = keccak(raw(job["salt"]) + raw(file["content"]))
            need(salted == raw(job["content"]), "content")
        prompt = None
        if file["acceptance"] is not None:
            accepted = self.signed("Acceptance", file["acceptance"], channel["operator"])
            need(raw(accepted["job"]) == self.id, "acceptance.job")
            prompt = accepted["promptTokens"]
        digests = self.receipts(model, prompt)
        for shown in several(file["vouchers"]):
            voucher = self.signed("Voucher", shown, channel["authorizer"], "paid")
            need(voucher["channel"] == job["channel"], "vouchers.channel")
            for paid in several(shown["paid"]):
                need(set(paid) == {"canvas", "index", "siblings"}, "paid")
                siblings = [raw(one, 32) for one in several(paid["siblings"])]
                where, count = whole(paid["index"]), whole(voucher["count"])
                leaf = digests[whole(paid["canvas"])]
                root = climb(leaf, where, count, siblings)
                need(root == raw(voucher["receiptsRoot"]), "paid")
        for pair in several(file["contradictions"]):
            self.contradiction(pair)

    def receipts(self, model: Any, prompt: int | None) -> list[bytes]:
        job, asked = self.job, self.job["parameters"]
        before, units, steps, charged, digests = self.id, 0, 0, 0, list[bytes]()
        for i, shown in enumerate(several(self.file["receipts"])):
            by = self.file["channel"]["operator"]
            receipt = self.signed("Receipt", shown, by, "leaves", "output")
            need(raw(receipt["job"]) == self.id and receipt["canvas"] == i, "receipts")
            need(raw(receipt["previous"]) == before, "receipts.previous")
            last, cancelled = i + 1 == len(self.file["receipts"]), receipt["finish"] == 3
            full = (i + 1) * model["canvasSize"] >= asked["maxTokens"]
            need(receipt["finish"] < 4 and (receipt["finish"] == 0 or last), "finish")
            need(receipt["finish"] or not full, "finish")
            most = 0 if asked["service"] else asked["maxSteps"]
            least = 0 if asked["service"] or cancelled else 1
            need(least <= receipt["steps"] <= most, "steps")
            empty = raw(receipt["traceRoot"]) == keccak(b"")
            need(empty == (receipt["steps"] == 0), "traceRoot")
            units, steps = units + receipt["units"], steps + receipt["steps"]
            need(receipt["units"] <= model["canvasSize"] and units <= asked["maxTokens"], "units")
            read = prompt = receipt["totalPromptTokens"] if prompt is None else prompt
            if i == 0 and cancelled and not steps and not units:
                read = min(read, receipt["totalPromptTokens"])
            total = read * whole(model["pricePerMillionPromptTokens"])
            total += units * whole(model["pricePerMillionOutputTokens"])
            total += steps * 1000 * whole(model["pricePerThousandSteps"])
            total //= 10**6
            said = [receipt[f"total{name}"] for name in ("PromptTokens", "Units", "Steps")]
            need(said == [read, units, steps], "totals")
            need(whole(receipt["totalAmount"]) == total <= whole(job["maxAmount"]), "totalAmount")
            need(whole(receipt["amount"]) == total - charged, "amount")
            self.opened(receipt, shown)
            before, charged = self.digest("Receipt", receipt), total
            digests.append(before)
        return digests

    def opened(self, receipt: Any, shown: Any) -> None:
        if shown["leaves"] is not None:
            leaves = [raw(leaf, 32) for leaf in several(shown["leaves"])]
            need(len(leaves) == (receipt["steps"] and receipt["steps"] + 1), "leaves")
            need(tree(leaves) == raw(receipt["traceRoot"]), "leaves")
        if shown["output"] is not None:
            data = raw(shown["output"])
            salted = keccak(self.id + receipt["canvas"].to_bytes(4, "big") + data)
            need(salted == raw(receipt["outputDigest"]), "output")
            units, text, shares = read_output(self.job["kind"], data)
            self.canvases.append(shares)
            need(units == receipt["units"], "output")
            self.text += text

    def means(self) -> list[list[float]]:
        """The mean share of each label of a read's questions."""
        draws = int.from_bytes(raw(self.file["content"])[-4:], "big")
        found: list[list[float]] = []
        for first in range(0, len(self.canvases), draws):
            same = self.canvases[first : first + draws]
            need(len(same) == draws, "draws")
            for question in zip(*same, strict=True):
                found.append([sum(label) / 65536 / draws for label in zip(*question, strict=True)])
        return found

    def contradiction(self, pair: Any) -> None:
        need(set(pair) == {"type", "first", "second"}, "contradictions")
        kind, role = pair["type"], "operator"
        need(kind in ("Acceptance", "Receipt", "Voucher"), "contradictions.type")
        about, same = "job", self.id
        if kind == "Voucher":
            about, same, role = "channel", raw(self.job["channel"]), "authorizer"
        by = self.file["channel"][role]
        one, two = (self.signed(kind, pair[name], by) for name in ("first", "second"))
        need(raw(one[about]) == raw(two[about]) == same, "contradictions")
        if kind == "Receipt":
            need(one["canvas"] == two["canvas"] and one != two, "contradictions")
        elif kind == "Acceptance":
            need(one["promptTokens"] != two["promptTokens"], "contradictions")
        else:
            low, high = sorted((one, two), key=lambda voucher: whole(voucher["count"]))
            shrinks = whole(low["cumulative"]) > whole(high["cumulative"])
            need(shrinks or (low["count"] == high["count"] and one != two), "contradictions")


def fault(data: bytes) -> str | None:
    """Judge a file."""
    try:
        file = json.loads(data)
        text = json.dumps(file, sort_keys=True, separators=(",", ":")) + "\n"
        need(text.encode() == data, "canonical form")
        need(" ".join(file) == MEMBERS and file["format"] == "piecework-evidence/1", "members")
        Reader(file).check()
    except Exception as error:  # noqa: BLE001  a file of a stranger breaks where it breaks
        return f"{type(error).__name__}: {error}"
    return None


def plain(value: Any) -> Any:
    """A value of an answer as clause 10.7 signs it."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def written(reply: dict[str, Any]) -> str:
    """The text of an answer with one choice."""
    if "output" in reply:
        return "".join(p["text"] for item in reply["output"] for p in item["content"])
    [choice] = reply["choices"]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def decided(answers: Any, questions: Any) -> list[list[float]]:
    """The probabilities of a decision by question: of the first label alone, or of each."""
    found = []
    for name in questions if isinstance(questions, dict) else range(len(several(answers))):
        one = answers[name]
        if "probabilities" not in one:
            found.append([one["noul"] if "noul" in one else one["probability"]])
        elif isinstance(questions, list):
            found.append([label["probability"] for label in one["probabilities"]])
        else:
            labels = questions[name]["criteria"]
            texts = labels if isinstance(labels, dict) else map(str, range(len(labels)))
            found.append([one["probabilities"][text] for text in texts])
    need(len(found) == len(answers), "answers")
    return found


def check_reply(reply: dict[str, Any]) -> None:
    shown = reply["piecework"]["evidence"]
    need(set(shown) == {"request", "jobs", "signature"}, "evidence")
    [job] = shown["jobs"]
    need(set(job) == {"part", "evidence"} and job["part"] == 0, "jobs")
    reader = Reader(job["evidence"])
    reader.check()
    inner = {name: one for name, one in shown.items() if name != "signature"}
    signed = {**reply, "piecework": {**reply["piecework"], "evidence": inner}}
    body = json.dumps(plain(signed), sort_keys=True, separators=(",", ":")) + "\n"
    kind = keccak(b"ReplyStatement(bytes32 body)")
    digest = keccak(b"\x19\x01" + reader.domain + keccak(kind + keccak(body.encode())))
    by = signer(digest, raw(shown["signature"], 65))
    need(by == address(reader.file["channel"]["authorizer"]), "signature")
    last = reader.file["receipts"][-1]["object"]
    if "answers" in reply:
        said = decided(reply["answers"], shown["request"]["questions"])
        pairs = zip(said, reader.means(), strict=True)
        need(all(one == other[: len(one)] for one, other in pairs), "answers")
    else:
        need(written(reply) == reader.text, "text")
    usage = reply["usage"]
    tokens = [usage.get("prompt_tokens", usage.get("input_tokens"))]
    tokens += [usage.get("completion_tokens", usage.get("output_tokens"))]
    need(tokens == [last["totalPromptTokens"], last["totalUnits"]], "usage")
    need(reply["piecework"]["cost"] == last["totalAmount"], "cost")


def reply_fault(reply: Any) -> str | None:
    """Judge a gateway's answer of one job."""
    try:
        check_reply(reply)
    except Exception as error:  # noqa: BLE001  an answer of a stranger breaks where it breaks
        return f"{type(error).__name__}: {error}"
    return None
