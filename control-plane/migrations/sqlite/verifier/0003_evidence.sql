-- What each node showed last in a quote that verified, whatever the verdict on it: policies are learned from it and tried
-- against it. One row a node, replaced when it shows something else.
CREATE TABLE evidence (
    node_id BLOB NOT NULL PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    purpose TEXT NOT NULL,
    attested BLOB NOT NULL,
    signature BLOB NOT NULL,
    qualifying_data BLOB NOT NULL,
    ak_name BLOB NOT NULL,
    hardware TEXT NOT NULL,
    pcrs TEXT NOT NULL,
    reset_count INTEGER NOT NULL,
    restart_count INTEGER NOT NULL,
    boot_log BLOB,
    command_line BLOB,
    userspace BLOB,
    has_ima INTEGER NOT NULL,
    ima_entries INTEGER
) STRICT;

-- The IMA list of a node's boot, in the kernel's binary form, by the number of each part's first entry.
CREATE TABLE ima_part (
    node_id BLOB NOT NULL,
    first_entry INTEGER NOT NULL,
    entries INTEGER NOT NULL,
    reset_count INTEGER NOT NULL,
    restart_count INTEGER NOT NULL,
    part_len INTEGER NOT NULL,
    part BLOB NOT NULL,
    PRIMARY KEY (node_id, first_entry)
) STRICT;
