//! EK certificates and the path to a trusted one.

use anyhow::Result;

use super::super::Corpus;
use super::super::machine::{Input, Keys, ek_input};
use super::super::x509::{self, Certificate, Sign};

const ROOT: &str = "corpus EK root";
const ISSUING: &str = "corpus EK issuing CA";

struct Chain<'k> {
    keys: &'k Keys,
    root: Certificate,
    issuing: Certificate,
    leaf: Certificate,
}

impl<'k> Chain<'k> {
    fn new(keys: &'k Keys) -> Self {
        Self {
            keys,
            root: Certificate::ca(ROOT, ROOT, &keys.root, None),
            issuing: Certificate::ca(ISSUING, ROOT, &keys.issuing, Some(0)),
            leaf: Certificate::ek(ISSUING, &keys.ek),
        }
    }

    fn signed(&self) -> Result<[Vec<u8>; 3]> {
        Ok([self.leaf.sign(&self.keys.issuing)?, self.issuing.sign(&self.keys.root)?, self.root.sign(&self.keys.root)?])
    }

    fn input(&self) -> Result<Input> {
        let [leaf, issuing, root] = self.signed()?;
        Ok(ek_input(&[leaf, issuing], &[root]))
    }
}

pub(super) fn add(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    leaf(corpus, keys)?;
    path(corpus, keys)?;
    form(corpus, keys)
}

type Change = fn(&mut Certificate);

fn leaf(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let of = |change: Change| {
        let mut chain = Chain::new(keys);
        change(&mut chain.leaf);
        chain.input()
    };
    corpus.pass("good", "an EK certificate, its issuing CA, and the root trusted", of(|_| {})?);
    corpus.pass(
        "good-usage-left-out",
        "key usage and extended key usage left out",
        of(|leaf| {
            leaf.extensions.retain(|(id, ..)| ![[2, 5, 29, 15], [2, 5, 29, 37]].iter().any(|of| *id == x509::oid(of)));
        })?,
    );
    corpus.pass(
        "good-policies",
        "critical certificatePolicies, as vendors have them",
        of(|leaf| {
            let policies = x509::sequence(&[x509::sequence(&[x509::oid(&[2, 23, 133, 2, 99])])]);
            leaf.set(&[2, 5, 29, 32], true, policies);
        })?,
    );
    let mut chain = Chain::new(keys);
    chain.leaf = Certificate::ek(ISSUING, &keys.rsa2048);
    corpus.pass("good-rsa", "the EK is an RSA key", chain.input()?);
    let cases: [(&str, &str, Change, &str); 12] = [
        ("expired", "the EK certificate has expired", |leaf| leaf.not_after = 2025, "ek_expired"),
        ("not-yet-valid", "the EK certificate is not valid yet", |leaf| leaf.not_before = 2030, "ek_not_yet_valid"),
        (
            "extended-usage-other",
            "its extended key usage is TLS server, not tcg-kp-EKCertificate",
            |leaf| leaf.set_extended_key_usage(&[1, 3, 6, 1, 5, 5, 7, 3, 1]),
            "ek_extended_key_usage",
        ),
        (
            "extended-usage-ak",
            "its extended key usage is tcg-kp-AIKCertificate",
            |leaf| leaf.set_extended_key_usage(&[2, 23, 133, 8, 3]),
            "ek_extended_key_usage",
        ),
        ("is-ca", "the EK certificate is a CA's", |leaf| leaf.set_basic_constraints(true, None), "ek_leaf_is_ca"),
        (
            "key-usage",
            "its key usage is digitalSignature: a key that signs, not an EK",
            |leaf| leaf.set_key_usage(&[0x07, 0x80]),
            "ek_key_usage",
        ),
        (
            "unknown-critical",
            "a critical extension that nobody knows",
            |leaf| leaf.set(&[1, 3, 6, 1, 4, 1, 99999, 1], true, vec![5, 0]),
            "ek_unknown_critical",
        ),
        (
            "name-constraints",
            "critical name constraints, which are not processed",
            |leaf| leaf.set(&[2, 5, 29, 30], true, x509::sequence(&[])),
            "ek_unknown_critical",
        ),
        ("no-subject", "empty subject and no subjectAltName", Certificate::remove_alternative_name, "ek_no_subject"),
        (
            "alternative-name-not-critical",
            "empty subject and a subjectAltName that is not critical",
            |leaf| leaf.set_alternative_name(false, Some(false)),
            "ek_no_subject",
        ),
        (
            "no-directory-name",
            "the critical subjectAltName has a DNS name only",
            |leaf| leaf.set_alternative_name(true, None),
            "ek_no_directory_name",
        ),
        (
            "set-order",
            "a SET is not in the order of DER",
            |leaf| leaf.set_alternative_name(true, Some(true)),
            "ek_not_der",
        ),
    ];
    for (name, what, change, reason) in cases {
        corpus.fail(name, what, of(change)?, "ek_certificate", reason);
    }
    Ok(())
}

