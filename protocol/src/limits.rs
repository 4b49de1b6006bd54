//! Every maximum of the wire, in bytes or counts, each with its reason.

/// One CoAP message, headers and all. An agent holds one at a time in its receive buffer, and an unproven connection may
/// hold no more; a whole `enrol` with four certificates fits.
pub const MAX_MESSAGE_LEN: usize = 8 * 1024;
/// One BERT body: seven blocks of 1,024 bytes leave room for the headers within [`MAX_MESSAGE_LEN`].
pub const MAX_BLOCK_PAYLOAD: usize = 7 * 1024;
/// TLS plaintext per record the control plane sends: the agent's record buffer holds one message in one record.
pub const MAX_RECORD_LEN: usize = 9 * 1024;
/// EK certificate and the intermediates found beside it: vendors ship at most three above the leaf.
pub const MAX_EK_CHAIN: usize = 4;
/// One certificate of that chain in DER; vendors' stay under 1,700 bytes, TPM NV indices under 2,048.
pub const MAX_CERTIFICATE_LEN: usize = 2048;
/// A TPMT_PUBLIC: an RSA-3072 EK with policy stays under 500 bytes.
pub const MAX_PUBLIC_LEN: usize = 512;
/// A name is an algorithm and a digest of at most 64 bytes.
pub const MAX_NAME_LEN: usize = 66;
/// TPM2B_ID_OBJECT contents: integrity digest and an encrypted 32-byte secret.
pub const MAX_ID_OBJECT_LEN: usize = 132;
/// TPM2B_ENCRYPTED_SECRET contents: an RSA-3072 ciphertext, or an ECC point.
pub const MAX_ENCRYPTED_SECRET_LEN: usize = 384;
/// A TPMS_ATTEST of a quote: four selections and SHA-512 throughout stay under 300 bytes.
pub const MAX_ATTEST_LEN: usize = 320;
/// A TPMT_SIGNATURE: RSA-2048 and its header.
pub const MAX_SIGNATURE_LEN: usize = 264;
/// Banks in one selection: SHA-1, SHA-256, SHA-384, SHA-512.
pub const MAX_PCR_BANKS: usize = 4;
/// PCRs of a bank that can be selected (PC Client TPM).
pub const PCR_COUNT: usize = 24;
/// PCR values in one evidence: two whole banks; more would crowd out the IMA entries.
pub const MAX_PCR_VALUES: usize = 48;
/// New IMA entries carried inside evidence; the rest is pulled after the quote has verified.
pub const MAX_INLINE_IMA_LEN: usize = 4 * 1024;
/// A boot log: the largest public ones are under 80 KiB; firmware that keeps hundreds of revocations and a boot loader that
/// measures each command can write several times as much.
pub const MAX_BOOT_LOG_LEN: usize = 1024 * 1024;
/// The kernel's command line, as the preimage of what measured it: x86 kernels take 2,048 bytes, others 4,096.
pub const MAX_COMMAND_LINE_LEN: usize = 4096;
/// What userspace measured after the boot log ended: systemd writes half a KiB a record, a handful a boot and one a
/// unit or volume that asks for it.
pub const MAX_USERSPACE_LOG_LEN: usize = 1024 * 1024;
/// What is fetched of an IMA list for one verdict: half a million entries of 128 bytes.
pub const MAX_IMA_LOG_LEN: usize = 64 * 1024 * 1024;
/// One IMA entry: a template may carry a signature or a buffer, never more than a few pages.
pub const MAX_IMA_ENTRY_LEN: usize = 64 * 1024;
/// A share's ciphertext: the tenant's 64 bytes and the AEAD tag.
pub const MAX_SHARE_LEN: usize = 96;
/// A manifest in its fixed layout, and room for a later version.
pub const MAX_MANIFEST_LEN: usize = 512;
/// The plaintext of a payload.
pub const MAX_PAYLOAD_LEN: u64 = 64 * 1024 * 1024;
/// Files in a payload.
pub const MAX_PAYLOAD_FILES: usize = 1024;
/// Text in a `report`: the end of an autorun's output, or a reason.
pub const MAX_REPORT_LEN: usize = 1024;
/// Tenant keys an image pins, so that they can rotate.
pub const MAX_TENANT_KEYS: usize = 4;
/// Roles that may share one quote: verifier and tenant.
pub const MAX_NONCES: usize = 2;

/// How long a nonce may be answered, from its making.
pub const NONCE_LIFETIME_MS: u64 = 60_000;
/// How long a connection may stay without a quote verified under a pinned AK.
pub const UNPROVEN_LIFETIME_MS: u64 = 60_000;
/// A role releases its share only on a verdict at most this old.
pub const RELEASE_VERDICT_MAX_AGE_MS: u64 = 30_000;
/// How long either end waits for the answer to a request: real TPMs take seconds for a quote under load, and a network
/// that loses a third of all packets takes ten to carry an answer in every twentieth case.
pub const REQUEST_TIMEOUT_MS: u64 = 30_000;
/// An agent that hears nothing asks for a sign of life at least as often, so that both ends know of each other.
pub const MAX_QUIET_MS: u64 = 600_000;
