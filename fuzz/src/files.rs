//! What `trefoil appraise` reads: all of its files may be hostile.

use control_plane::{
    appraisal::{
        files::{Files, Outcome, appraise_files},
        finding::Check,
        pcr_file::PcrFile,
    },
    ek::EkRoots,
};
use protocol::{
    codec::Reader,
    limits,
    tpm::{
        alg::HashAlg,
        pcr::{PcrSelection, PcrSelectionList},
    },
};

use crate::{
    appraisal,
    script::{Script, long},
    tpm,
};

/// 2026-01-01, the time at which certificates are judged.
const NOW: i64 = 1_767_225_600;

/// No files make the appraiser panic. A verdict is a pass exactly if no check failed, and says something of each check;
/// an error names an offset that the file has.
///
/// Input: which files there are (two bytes), then each of them behind its length.
pub fn appraise(data: &[u8]) {
    let mut script = Script::new(data);
    let which = u16::from_be_bytes([script.byte(), script.byte()]);
    let mut given = Vec::new();
    for bit in 0..12 {
        given.push((which >> bit & 1 == 1).then(|| script.long()));
    }
    let mut roots = EkRoots::empty();
    if let Some(root) = given[11] {
        let _ = roots.add(root.to_vec());
    }
    let files = Files {
        quote: given[0],
        signature: given[1],
        ak: given[2],
        qualifying_data: given[3],
        pcrs: given[4],
        boot_log: given[5],
        ima: given[6],
        policy: given[7],
        previous: given[8],
        ek_certificate: given[9],
        userspace_log: given[10],
        ek_roots: given[11].map(|_| &roots),
        now: NOW,
        node_rules: which >> 15 == 1,
        ..Files::default()
    };
    match appraise_files(&files) {
        Ok(verdict) => {
            assert_eq!(verdict.is_pass(), verdict.checks().iter().all(|row| row.result != Outcome::Fail));
            assert_eq!(verdict.is_pass(), verdict.reason().is_none());
            for check in Check::ALL {
                assert!(verdict.checks().iter().any(|row| row.check == check), "{check:?} is left out");
            }
            for pcr in verdict.replayed().values().flat_map(|pcrs| pcrs.keys()) {
                assert!(usize::from(*pcr) < limits::PCR_COUNT);
            }
        }
        Err(error) => {
            let longest = given.iter().flatten().map(|file| file.len()).max().unwrap_or(0);
            assert!(error.offset <= longest, "{error:?}");
        }
    }
}

pub(crate) fn appraise_seeds() -> Vec<Vec<u8>> {
    let (attest, public) = (&tpm::tpm_attest_seeds()[0], tpm::tpm_public_seeds());
    let signature = &tpm::tpm_signature_seeds()[0];
    let pcrs = json_seed();
    let log = &appraisal::boot_log_seeds()[2];
    let ima = &appraisal::ima_log_seeds()[0][2..];
    let policy = &appraisal::policy_seeds()[0];
    let previous = br#"{"reset_count": 1, "restart_count": 0, "clock": 5, "firmware_version": 7}"#;
    let ak = public.last().expect("there are some");
    let all = |which: u16, files: &[&[u8]]| {
        let bodies: Vec<u8> = files.iter().flat_map(|file| long(file)).collect();
        [&which.to_be_bytes()[..], &bodies].concat()
    };
    vec![
        all(0x81ff, &[attest, signature, ak, &[0x41; 32], &pcrs, log, ima, policy, previous]),
        all(0x0030, &[&pcrs, log]),
        all(0x0040, &[ima]),
        all(0x0007, &[attest, signature, &tpm::tpm_public_seeds()[6]]),
    ]
}

fn json_seed() -> Vec<u8> {
    format!(r#"{{"sha256": {{"0": "{0}", "7": "{0}", "10": "{0}"}}}}"#, "ab".repeat(32)).into_bytes()
}

/// A file of PCR values that is read holds a value for each PCR that it says was asked for, and no other.
///
/// Input: the quote's selection, then the file.
pub fn pcr_file(data: &[u8]) {
    let mut reader = Reader::new(data);
    let quoted = PcrSelectionList::decode(&mut reader).ok();
    let bytes = if quoted.is_some() { reader.rest() } else { data };
    match PcrFile::parse(bytes, quoted.as_ref()) {
        Ok(file) => {
            let selection = file.selection.or(quoted).expect("bare values are read with a selection");
            assert_eq!(selection.count(), file.values.len());
            for (bank, index) in selection.pcrs() {
                assert!(file.values.get(bank, index).is_some());
            }
        }
        Err((_, offset)) => assert!(offset <= bytes.len()),
    }
}

pub(crate) fn pcr_file_seeds() -> Vec<Vec<u8>> {
    let mut list = PcrSelectionList::new();
    for (bank, mask) in [(HashAlg::Sha1, 3), (HashAlg::Sha256, 0x81)] {
        list.push(PcrSelection::new(bank, mask).expect("below 24")).expect("two banks");
    }
    let values: Vec<u8> = list.pcrs().flat_map(|(bank, index)| bank.digest(&[&[index]]).to_vec()).collect();
    // TPML_PCR_SELECTION, a count of lists, a TPML_DIGEST, as a little-endian machine has them in memory.
    let mut dump = vec![2, 0, 0, 0, 4, 0, 3, 3, 0, 0, 0, 0, 0xb, 0, 3, 0x81, 0, 0, 0, 0];
    dump.resize(132, 0);
    dump.extend_from_slice(&[1, 0, 0, 0, 4, 0, 0, 0]);
    for slot in 0..8 {
        let digest = list.pcrs().nth(slot).map(|(bank, index)| bank.digest(&[&[index]]).to_vec()).unwrap_or_default();
        let end = dump.len() + 66;
        dump.extend_from_slice(&u16::try_from(digest.len()).expect("short").to_le_bytes());
        dump.extend_from_slice(&digest);
        dump.resize(end, 0);
    }
    vec![[&list.encode()[..], &values].concat(), [&list.encode()[..], &dump].concat(), dump, json_seed()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_is_read() {
        let list = pcr_file_seeds();
        assert!(PcrFile::parse(&list[2], None).is_ok() && PcrFile::parse(&list[3], None).is_ok());
        let mut reader = Reader::new(&list[0]);
        let quoted = PcrSelectionList::decode(&mut reader).ok();
        assert!(PcrFile::parse(reader.rest(), quoted.as_ref()).is_ok());
        appraise_seeds().iter().for_each(|seed| appraise(seed));
    }
}
