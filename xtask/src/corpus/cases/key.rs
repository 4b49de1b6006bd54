//! The attestation key's public area.

use anyhow::Result;
use protocol::tpm::alg::HashAlg;

use super::super::Corpus;
use super::super::machine::{Input, Keys, Machine};
use super::super::tpm::{self, AK_ATTRIBUTES, Area, ECDSA, Key, Scheme, tpm2b};

pub(super) fn add(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    template(corpus, keys)?;
    form(corpus, keys)
}

fn of(key: &Key, scheme: Scheme, change: impl Fn(&mut Area)) -> Result<Input> {
    let mut machine = Machine::plain(key, scheme)?;
    // The qualified signer is made of the area as it then is: the key is another one, and its quotes are its own.
    change(&mut machine.area);
    machine.input()
}

fn template(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let (key, scheme) = (&keys.p256, keys.p256.scheme());
    for (bit, name, reason) in [
        (1, "fixedTPM", "ak_not_fixed_tpm"),
        (4, "fixedParent", "ak_not_fixed_parent"),
        (5, "sensitiveDataOrigin", "ak_not_sensitive_data_origin"),
        (6, "userWithAuth", "ak_not_user_with_auth"),
        (10, "noDA", "ak_not_no_da"),
        (16, "restricted", "ak_not_restricted"),
        (18, "sign", "ak_not_sign"),
    ] {
        let what = format!("the key has not the attribute {name}");
        let input = of(key, scheme, |area| area.attributes = AK_ATTRIBUTES & !(1 << bit))?;
        corpus.fail(&format!("no-{name}"), &what, input, "ak", reason);
    }
    let input = of(key, scheme, |area| area.attributes = AK_ATTRIBUTES | 1 << 17)?;
    corpus.fail("decrypt", "the key decrypts too", input, "ak", "ak_decrypt");
    for (bit, name) in
        [(2, "stClear"), (7, "adminWithPolicy"), (11, "encryptedDuplication"), (19, "x509sign"), (31, "reserved")]
    {
        let what = format!("the key has the attribute {name}, which ours have not");
        let input = of(key, scheme, |area| area.attributes = AK_ATTRIBUTES | 1 << bit)?;
        corpus.fail(&format!("has-{name}"), &what, input, "ak", "ak_other_attributes");
    }
    let input = of(key, scheme, |area| area.policy = vec![0x11; 32])?;
    corpus.fail("auth-policy", "the key has a policy", input, "ak", "ak_auth_policy");
    for hash in [HashAlg::Sha1, HashAlg::Sha384, HashAlg::Sha512] {
        let what = format!("the key's Name is made with {hash}");
        let input = of(key, scheme, |area| area.name_alg = hash.id())?;
        corpus.fail(&format!("name-alg-{hash}"), &what, input, "ak", "ak_wrong_name_alg");
    }
    let aes = [0x0006u16.to_be_bytes(), 128u16.to_be_bytes(), 0x0043u16.to_be_bytes()].concat();
    let input = of(key, scheme, |area| area.symmetric.clone_from(&aes))?;
    corpus.fail("symmetric", "the key has a symmetric algorithm, as storage keys have", input, "ak", "ak_symmetric");
    let input = of(key, scheme, |area| area.scheme = vec![0, 0x10])?;
    corpus.fail("scheme-null", "the key's scheme is left open", input, "ak", "ak_wrong_scheme");
    let input = of(key, Scheme::new(ECDSA, HashAlg::Sha384), |_| {})?;
    corpus.fail("scheme-sha384", "a P-256 key that signs with SHA-384", input, "ak", "ak_wrong_scheme");
    let input = of(&keys.p384, Scheme::new(ECDSA, HashAlg::Sha256), |_| {})?;
    corpus.fail("p384-scheme-sha256", "a P-384 key that signs with SHA-256", input, "ak", "ak_wrong_scheme");
    let input = of(&keys.rsa2048, Scheme::new(tpm::RSAPSS, HashAlg::Sha256), |_| {})?;
    corpus.fail("scheme-pss", "an RSA key that signs by RSAPSS", input, "ak", "ak_wrong_scheme");
    let rsa = keys.rsa2048.scheme();
    let input = of(&keys.rsa2048, rsa, |area| area.details[1].1 = 65537u32.to_be_bytes().to_vec())?;
    corpus.fail("exponent", "the exponent is written out, which makes another Name", input, "ak", "ak_wrong_exponent");
    corpus.fail(
        "rsa-3072",
        "an RSA key of another size than the template's",
        of(&keys.rsa3072, rsa, |_| {})?,
        "ak",
        "ak_wrong_size",
    );
    corpus.fail(
        "rsa-4096",
        "an RSA key of a size that no template has",
        of(&keys.rsa4096, rsa, |_| {})?,
        "ak",
        "ak_wrong_type",
    );
    // Not ours, and no fault in somebody else's.
    let mut foreign = Machine::plain(key, scheme)?;
    foreign.area.attributes = AK_ATTRIBUTES | 1 << 7;
    foreign.area.policy = vec![0x11; 32];
    foreign.node_rules = false;
    corpus.pass("good-foreign", "another template, where our nodes' rules are not asked for", foreign.input()?);
    Ok(())
}

