//! The checks that make an answer ours: made for this very request, by this very key version, and not changed on the way.
//!
//! Cloud KMS, "Verifying end-to-end data integrity": the client sends checksums, the service says whether it used them, and its answer carries its own.
//! The library does none of it.

use google_cloud_kms_v1::model::{MacSignResponse, MacVerifyResponse};
use zeroize::Zeroizing;

use super::fault::{Class, Fault};

/// Length of an HMAC-SHA-256.
const MAC_BYTES: usize = 32;

/// As the wire has it: never negative, below 2^32.
pub(super) fn checksum(bytes: &[u8]) -> i64 {
    i64::from(crc32c::crc32c(bytes))
}

/// The MAC, if the answer can be believed.
pub(super) fn signed(
    asked: &str,
    answer: &MacSignResponse,
) -> Result<Zeroizing<[u8; MAC_BYTES]>, Fault> {
    named(asked, &answer.name)?;
    require(
        answer.verified_data_crc32c,
        "the service did not check the data",
    )?;
    let same = answer.mac_crc32c == Some(checksum(&answer.mac));
    require(same, "the MAC and its checksum differ")?;
    let mac = <[u8; MAC_BYTES]>::try_from(answer.mac.as_ref());
    // Whole, and not an HMAC-SHA-256: a key of another algorithm.
    mac.map(Zeroizing::new)
        .map_err(|_| Fault::new(Class::NotUsable))
}

/// Whether the MAC was right, if the answer can be believed.
pub(super) fn verified(asked: &str, answer: &MacVerifyResponse) -> Result<bool, Fault> {
    named(asked, &answer.name)?;
    require(
        answer.verified_data_crc32c,
        "the service did not check the data",
    )?;
    require(
        answer.verified_mac_crc32c,
        "the service did not check the MAC",
    )?;
    let same = answer.verified_success_integrity == answer.success;
    require(same, "the result contradicts itself")?;
    Ok(answer.success)
}

fn named(asked: &str, answered: &str) -> Result<(), Fault> {
    require(asked == answered, "another key version answered")
}

const fn require(holds: bool, otherwise: &'static str) -> Result<(), Fault> {
    if holds {
        Ok(())
    } else {
        Err(Fault::integrity(otherwise))
    }
}
