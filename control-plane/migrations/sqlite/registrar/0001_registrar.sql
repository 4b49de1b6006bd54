-- The registrar: whom it may bind, and which AK is bound to which EK.

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

CREATE TABLE admitted_node (
    node_id BLOB NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- sealed_key: HPKE ciphertext to the registrar's key.
CREATE TABLE join_admission (
    join_id BLOB NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    sealed_key BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_by BLOB,
    revoked INTEGER NOT NULL DEFAULT FALSE
) STRICT;
CREATE INDEX join_admission_name ON join_admission (name);

-- One AK a node and one node an AK. ek_chain: DER certificates, each after its length as u32, most significant first.
CREATE TABLE binding (
    node_id BLOB NOT NULL PRIMARY KEY,
    ak_name BLOB NOT NULL UNIQUE,
    ak_public BLOB NOT NULL,
    ek_public BLOB NOT NULL,
    ek_chain BLOB NOT NULL,
    hardware TEXT NOT NULL,
    join_id BLOB,
    tenant_proof BLOB,
    server_certificate BLOB,
    bound_ms INTEGER NOT NULL
) STRICT;
