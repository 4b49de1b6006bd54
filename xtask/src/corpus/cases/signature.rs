//! The signature: its form, its scheme, its numbers.

use anyhow::Result;
use protocol::tpm::alg::HashAlg;

use super::super::Corpus;
use super::super::machine::{Input, Keys, Machine};
use super::super::tpm::{self, ECDSA, Key, RSAPSS, RSASSA, Scheme, Signature};

/// The order of P-256 (FIPS 186-5, SP 800-186 §3.2.1.3).
const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";

/// The same evidence with the key in PEM: nothing then fixes its scheme, nor says how it was made.
fn bare(key: &Key, mut input: Input) -> Input {
    input.file("--ak", "ak.pem", key.pem().as_bytes());
    input
}

pub(super) fn add(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    form(corpus, keys)?;
    numbers(corpus, keys)?;
    rsa(corpus, keys)?;
    schemes(corpus, keys)
}

fn form(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    for (kind, key) in [("ecdsa", &keys.p256), ("rsassa", &keys.rsa2048)] {
        let machine = Machine::plain(key, key.scheme())?;
        let attest = machine.attest().encode();
        let signature = key.sign(&attest, machine.scheme)?;
        let with = |bytes: &[u8]| {
            let mut input = machine.input_signed(&attest, &signature);
            input.file("--signature", "signature.bin", bytes);
            input
        };
        let whole = signature.encode();
        for (at, (field, bytes)) in tpm::cuts(&signature.parts()).into_iter().enumerate() {
            let what = format!("the TPMT_SIGNATURE ends within {field}");
            corpus.error(&format!("{kind}-cut-{at}-{field}"), &what, with(&bytes), "signature_truncated");
        }
        let trailing = [whole.as_slice(), &[0]].concat();
        corpus.error(
            &format!("{kind}-trailing"),
            "a byte after the TPMT_SIGNATURE",
            with(&trailing),
            "signature_trailing_bytes",
        );
    }
    let machine = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let attest = machine.attest().encode();
    let signature = keys.p256.sign(&attest, machine.scheme)?;
    let with = |signature: &Signature| machine.input_signed(&attest, signature);
    let hmac = Signature { alg: 0x0005, ..signature.clone() };
    corpus.error(
        "unknown-scheme",
        "the scheme is HMAC, which proves nothing to others",
        with(&hmac),
        "signature_unknown_algorithm",
    );
    let null = Signature { alg: 0x0010, ..signature.clone() };
    corpus.error("null-scheme", "the scheme is TPM_ALG_NULL", with(&null), "signature_unknown_algorithm");
    let sm3 = Signature { hash: 0x0012, ..signature };
    corpus.error("unknown-hash", "the hash is SM3", with(&sm3), "signature_unknown_hash");
    Ok(())
}

fn numbers(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let attest = machine.attest().encode();
    let signature = keys.p256.sign(&attest, machine.scheme)?;
    let set = |at: usize, number: Vec<u8>| {
        let mut changed = signature.clone();
        changed.numbers[at].1 = number;
        machine.input_signed(&attest, &changed)
    };
    let order = hex::decode(ORDER)?;
    let mut above = order.clone();
    above[31] += 1;
    for (at, name) in [(0, "r"), (1, "s")] {
        for (how, number) in [
            ("zero", vec![0; 32]),
            ("empty", Vec::new()),
            ("order", order.clone()),
            ("order-and-one", above.clone()),
            ("ones", vec![0xff; 32]),
            ("of-33-bytes", [&[1][..], &signature.numbers[at].1].concat()),
        ] {
            let what = format!("{name} is out of range ({how})");
            corpus.fail(&format!("{name}-{how}"), &what, set(at, number), "signature", "signature_out_of_range");
        }
        let leading = [&[0; 4][..], &signature.numbers[at].1].concat();
        corpus.pass(&format!("good-{name}-leading-zeros"), &format!("{name} with zeros in front"), set(at, leading));
        corpus.error(
            &format!("{name}-of-200-bytes"),
            &format!("{name} has more bytes than any curve's"),
            set(at, vec![1; 200]),
            "signature_too_long",
        );
        let mut flipped = signature.numbers[at].1.clone();
        flipped[20] ^= 4;
        corpus.fail(
            &format!("{name}-bit"),
            &format!("a bit of {name} is flipped"),
            set(at, flipped),
            "signature",
            "bad_signature",
        );
    }
    let mut swapped = signature.clone();
    (swapped.numbers[0].1, swapped.numbers[1].1) = (signature.numbers[1].1.clone(), signature.numbers[0].1.clone());
    corpus.fail(
        "r-and-s-swapped",
        "r and s are swapped",
        machine.input_signed(&attest, &swapped),
        "signature",
        "bad_signature",
    );
    for (name, high) in [("good-high-s", true), ("good-low-s", false)] {
        let twin = Key::other_s(&signature, high)?;
        corpus.pass(
            name,
            "one of the two signatures that are equally good; TPMs make both",
            machine.input_signed(&attest, &twin),
        );
    }
    let mut changed = machine.attest();
    changed.clock += 1;
    corpus.fail(
        "attest-bit",
        "what was signed was changed afterwards: the clock",
        machine.input_signed(&changed.encode(), &signature),
        "signature",
        "bad_signature",
    );
    let forged = keys.other.sign(&attest, machine.scheme)?;
    corpus.fail(
        "other-key",
        "another key signed",
        machine.input_signed(&attest, &forged),
        "signature",
        "bad_signature",
    );
    Ok(())
}

