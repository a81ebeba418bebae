"""The tables of an index, for both kinds of databases. A new database takes every step, too.

Step 1 is what files have that were made before their schemas were counted. Amounts are text: they
have more digits than an integer of a database.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OF_ALL: Final = b""
"""In place of a worker: the sums of all workers."""
AUDIT_BYTES: Final = "audit_bytes"
"""In `meta`: how many bytes the evidence and reports of all audits have."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The words in which databases differ.

    Attributes:
        blob: The type of bytes.
        integer: The type of 63 bits and a sign.
        table: What stands behind a table.
        keyed: What stands behind a table that lies in the order of its key.
    """

    blob: str
    integer: str
    table: str
    keyed: str

    def words(self, step: str) -> str:
        """Return the SQL of a step."""
        return step.format(blob=self.blob, integer=self.integer, table=self.table, keyed=self.keyed)


_FIRST: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL){table};
CREATE TABLE offers (
    operator {blob} PRIMARY KEY, expires_at {integer} NOT NULL, wire {blob} NOT NULL,
    stake TEXT NOT NULL, received_at {integer} NOT NULL
){table};
CREATE TABLE sequences (operator {blob} PRIMARY KEY, sequence {integer} NOT NULL){table};
CREATE TABLE last_offers (operator {blob} PRIMARY KEY, wire {blob} NOT NULL){table};
CREATE TABLE samples (
    at {integer} PRIMARY KEY, workers {integer} NOT NULL, models {integer} NOT NULL,
    slots {integer} NOT NULL, slots_free {integer} NOT NULL, lowest_price {integer},
    median_price {integer}, median_speed {integer}, highest_speed {integer}
){table};
CREATE TABLE sampled_days (day {integer} PRIMARY KEY, samples {integer} NOT NULL){table};
CREATE TABLE worker_days (
    operator {blob} NOT NULL, day {integer} NOT NULL, first_sample {integer} NOT NULL,
    samples {integer} NOT NULL, PRIMARY KEY (operator, day)
){keyed};
CREATE TABLE opened_channels (
    channel {blob} PRIMARY KEY, operator {blob} NOT NULL, token {blob} NOT NULL
){keyed};
CREATE TABLE settlements (
    block {integer} NOT NULL, log {integer} NOT NULL, at {integer} NOT NULL,
    operator {blob} NOT NULL, hash {blob} NOT NULL, amount TEXT NOT NULL, PRIMARY KEY (block, log)
){keyed};
CREATE TABLE settled_days (
    day {integer} NOT NULL, operator {blob} NOT NULL, amount TEXT NOT NULL,
    payments {integer} NOT NULL, PRIMARY KEY (day, operator)
){keyed};
CREATE TABLE market_days (
    day {integer} PRIMARY KEY, amount TEXT NOT NULL, payments {integer} NOT NULL
){table};
"""

_SHARED: Final = """
CREATE TABLE published (
    operator {blob} PRIMARY KEY, sequence {integer} NOT NULL, expires_at {integer} NOT NULL,
    wire {blob} NOT NULL, stake TEXT NOT NULL, received_at {integer} NOT NULL,
    revision {integer} NOT NULL
){table};
INSERT INTO published
    SELECT s.operator, s.sequence, coalesce(o.expires_at, 0), l.wire, coalesce(o.stake, '0'),
        coalesce(o.received_at, 0), row_number() OVER (ORDER BY s.operator)
    FROM sequences s JOIN last_offers l ON l.operator = s.operator
        LEFT JOIN offers o ON o.operator = s.operator;
CREATE INDEX published_since ON published (revision);
DROP TABLE offers;
DROP TABLE sequences;
DROP TABLE last_offers;

DROP TABLE opened_channels;
DROP TABLE settlements;
DROP TABLE settled_days;
DROP TABLE IF EXISTS market_days;
DELETE FROM meta WHERE key = 'settled_to';
CREATE TABLE open_channels (
    channel {blob} PRIMARY KEY, operator {blob} NOT NULL, own {integer} NOT NULL
){keyed};
CREATE TABLE settlements (
    block {integer} NOT NULL, log {integer} NOT NULL, at {integer} NOT NULL,
    operator {blob} NOT NULL, hash {blob} NOT NULL, amount TEXT NOT NULL, own {integer} NOT NULL,
    PRIMARY KEY (block, log)
){keyed};
CREATE INDEX settlements_of ON settlements (operator, block, log);
CREATE TABLE settled_days (
    operator {blob} NOT NULL, day {integer} NOT NULL, amount TEXT NOT NULL,
    payments {integer} NOT NULL, own_amount TEXT NOT NULL, own_payments {integer} NOT NULL,
    PRIMARY KEY (operator, day)
){keyed};
CREATE INDEX settled_days_by_day ON settled_days (day);
CREATE TABLE settled_totals (
    operator {blob} PRIMARY KEY, amount TEXT NOT NULL, payments {integer} NOT NULL,
    own_amount TEXT NOT NULL, own_payments {integer} NOT NULL
){keyed};
"""
"""Offers that several instances see: `revision` grows by the order of their commits. Payments are
read from the chain again, because it was not kept who had opened a channel."""

_AUDITS: Final = """
CREATE TABLE IF NOT EXISTS audits (
    id {blob} PRIMARY KEY, operator {blob} NOT NULL, job {blob} NOT NULL,
    canvas {integer} NOT NULL, level {integer} NOT NULL, outcome {integer} NOT NULL,
    bearing TEXT NOT NULL, reporter {blob} NOT NULL, charged TEXT NOT NULL, settled TEXT NOT NULL,
    findings TEXT NOT NULL, received_at {integer} NOT NULL, evidence {blob} NOT NULL,
    report {blob} NOT NULL, UNIQUE (job, canvas, level, reporter)
){table};
CREATE INDEX IF NOT EXISTS audits_of_workers ON audits (operator, received_at);
INSERT INTO meta SELECT 'audit_bytes',
    CAST(coalesce(sum(length(evidence) + length(report)), 0) AS TEXT) FROM audits;
"""
"""What clients reported of workers. A file from before schemas were counted may have it."""

_SPREADS: Final = """
ALTER TABLE samples ADD COLUMN lower_quartile_price {integer};
ALTER TABLE samples ADD COLUMN upper_quartile_price {integer};
ALTER TABLE samples ADD COLUMN highest_price {integer};
ALTER TABLE samples ADD COLUMN lowest_speed {integer};
ALTER TABLE samples ADD COLUMN lower_quartile_speed {integer};
ALTER TABLE samples ADD COLUMN upper_quartile_speed {integer};
"""
"""How prices and speeds are spread. Of samples from before nobody knows it."""

_REPORTED: Final = """
UPDATE audits SET bearing = 'reported' WHERE bearing = 'checked';
"""
"""Before, a canvas of which nothing was open counted as checked by rules."""

STEPS: Final = (_FIRST, _SHARED, _AUDITS, _SPREADS, _REPORTED)
