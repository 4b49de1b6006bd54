-- What the verifier judges a node by, where it is not the tenant's policy.
ALTER TABLE node ADD COLUMN verifier_policy BYTEA;
