//! `hello`, `enrol`, `activate`: how a node says who it is, and proves that its AK and its EK live in one TPM.

use serde::{Deserialize, Serialize};

use crate::{
    bytes::{Array, Bytes},
    id::{EnrolmentId, JoinId, NodeId},
    limits,
};

/// What the node came for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Wants {
    /// Its payload, then attestation.
    Payload,
    /// Attestation only: the payload of this boot is in place.
    Attest,
}

/// Agent → gateway, POST /v1/hello: the first request of every connection. A claim; nothing rests on it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hello {
    /// [`VERSION`](super::VERSION).
    pub version: u8,
    /// Whom the agent says it is.
    pub node_id: NodeId,
    /// Name of its AK: 000b and a SHA-256.
    pub ak_name: Array<34>,
    /// What it came for.
    pub wants: Wants,
    /// The firmware left a boot log.
    pub has_boot_log: bool,
    /// The kernel keeps an IMA list, so PCR 10 has something behind it.
    pub has_ima_log: bool,
}

/// The answer to [`Hello`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum HelloAnswer {
    /// This AK is bound to this node; challenges follow.
    Known,
    /// Not bound yet: enrol.
    Enrol,
}

/// Proof of a join token that never travels: one HMAC for each role that checks it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct JoinProof {
    /// Which token.
    pub join_id: JoinId,
    /// Under the registrar's key.
    pub registrar: Array<32>,
    /// Under the tenant's key.
    pub tenant: Array<32>,
}

/// Agent → registrar, POST /v1/enrol.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Enrol {
    /// TPMT_PUBLIC of the EK.
    pub ek_public: Bytes<{ limits::MAX_PUBLIC_LEN }>,
    /// EK certificate first, then what was found of its chain; DER. Empty when the TPM has none.
    pub ek_chain: heapless::Vec<Bytes<{ limits::MAX_CERTIFICATE_LEN }>, { limits::MAX_EK_CHAIN }>,
    /// TPMT_PUBLIC of the AK.
    pub ak_public: Bytes<{ limits::MAX_PUBLIC_LEN }>,
    /// Proof of a join token, where one is configured.
    pub join: Option<JoinProof>,
}

/// The answer to [`Enrol`]: a credential that only the TPM holding both keys can open.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct EnrolAnswer {
    /// Names this attempt; it lives in the memory of this connection, 60 s, one try.
    pub enrolment_id: EnrolmentId,
    /// The credential.
    pub credential: Credential,
}

/// TPM2_MakeCredential's two outputs, without their length prefixes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Credential {
    /// Contents of TPM2B_ID_OBJECT.
    pub id_object: Bytes<{ limits::MAX_ID_OBJECT_LEN }>,
    /// Contents of TPM2B_ENCRYPTED_SECRET.
    pub encrypted_secret: Bytes<{ limits::MAX_ENCRYPTED_SECRET_LEN }>,
}

/// Agent → registrar, POST /v1/activate.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Activate {
    /// From [`EnrolAnswer`].
    pub enrolment_id: EnrolmentId,
    /// HMAC-SHA256 under the activated secret.
    pub proof: Array<32>,
}
