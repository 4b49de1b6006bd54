-- Nodes that proved one TPM to hold EK and AK, and that nobody has admitted: they wait for an operator. hardware: as in
-- binding; proven: whether it says a trusted manufacturer. peer: where the node last came from.
CREATE TABLE quarantine (
    node_id BYTEA PRIMARY KEY,
    ek_public BYTEA NOT NULL,
    ek_chain BYTEA NOT NULL,
    ak_public BYTEA NOT NULL,
    ak_name BYTEA NOT NULL,
    hardware TEXT NOT NULL,
    proven BOOLEAN NOT NULL,
    peer TEXT NOT NULL,
    first_ms BIGINT NOT NULL,
    last_ms BIGINT NOT NULL
);
CREATE INDEX quarantine_order ON quarantine (proven, last_ms);
