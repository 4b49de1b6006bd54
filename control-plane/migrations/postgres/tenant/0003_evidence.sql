-- What each node showed last in a quote that verified, whatever the verdict on it: policies are learned from it and tried
-- against it. One row a node, replaced when it shows something else.
CREATE TABLE evidence (
    node_id BYTEA PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    purpose TEXT NOT NULL,
    attested BYTEA NOT NULL,
    signature BYTEA NOT NULL,
    qualifying_data BYTEA NOT NULL,
    ak_name BYTEA NOT NULL,
    hardware TEXT NOT NULL,
    pcrs TEXT NOT NULL,
    reset_count BIGINT NOT NULL,
    restart_count BIGINT NOT NULL,
    boot_log BYTEA,
    command_line BYTEA,
    userspace BYTEA,
    has_ima BOOLEAN NOT NULL,
    ima_entries BIGINT
);

-- The IMA list of a node's boot, in the kernel's binary form, by the number of each part's first entry.
CREATE TABLE ima_part (
    node_id BYTEA NOT NULL,
    first_entry BIGINT NOT NULL,
    entries BIGINT NOT NULL,
    reset_count BIGINT NOT NULL,
    restart_count BIGINT NOT NULL,
    part_len BIGINT NOT NULL,
    part BYTEA NOT NULL,
    PRIMARY KEY (node_id, first_entry)
);
