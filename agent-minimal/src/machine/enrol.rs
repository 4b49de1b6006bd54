//! `hello`, `enrol`, `activate`: until the gateway knows this AK for this EK's.

use protocol::{
    bytes::{Array, Bytes},
    coap::route::Route,
    crypto::{bind, secret::CredentialSecret},
    id::{EnrolmentId, Role},
    message::{
        self,
        enrol::{Activate, Enrol, EnrolAnswer, Hello, HelloAnswer, JoinProof},
    },
};

use super::{Error, Link, Output};

/// Where enrolment stands.
#[derive(Debug)]
pub(super) enum Enrolment {
    /// `hello` was sent.
    AwaitHello,
    /// `enrol` was sent.
    AwaitEnrol,
    /// The TPM has the credential.
    AwaitActivation(EnrolmentId),
    /// `activate` was sent.
    AwaitActivate,
    /// The registrar knows the pair; challenges may come.
    Bound,
}

impl Enrolment {
    pub(super) fn begin(link: &mut Link<'_>) -> Result<Self, Error> {
        let facts = link.facts;
        link.post(
            Route::Hello,
            &Hello {
                version: message::VERSION,
                node_id: facts.node_id,
                ak_name: Array(facts.ak_name),
                wants: facts.wants,
                has_boot_log: facts.has_boot_log,
                has_ima_log: facts.has_ima_log,
            },
        )?;
        Ok(Self::AwaitHello)
    }

    pub(super) fn hello_answered(&mut self, link: &mut Link<'_>, answer: HelloAnswer) -> Result<(), Error> {
        let Self::AwaitHello = self else { return Err(Error::OutOfOrder { state: self.name() }) };
        *self = match answer {
            HelloAnswer::Known => Self::Bound,
            HelloAnswer::Enrol => {
                link.post(Route::Enrol, &enrol(link)?)?;
                Self::AwaitEnrol
            }
        };
        Ok(())
    }

    #[inline(never)]
    pub(super) fn enrol_answered(&mut self, link: &mut Link<'_>, answer: EnrolAnswer) -> Result<(), Error> {
        let Self::AwaitEnrol = self else { return Err(Error::OutOfOrder { state: self.name() }) };
        *self = Self::AwaitActivation(answer.enrolment_id);
        link.outputs.push_back(Output::Activate(answer.credential));
        Ok(())
    }

    #[inline(never)]
    pub(super) fn activated(&mut self, link: &mut Link<'_>, secret: &CredentialSecret) -> Result<(), Error> {
        let Self::AwaitActivation(enrolment_id) = *self else {
            return Err(Error::OutOfOrder { state: self.name() });
        };
        let facts = link.facts;
        let proof =
            bind::activate_proof(secret, enrolment_id, facts.node_id, &facts.server_certificate, &facts.ak_name);
        link.post(Route::Activate, &Activate { enrolment_id, proof: Array(proof) })?;
        *self = Self::AwaitActivate;
        Ok(())
    }

    pub(super) fn bound(&mut self) -> Result<(), Error> {
        let Self::AwaitActivate = self else { return Err(Error::OutOfOrder { state: self.name() }) };
        *self = Self::Bound;
        Ok(())
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::AwaitHello => "AwaitHello",
            Self::AwaitEnrol => "AwaitEnrol",
            Self::AwaitActivation(_) => "AwaitActivation",
            Self::AwaitActivate => "AwaitActivate",
            Self::Bound => "Bound",
        }
    }
}

#[inline(never)]
fn enrol(link: &Link<'_>) -> Result<Enrol, Error> {
    let facts = link.facts;
    let mut ek_chain = heapless::Vec::new();
    for certificate in &facts.ek_chain {
        // More certificates than the message takes: the registrar has intermediates of its own.
        let Ok(certificate) = Bytes::new(certificate) else { break };
        if ek_chain.push(certificate).is_err() {
            break;
        }
    }
    let join = facts.join.as_ref().map(|token| {
        let proof = |role| Array(token.key(role).proof(facts.node_id, &facts.ak_name, &facts.server_certificate));
        JoinProof { join_id: token.id(), registrar: proof(Role::Registrar), tenant: proof(Role::Tenant) }
    });
    Ok(Enrol { ek_public: Bytes::new(&facts.ek_public)?, ek_chain, ak_public: Bytes::new(&facts.ak_public)?, join })
}
