-- Nodes that proved one TPM to hold EK and AK, and that nobody has admitted: they wait for an operator. hardware: as in
-- binding; proven: whether it says a trusted manufacturer. peer: where the node last came from.
CREATE TABLE quarantine (
    node_id BLOB NOT NULL PRIMARY KEY,
    ek_public BLOB NOT NULL,
    ek_chain BLOB NOT NULL,
    ak_public BLOB NOT NULL,
    ak_name BLOB NOT NULL,
    hardware TEXT NOT NULL,
    proven INTEGER NOT NULL,
    peer TEXT NOT NULL,
    first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX quarantine_order ON quarantine (proven, last_ms);