fn rsa(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    let machine = Machine::plain(&keys.rsa2048, keys.rsa2048.scheme())?;
    let attest = machine.attest().encode();
    let signature = keys.rsa2048.sign(&attest, machine.scheme)?;
    let set = |number: Vec<u8>| {
        let mut changed = signature.clone();
        changed.numbers[0].1 = number;
        machine.input_signed(&attest, &changed)
    };
    let good = &signature.numbers[0].1;
    corpus.fail(
        "rsa-shorter",
        "the RSA signature is a byte shorter than the modulus",
        set(good[1..].to_vec()),
        "signature",
        "signature_length",
    );
    corpus.fail(
        "rsa-longer",
        "the RSA signature has a zero in front and is longer than the modulus",
        set([&[0][..], good].concat()),
        "signature",
        "signature_length",
    );
    corpus.fail("rsa-empty", "the RSA signature is empty", set(Vec::new()), "signature", "signature_length");
    corpus.fail("rsa-zero", "the RSA signature is zero", set(vec![0; 256]), "signature", "bad_signature");
    corpus.fail(
        "rsa-one",
        "the RSA signature is one",
        set([vec![0; 255], vec![1]].concat()),
        "signature",
        "bad_signature",
    );
    corpus.fail(
        "rsa-ones",
        "the RSA signature is not below the modulus",
        set(vec![0xff; 256]),
        "signature",
        "bad_signature",
    );
    corpus.error(
        "rsa-of-513-bytes",
        "the RSA signature is longer than any key's",
        set(vec![1; 513]),
        "signature_too_long",
    );
    let mut flipped = good.clone();
    flipped[200] ^= 1;
    corpus.fail("rsa-bit", "a bit of the RSA signature is flipped", set(flipped), "signature", "bad_signature");
    for (name, key) in [("rsa2048", &keys.rsa2048), ("rsa3072", &keys.rsa3072), ("rsa4096", &keys.rsa4096)] {
        for (scheme, alg) in [("rsassa", RSASSA), ("rsapss", RSAPSS)] {
            for hash in [HashAlg::Sha256, HashAlg::Sha384, HashAlg::Sha512] {
                let mut machine = Machine::plain(key, Scheme::new(alg, hash))?;
                machine.node_rules = false;
                corpus.pass(
                    &format!("good-{name}-{scheme}-{hash}"),
                    &format!("{scheme} with {hash} by {name}, which is not our template"),
                    machine.input()?,
                );
            }
        }
    }
    for (name, salt) in [("hash-length", 32), ("empty", 0), ("one-byte", 1)] {
        let mut scheme = Scheme::new(RSAPSS, HashAlg::Sha256);
        scheme.salt = Some(salt);
        let mut machine = Machine::plain(&keys.rsa2048, scheme)?;
        machine.node_rules = false;
        corpus.pass(&format!("good-pss-salt-{name}"), "RSAPSS with another length of salt", machine.input()?);
    }
    Ok(())
}

