//! GET /api/v1/nodes/{node}/ek: why a node's TPM is taken for a real one, or why it is not and what to do.

use axum::Json;
use axum::extract::State;
use protocol::id::NodeId;
use protocol::tpm::public::TpmtPublic;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{InPath, find_node};
use super::model::Hardware;
use super::{ApiState, quarantine};
use crate::ek::{self, EkError, EkPath, EkPathCertificate, EkTrust, TpmIdentity};
use crate::error::{ApiError, Problem};
use crate::refusal::chain;
use crate::registrar::certify;

/// What is known of a node's EK.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct EkReport {
    /// Digest of the EK.
    pub node_id: String,
    /// The node's name; none: it waits in quarantine.
    pub name: Option<String>,
    /// What is on record with the registrar.
    pub hardware: Hardware,
    /// What the EK certificate says of the TPM; a claim, unless a role certifies it.
    pub tpm: TpmIdentity,
    /// The manufacturer's letters, where the certificate says them: `IFX`, `STM`, `NTC`, ….
    pub vendor: Option<String>,
    /// What the node sent, the EK's first; those that are no certificates left out.
    pub certificates: Vec<EkPathCertificate>,
    /// How each role that judges EKs judges it, by its own roots, now.
    pub judgements: Vec<EkJudgement>,
}

/// How one role judges an EK.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, ToSchema)]
pub struct EkJudgement {
    /// `registrar` or `tenant`.
    pub role: String,
    /// What it takes the hardware for.
    pub hardware: Hardware,
    /// How many certificates it trusts.
    pub root_count: usize,
    /// The path, if a trusted certificate vouches for the EK.
    pub path: Option<EkPath>,
    /// Else the short name of what is wrong: `ek_untrusted`, `ek_expired`, ….
    pub code: Option<String>,
    /// The same in a sentence.
    pub reason: Option<String>,
    /// What can be done about it.
    pub advice: Option<String>,
}

/// Explain a node's EK
///
/// For a node that enrolled, and for one in quarantine.
#[utoipa::path(
    get,
    path = "/api/v1/nodes/{node}/ek",
    tag = "nodes",
    params(("node" = String, Path, description = "Name, node id, or unambiguous prefix of it; of a node in quarantine its id")),
    responses(
        (status = 200, description = "What is known of it", body = EkReport),
        (status = 409, description = "`not_bound`", body = Problem, content_type = "application/problem+json"),
        (status = "default", description = "What went wrong", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(crate) async fn explain_ek(
    State(state): State<ApiState>,
    InPath(wanted): InPath<String>,
) -> Result<Json<EkReport>, ApiError> {
    let (node_id, name, by_id, recorded, ek_public, ek_chain) =
        match find_node(&**state.app.tenant.store(), &wanted).await {
            Ok(node) => {
                let binding = match node.node_id {
                    Some(node_id) => state.app.registrar.store().binding(node_id).await?,
                    None => None,
                };
                let binding = binding.ok_or_else(|| {
                    ApiError::conflict("not_bound", format!("{} has not enrolled yet: its EK is not known.", node.name))
                })?;
                let by_id = node.join_id.is_none();
                (binding.node_id, Some(node.name), by_id, binding.hardware, binding.ek_public, binding.ek_chain)
            }
            Err(unknown) => match quarantine::find(&state, &wanted).await {
                Ok(waiting) => (waiting.node_id, None, false, waiting.hardware, waiting.ek_public, waiting.ek_chain),
                Err(_) => return Err(unknown),
            },
        };
    let (registrar, tenant) = (state.app.registrar.ek_trust().clone(), state.app.tenant.ek_trust().clone());
    // Signatures keep a thread busy.
    let work = move || {
        report(
            node_id,
            name,
            by_id,
            quarantine::hardware(recorded),
            &ek_public,
            &ek_chain,
            [("registrar", &registrar), ("tenant", &tenant)],
        )
    };
    let report = tokio::task::spawn_blocking(work).await;
    Ok(Json(report.map_err(|_| crate::store::StoreError::Corrupt("EK"))?))
}

fn report(
    node_id: NodeId,
    name: Option<String>,
    by_id: bool,
    hardware: Hardware,
    ek_public: &[u8],
    ek_chain: &[Vec<u8>],
    roles: [(&str, &EkTrust); 2],
) -> EkReport {
    let described: Vec<_> =
        ek_chain.iter().enumerate().filter_map(|(at, der)| ek::describe(der, at + 1).ok()).collect();
    let tpm = ek_chain.first().and_then(|der| ek::describe(der, 1).ok()).map(|(_, tpm)| tpm).unwrap_or_default();
    let ek_public = TpmtPublic::decode(ek_public);
    let judge = |(role, trust): (&str, &EkTrust)| {
        let roots = trust.roots();
        let judged = match &ek_public {
            Ok(ek_public) => certify(&roots, ek_chain, ek_public),
            Err(_) => Err(EkError::NotAKey),
        };
        let role = role.to_owned();
        let root_count = roots.count();
        match judged {
            Ok(path) => EkJudgement {
                role,
                hardware: Hardware::Certified { issuer: path.issuer().to_owned() },
                root_count,
                path: Some(path),
                code: None,
                reason: None,
                advice: None,
            },
            Err(error) => EkJudgement {
                role,
                hardware: if by_id { Hardware::AllowListed } else { Hardware::Unproven },
                root_count,
                path: None,
                code: Some(error.code().to_owned()),
                reason: Some(chain(&error)),
                advice: Some(error.advice().to_owned()),
            },
        }
    };
    EkReport {
        node_id: node_id.to_string(),
        name,
        hardware,
        vendor: tpm.vendor(),
        tpm,
        certificates: described.into_iter().map(|(certificate, _)| certificate).collect(),
        judgements: roles.into_iter().map(judge).collect(),
    }
}