fn path(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let of = |change: &dyn Fn(&mut Chain<'_>)| {
        let mut chain = Chain::new(keys);
        change(&mut chain);
        chain.input()
    };
    let good = Chain::new(keys).signed()?;
    let [leaf, issuing, root] = &good;
    let stranger = Certificate::ca("corpus stranger", "corpus stranger", &keys.other, None).sign(&keys.other)?;
    corpus.pass(
        "good-issuing-trusted",
        "the issuing CA itself is trusted",
        ek_input(std::slice::from_ref(leaf), std::slice::from_ref(issuing)),
    );
    corpus.pass(
        "good-any-order",
        "certificates of the path in any order, and one that is not of it",
        ek_input(&[leaf.clone(), stranger.clone(), issuing.clone()], std::slice::from_ref(root)),
    );
    corpus.fail(
        "untrusted",
        "the root is not trusted",
        ek_input(&[leaf.clone(), issuing.clone()], std::slice::from_ref(&stranger)),
        "ek_certificate",
        "ek_untrusted",
    );
    corpus.fail(
        "root-sent-along",
        "the root is sent along, and another is trusted",
        ek_input(&[leaf.clone(), issuing.clone(), root.clone()], &[stranger]),
        "ek_certificate",
        "ek_untrusted",
    );
    corpus.fail(
        "issuing-missing",
        "the issuing CA's certificate is missing",
        ek_input(std::slice::from_ref(leaf), std::slice::from_ref(root)),
        "ek_certificate",
        "ek_untrusted",
    );
    let self_signed = {
        let mut chain = Chain::new(keys);
        chain.leaf.issuer = chain.leaf.subject.clone();
        chain.leaf.subject = x509::name("corpus EK");
        chain.leaf.issuer.clone_from(&chain.leaf.subject);
        ek_input(&[chain.leaf.sign(&keys.ek)?], std::slice::from_ref(root))
    };
    corpus.fail("self-signed", "the EK signed its certificate itself", self_signed, "ek_certificate", "ek_untrusted");
    type PathChange = fn(&mut Chain<'_>);
    let cases: [(&str, &str, PathChange, &str); 9] = [
        (
            "issuing-expired",
            "the issuing CA's certificate has expired",
            |chain| chain.issuing.not_after = 2025,
            "ek_expired",
        ),
        ("root-expired", "the root's certificate has expired", |chain| chain.root.not_after = 2025, "ek_expired"),
        (
            "issuer-no-ca",
            "the issuer is no CA",
            |chain| chain.issuing.set_basic_constraints(false, None),
            "ek_not_a_ca",
        ),
        (
            "issuer-without-constraints",
            "the issuer has no basicConstraints",
            |chain| chain.issuing.remove_basic_constraints(),
            "ek_not_a_ca",
        ),
        (
            "no-cert-sign",
            "the issuer's key usage does not allow to sign certificates",
            |chain| chain.issuing.set_key_usage(&[0x01, 0x02]),
            "ek_no_cert_sign",
        ),
        (
            "path-too-long",
            "the root allows no CA below it",
            |chain| chain.root.set_basic_constraints(true, Some(0)),
            "ek_path_too_long",
        ),
        (
            "issuer-unknown-critical",
            "the issuer has a critical extension that nobody knows",
            |chain| chain.issuing.set(&[1, 3, 6, 1, 4, 1, 99999, 1], true, vec![5, 0]),
            "ek_unknown_critical",
        ),
        (
            "name-mismatch",
            "the certificate names another issuer than the one that signed",
            |chain| chain.leaf.issuer = x509::name("corpus other CA"),
            "ek_untrusted",
        ),
        (
            "no-issuer-name",
            "the certificate names no issuer",
            |chain| chain.leaf.issuer = x509::name(""),
            "ek_no_issuer_name",
        ),
    ];
    for (name, what, change, reason) in cases {
        corpus.fail(name, what, of(&change)?, "ek_certificate", reason);
    }
    let forged = Chain::new(keys).leaf.sign(&keys.other)?;
    corpus.fail(
        "forged",
        "another key signed in the issuer's name",
        ek_input(&[forged, issuing.clone()], std::slice::from_ref(root)),
        "ek_certificate",
        "ek_bad_signature",
    );
    let forged_issuing = Certificate::ca(ISSUING, ROOT, &keys.issuing, Some(0)).sign(&keys.other)?;
    corpus.fail(
        "issuing-forged",
        "another key signed the issuing CA's certificate in the root's name",
        ek_input(&[leaf.clone(), forged_issuing], std::slice::from_ref(root)),
        "ek_certificate",
        "ek_bad_signature",
    );
    let mut flipped = leaf.clone();
    if let Some(last) = flipped.last_mut() {
        *last ^= 1;
    }
    corpus.fail(
        "signature-bit",
        "a bit of the signature is flipped",
        ek_input(&[flipped, issuing.clone()], std::slice::from_ref(root)),
        "ek_certificate",
        "ek_bad_signature",
    );
    let mut sha1 = Chain::new(keys);
    sha1.leaf.sign = Sign::EcdsaSha1;
    corpus.fail("sha1", "the certificate is signed with SHA-1", sha1.input()?, "ek_certificate", "ek_sha1_signature");
    // An RSA signature where the issuer's key is on a curve.
    let mut confused = Chain::new(keys).leaf;
    confused.sign = Sign::RsaSha256;
    let confused = confused.sign(&keys.rsa2048)?;
    corpus.fail(
        "rsa-by-ecc-issuer",
        "an RSA signature by an issuer whose key is on a curve",
        ek_input(&[confused, issuing.clone()], std::slice::from_ref(root)),
        "ek_certificate",
        "ek_unsupported_signature",
    );
    let many: Vec<Vec<u8>> = [leaf.clone(), issuing.clone()].into_iter().chain(vec![root.clone(); 3]).collect();
    corpus.fail(
        "too-many",
        "more certificates than any TPM holds",
        ek_input(&many, std::slice::from_ref(root)),
        "ek_certificate",
        "ek_too_many_certificates",
    );
    Ok(())
}

fn form(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let chain = Chain::new(keys);
    let [leaf, issuing, _] = chain.signed()?;
    let alone = |der: &[u8]| {
        let mut input = ek_input(&[], std::slice::from_ref(&issuing));
        input.file("--ek-cert", "ek.der", der);
        input
    };
    corpus.pass("good-der", "the certificate in DER", alone(&leaf));
    corpus.error(
        "trailing",
        "a byte after the certificate",
        alone(&[leaf.as_slice(), &[0]].concat()),
        "ek_trailing_bytes",
    );
    for (name, len) in [("header", 3), ("tbs", 100), ("end", leaf.len() - 1)] {
        let what = format!("the certificate is cut ({name})");
        corpus.error(&format!("cut-{name}"), &what, alone(&leaf[..len]), "ek_malformed");
    }
    corpus.error("no-certificate", "no certificate at all", alone(b"EK certificate"), "ek_malformed");
    let mut version = Chain::new(keys).leaf;
    version.version = 0;
    corpus.error("version-1", "a certificate of version 1", alone(&version.sign(&keys.issuing)?), "ek_not_version_3");
    let mismatch = chain.leaf.sign_named(&keys.issuing, Sign::EcdsaSha1)?;
    corpus.error(
        "algorithm-mismatch",
        "another signature algorithm outside than inside what was signed",
        alone(&mismatch),
        "ek_algorithm_mismatch",
    );
    let mut doubled = Chain::new(keys).leaf;
    let again = doubled.extensions.last().cloned();
    doubled.extensions.extend(again);
    corpus.error(
        "doubled-extension",
        "an extension stands there twice",
        alone(&doubled.sign(&keys.issuing)?),
        "ek_doubled_extension",
    );
    let mut indefinite = leaf.clone();
    indefinite[1] = 0x80;
    corpus.error("indefinite-length", "an indefinite length, which is BER", alone(&indefinite), "ek_malformed");
    let mut input = ek_input(&[], std::slice::from_ref(&issuing));
    input.file("--ek-cert", "ek.pem", b"-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n");
    corpus.error("pem-broken", "a PEM whose content is no Base64", input, "ek_certificate_unreadable");
    let mut input = ek_input(std::slice::from_ref(&leaf), std::slice::from_ref(&issuing));
    input.file("--ek-roots", "ek-roots.pem", b"no certificate\n");
    corpus.error("roots-unreadable", "the trusted certificates cannot be read", input, "ek_roots_unreadable");
    Ok(())
}