fn schemes(corpus: &mut Corpus, keys: &Keys) -> Result<()> {
    for (name, key, hash) in
        [("p256-sha512", &keys.p256, HashAlg::Sha512), ("p384-sha256", &keys.p384, HashAlg::Sha256)]
    {
        let mut machine = Machine::plain(key, Scheme::new(ECDSA, hash))?;
        machine.node_rules = false;
        corpus.pass(&format!("good-{name}"), "ECDSA with a hash of another length than the curve's", machine.input()?);
    }
    // The key's area fixes one scheme, and another signed.
    let other = |key, fixed: Scheme, found: Scheme| -> Result<Input> {
        let mut machine = Machine::plain(key, found)?;
        machine.area = Key::area(key, fixed);
        machine.input()
    };
    let sha256 = HashAlg::Sha256;
    for (name, what, key, fixed, found) in [
        (
            "rsassa-key-signs-pss",
            "the key signs by RSASSA only, and this is RSAPSS",
            &keys.rsa2048,
            Scheme::new(RSASSA, sha256),
            Scheme::new(RSAPSS, sha256),
        ),
        (
            "rsassa-key-signs-sha384",
            "the key signs with SHA-256 only, and this is with SHA-384",
            &keys.rsa2048,
            Scheme::new(RSASSA, sha256),
            Scheme::new(RSASSA, HashAlg::Sha384),
        ),
        (
            "rsassa-key-signs-sha1",
            "the key signs with SHA-256 only, and this is with SHA-1",
            &keys.rsa2048,
            Scheme::new(RSASSA, sha256),
            Scheme::new(RSASSA, HashAlg::Sha1),
        ),
        (
            "p256-key-signs-sha384",
            "the key signs with SHA-256 only, and this is with SHA-384",
            &keys.p256,
            Scheme::new(ECDSA, sha256),
            Scheme::new(ECDSA, HashAlg::Sha384),
        ),
    ] {
        // The digest's hash is the signature's, and is told from its length: nothing else is wrong.
        corpus.fail(name, what, other(key, fixed, found)?, "signature", "signature_scheme_mismatch");
    }
    let rsa = Machine::plain(&keys.rsa2048, keys.rsa2048.scheme())?;
    let attest = rsa.attest().encode();
    let by_rsa = keys.rsa2048.sign(&attest, rsa.scheme)?;
    let by_ecc = keys.p256.sign(&attest, keys.p256.scheme())?;
    corpus.fail(
        "ecdsa-of-rsa-key",
        "an ECDSA signature of an RSA key",
        rsa.input_signed(&attest, &by_ecc),
        "signature",
        "signature_key_type",
    );
    let ecc = Machine::plain(&keys.p256, keys.p256.scheme())?;
    let attest_ecc = ecc.attest().encode();
    corpus.fail(
        "rsassa-of-ecc-key",
        "an RSA signature of an ECC key",
        ecc.input_signed(&attest_ecc, &by_rsa),
        "signature",
        "signature_key_type",
    );
    let relabelled = |alg, signature: &Signature, input: &dyn Fn(&Signature) -> Input| {
        input(&Signature { alg, ..signature.clone() })
    };
    // With a key in PEM nothing fixes the scheme: what the signature says of itself has to be so.
    let of_bare = |signature: &Signature| bare(&keys.rsa2048, rsa.input_signed(&attest, signature));
    corpus.pass("good-pem", "the key in PEM", of_bare(&by_rsa));
    corpus.fail(
        "rsassa-as-pss",
        "an RSASSA signature that calls itself RSAPSS",
        relabelled(RSAPSS, &by_rsa, &of_bare),
        "signature",
        "bad_signature",
    );
    let by_pss = keys.rsa2048.sign(&attest, Scheme::new(RSAPSS, sha256))?;
    corpus.fail(
        "pss-as-rsassa",
        "an RSAPSS signature that calls itself RSASSA",
        relabelled(RSASSA, &by_pss, &of_bare),
        "signature",
        "bad_signature",
    );
    let renamed = Signature { hash: HashAlg::Sha384.id(), ..by_rsa.clone() };
    let reasons = [("signature", "bad_signature")];
    corpus.fails(
        "hash-renamed",
        "a signature with SHA-256 that calls itself one with SHA-384",
        of_bare(&renamed),
        &reasons,
    );
    let sha1 = Machine::plain(&keys.rsa2048, Scheme::new(RSASSA, HashAlg::Sha1))?;
    corpus.fail(
        "sha1",
        "what was signed is hashed with SHA-1",
        bare(&keys.rsa2048, sha1.input()?),
        "signature",
        "signature_sha1",
    );
    Ok(())
}
