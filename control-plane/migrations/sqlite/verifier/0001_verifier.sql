-- The verifier: attestation, and the nodes that the tenant added.

-- The database's clock, milliseconds since the Unix epoch: no process's own clock decides what has expired.
CREATE VIEW clock AS SELECT CAST(round(unixepoch('now', 'subsec') * 1000) AS INTEGER) AS now_ms;

-- History for people. What is kept of it is decided where it is written.
CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    node_id BLOB,
    name TEXT,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX event_node_id ON event (node_id, id);
CREATE INDEX event_name ON event (name, id);

-- Content-addressed; seq orders them by first upload.
CREATE TABLE policy (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    policy_id BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    body BLOB NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

-- Boot logs by SHA-256: a cache, the oldest go first.
CREATE TABLE boot_log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    digest BLOB NOT NULL UNIQUE,
    log_len INTEGER NOT NULL,
    log BLOB NOT NULL
) STRICT;

-- One row a node: pinned AK, trust, newest applied verdict (which a renewal replaces here and nowhere else), checkpoint.
CREATE TABLE attestation (
    node_id BLOB NOT NULL PRIMARY KEY,
    ak_name BLOB UNIQUE,
    ak_public BLOB,
    -- The newest connection's number.
    fence INTEGER NOT NULL DEFAULT 0,
    -- none, good, failed, rolled_back, unjudged. Staleness is not stored.
    state TEXT NOT NULL DEFAULT 'none',
    resumed INTEGER NOT NULL DEFAULT FALSE,
    checkpoint TEXT,
    -- The newest applied verdict; verdict_id is its place in the history.
    verdict_id INTEGER,
    nonce_ms INTEGER,
    valid_ms INTEGER,
    outcome TEXT,
    purpose TEXT,
    policy BLOB,
    explanation TEXT,
    verdict_fence INTEGER,
    verdict_counter INTEGER,
    -- The largest pair that was applied: a negative verdict counts without being the newest.
    newest_fence INTEGER,
    newest_counter INTEGER
) STRICT;

-- Every negative verdict and every change of outcome.
CREATE TABLE verdict (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    node_id BLOB NOT NULL,
    nonce_ms INTEGER NOT NULL,
    valid_ms INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    purpose TEXT NOT NULL,
    policy BLOB,
    explanation TEXT NOT NULL,
    verdict_fence INTEGER NOT NULL,
    verdict_counter INTEGER NOT NULL
) STRICT;
CREATE INDEX verdict_node_id ON verdict (node_id, id);

-- Shares about to leave; ended: from before the TPM's counters were seen to go back, so that a reset count says nothing.
CREATE TABLE share_release (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    node_id BLOB NOT NULL,
    sealing_id BLOB NOT NULL,
    nk_digest BLOB NOT NULL,
    quote_digest BLOB NOT NULL,
    nonce BLOB NOT NULL,
    reset_count INTEGER NOT NULL,
    restart_count INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    confirmed_ms INTEGER,
    ended INTEGER NOT NULL DEFAULT FALSE
) STRICT;
CREATE INDEX share_release_node_id ON share_release (node_id, id);
CREATE INDEX share_release_reset_count ON share_release (node_id, reset_count);

-- v_sealed: HPKE ciphertext to the verifier's key.
CREATE TABLE node (
    name TEXT NOT NULL PRIMARY KEY,
    node_id BLOB UNIQUE,
    subject BLOB NOT NULL,
    policy BLOB,
    interval_ms INTEGER NOT NULL,
    pins TEXT NOT NULL,
    sealing_id BLOB,
    v_sealed BLOB,
    sealing_subject BLOB,
    stopped INTEGER NOT NULL,
    agreed_ak BLOB,
    agreed_sealing BLOB
) STRICT;
