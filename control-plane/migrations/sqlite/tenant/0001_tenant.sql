-- The tenant: its own attestation, the fleet by name, join tokens, sealings, API tokens.

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

-- u_sealed: HPKE ciphertext to the tenant's key; v_sealed: to the verifier's. chunk_writes counts writes of chunks, so
-- that a sealing is completed only if none came in while its chunks were hashed.
CREATE TABLE sealing (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    sealing_id BLOB NOT NULL UNIQUE,
    subject BLOB NOT NULL,
    manifest BLOB NOT NULL,
    signature BLOB NOT NULL,
    u_sealed BLOB NOT NULL,
    v_sealed BLOB NOT NULL,
    ciphertext_len INTEGER NOT NULL,
    ciphertext_digest BLOB NOT NULL,
    complete INTEGER NOT NULL DEFAULT FALSE,
    chunk_writes INTEGER NOT NULL DEFAULT 0,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX sealing_subject ON sealing (subject);

CREATE TABLE chunk (
    sealing_id BLOB NOT NULL REFERENCES sealing (sealing_id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    ciphertext BLOB NOT NULL,
    PRIMARY KEY (sealing_id, number)
) STRICT;

CREATE TABLE node (
    name TEXT NOT NULL PRIMARY KEY,
    node_id BLOB UNIQUE,
    join_id BLOB,
    policy BLOB,
    interval_ms INTEGER NOT NULL,
    pins TEXT NOT NULL,
    sealing_id BLOB REFERENCES sealing (sealing_id),
    stopped INTEGER NOT NULL DEFAULT FALSE,
    revision INTEGER NOT NULL DEFAULT 1,
    synced INTEGER NOT NULL DEFAULT 0,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX node_unsynced ON node (name) WHERE synced < revision;
CREATE INDEX node_sealing_id ON node (sealing_id);

-- Keys: HPKE ciphertext to the tenant and to the registrar.
CREATE TABLE join_token (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    join_id BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    tenant_key BLOB NOT NULL,
    registrar_key BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_by BLOB,
    revoked INTEGER NOT NULL DEFAULT FALSE
) STRICT;
CREATE INDEX join_token_name ON join_token (name);

-- By SHA-256; the label is the token's first characters.
CREATE TABLE api_token (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    hash BLOB NOT NULL UNIQUE,
    label TEXT NOT NULL,
    role TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER
) STRICT;
CREATE INDEX api_token_label ON api_token (label);