fn form(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let (key, scheme) = (&keys.p256, keys.p256.scheme());
    let machine = Machine::plain(key, scheme)?;
    let area = &machine.area;
    let with = |bytes: &[u8]| -> Result<Input> {
        let mut input = machine.input()?;
        input.file("--ak", "ak.tpm2b", bytes);
        Ok(input)
    };
    let changed = |change: &dyn Fn(&mut Area)| {
        let mut area = area.clone();
        change(&mut area);
        area.tpm2b()
    };
    for (at, (field, bytes)) in tpm::cuts(&area.parts()).into_iter().enumerate() {
        // A type alone is not seen to be a public area.
        let what = format!("the TPMT_PUBLIC ends within {field}, and the TPM2B with it");
        corpus.error(&format!("cut-{at:02}-{field}"), &what, with(&tpm2b(&bytes))?, "ak_truncated");
    }
    let modulus = keys.rsa2048.area(keys.rsa2048.scheme());
    for (at, (field, bytes)) in tpm::cuts(&modulus.parts()).into_iter().enumerate().skip(6) {
        let what = format!("the TPMT_PUBLIC of an RSA key ends within {field}");
        corpus.error(&format!("rsa-cut-{at:02}-{field}"), &what, with(&tpm2b(&bytes))?, "ak_truncated");
    }
    let whole = area.tpm2b();
    corpus.error(
        "size-larger",
        "the TPM2B's size is larger than what follows",
        with(&[&(whole.len() as u16).to_be_bytes()[..], &area.encode()].concat())?,
        "ak_truncated",
    );
    corpus.error(
        "size-smaller",
        "the TPM2B's size is smaller than what follows",
        with(&[&(whole.len() as u16 - 3).to_be_bytes()[..], &area.encode()].concat())?,
        "ak_trailing_bytes",
    );
    corpus.error(
        "size-zero",
        "the TPM2B's size is zero",
        with(&[&[0, 0][..], &area.encode()].concat())?,
        "ak_trailing_bytes",
    );
    corpus.error(
        "trailing",
        "a byte after the TPM2B_PUBLIC",
        with(&[whole.as_slice(), &[0]].concat())?,
        "ak_trailing_bytes",
    );
    corpus.error(
        "trailing-inside",
        "a byte after the TPMT_PUBLIC, within the TPM2B",
        with(&tpm2b(&[area.encode(), vec![0]].concat()))?,
        "ak_trailing_bytes",
    );
    corpus.error("empty", "the key's file is empty", with(&[])?, "ak_truncated");
    corpus.error(
        "policy-of-wrong-length",
        "authPolicy has another length than its hash",
        with(&changed(&|area| area.policy = vec![1; 31]))?,
        "ak_malformed",
    );
    corpus.error(
        "keyed-hash",
        "the key is a keyed hash: whoever verifies could sign",
        with(&changed(&|area| area.kind = 0x0008))?,
        "ak_unknown_type",
    );
    corpus.error(
        "sym-cipher",
        "the key is of a symmetric cipher",
        with(&changed(&|area| area.kind = 0x0025))?,
        "ak_unknown_type",
    );
    corpus.error(
        "ecdaa",
        "the key signs by ECDAA",
        with(&changed(&|area| area.scheme = vec![0, 0x1a, 0, 0x0b, 0, 1]))?,
        "ak_unknown_algorithm",
    );
    corpus.error(
        "kdf",
        "the key has a KDF",
        with(&changed(&|area| area.details[1].1 = vec![0, 0x20, 0, 0x0b]))?,
        "ak_unknown_algorithm",
    );
    for (name, curve) in [("p192", 1u16), ("bn-p256", 0x10), ("sm2", 0x20), ("zero", 0)] {
        let input = with(&changed(&|area| area.details[0].1 = curve.to_be_bytes().to_vec()))?;
        corpus.error(
            &format!("curve-{name}"),
            "the key's curve is none of P-256, P-384, P-521",
            input,
            "ak_unsupported_curve",
        );
    }
    corpus.error(
        "curve-p384",
        "a P-256 key's point is said to be on P-384",
        with(&changed(&|area| area.details[0].1 = vec![0, 4]))?,
        "ak_not_on_curve",
    );
    corpus.error(
        "point-off-curve",
        "the point is not on the curve",
        with(&changed(&|area| area.unique[1].1[31] ^= 1))?,
        "ak_not_on_curve",
    );
    corpus.error(
        "point-at-zero",
        "x and y are zero",
        with(&changed(&|area| area.unique = vec![("x", vec![0; 32]), ("y", vec![0; 32])]))?,
        "ak_not_a_key",
    );
    corpus.error(
        "point-empty",
        "the public area is a template's, without a key",
        with(&changed(&|area| area.unique = vec![("x", Vec::new()), ("y", Vec::new())]))?,
        "ak_not_a_key",
    );
    corpus.error(
        "point-too-long",
        "x is longer than the curve's",
        with(&changed(&|area| area.unique[0].1 = vec![1; 33]))?,
        "ak_not_a_key",
    );
    let rsa = |change: &dyn Fn(&mut Area)| {
        let mut area = modulus.clone();
        change(&mut area);
        area.tpm2b()
    };
    corpus.error(
        "rsa-1024",
        "an RSA key of 1024 bits",
        with(&rsa(&|area| area.details[0].1 = 1024u16.to_be_bytes().to_vec()))?,
        "ak_unsupported_size",
    );
    corpus.error("rsa-even", "an even RSA modulus", with(&rsa(&|area| area.unique[0].1[255] &= 0xfe))?, "ak_not_a_key");
    corpus.error(
        "rsa-short-modulus",
        "an RSA modulus shorter than its bits",
        with(&rsa(&|area| area.unique[0].1.truncate(255)))?,
        "ak_not_a_key",
    );
    corpus.error(
        "rsa-top-bit",
        "an RSA modulus whose top bit is clear",
        with(&rsa(&|area| area.unique[0].1[0] &= 0x7f))?,
        "ak_not_a_key",
    );
    corpus.error(
        "rsa-exponent-even",
        "an even RSA exponent",
        with(&rsa(&|area| area.details[1].1 = vec![0, 0, 0, 4]))?,
        "ak_not_a_key",
    );
    corpus.error(
        "rsa-exponent-one",
        "an RSA exponent of 1: every signature is its own message",
        with(&rsa(&|area| area.details[1].1 = vec![0, 0, 0, 1]))?,
        "ak_not_a_key",
    );
    let mut pem = machine.input()?;
    pem.file("--ak", "ak.pem", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n");
    corpus.error("pem-no-key", "a PEM that holds no key", pem, "ak_bad_spki");
    let mut private = machine.input()?;
    private.file("--ak", "ak.pem", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    corpus.error("pem-private", "a PEM of a private key", private, "ak_bad_pem");
    Ok(())
}
