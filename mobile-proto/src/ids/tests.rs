//! What is an id, and what is not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::*;

/// The key of NIP-19's own example.
const NPUB: &str = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg";
const NPUB_HEX: &str = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e";

#[test]
fn client_ids_are_firestore_document_ids() {
    let longest = "x".repeat(1500);
    for good in ["ext-totp-svc", "ä", "...", "__x", "a b", longest.as_str()] {
        assert_eq!(good.parse::<ClientId>().unwrap().as_str(), good);
    }
    let too_long = "x".repeat(1501);
    for bad in [
        "",
        ".",
        "..",
        "____",
        "__x__",
        "a/b",
        "a\nb",
        "\u{1b}[2J",
        "\u{85}",
        &too_long,
    ] {
        assert!(bad.parse::<ClientId>().is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn a_version_has_one_spelling() {
    let id = "01JM8VEZAMG2DK6T4S9N7TT1C8";
    assert_eq!(id.parse::<VersionId>().unwrap().to_string(), id);
    for bad in [
        "01jm8vezamg2dk6t4s9n7tt1c8",
        "O1JM8VEZAMG2DK6T4S9N7TT1C8",
        "01JM8VEZAMG2DK6T4S9N7TT1C",
        "81JM8VEZAMG2DK6T4S9N7TT1C8",
        "",
    ] {
        assert!(bad.parse::<VersionId>().is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn a_rotation_id_keeps_the_canonical_case() {
    for (given, kept) in [
        ("01jm8vezamg2dk6t4s9n7tt1c8", "01JM8VEZAMG2DK6T4S9N7TT1C8"),
        (
            "6BA7B810-9DAD-11D1-80B4-00C04FD430C8",
            "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        ),
    ] {
        assert_eq!(given.parse::<RotationId>().unwrap().as_str(), kept);
    }
    for bad in [
        "6ba7b8109dad11d180b400c04fd430c8",
        "6ba7b810-9dad-11d1-80b4-00c04fd430cg",
        "6ba7b810-9dad-11d1-80b400c04fd430c8-",
        "{6ba7b810-9dad-11d1-80b4-00c04fd430}",
        "..",
        "",
    ] {
        assert!(bad.parse::<RotationId>().is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn fresh_ids_differ_and_carry_their_time() {
    let now = UnixMs(1_739_750_000_000);
    let first = VersionId::generate(now).unwrap();
    assert_ne!(first, VersionId::generate(now).unwrap());
    assert!(first < VersionId::generate(UnixMs(now.0 + 1)).unwrap());
    let rotation = RotationId::generate(now).unwrap();
    assert_eq!(rotation.as_str().parse::<RotationId>().unwrap(), rotation);
}

#[test]
fn npubs_are_read_in_both_forms() {
    let npub: Npub = NPUB.parse().unwrap();
    assert_eq!(npub.to_hex(), NPUB_HEX);
    assert_eq!(NPUB_HEX.parse::<Npub>().unwrap(), npub);
    assert_eq!(npub.to_string(), NPUB);
}

#[test]
fn foreign_bech32_is_no_npub() {
    let bytes = [7u8; 32];
    let m = bech32::encode::<bech32::Bech32m>(NPUB_HRP, &bytes).unwrap();
    let nsec = bech32::encode::<Bech32>(Hrp::parse("nsec").unwrap(), &bytes).unwrap();
    let short = bech32::encode::<Bech32>(NPUB_HRP, &bytes[..31]).unwrap();
    let upper = NPUB.to_uppercase();
    for bad in [&m, &nsec, &short, &upper, "npub1", "00", ""] {
        assert!(bad.parse::<Npub>().is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn group_ids_hold_one_to_255_bytes() {
    assert_eq!("0AFF".parse::<MlsGroupId>().unwrap().to_string(), "0aff");
    assert!("00".repeat(255).parse::<MlsGroupId>().is_ok());
    for bad in ["", "0", "0g", &"00".repeat(256)] {
        assert!(bad.parse::<MlsGroupId>().is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn a_value_of_a_wrong_type_is_not_repeated_in_the_error() {
    let error = serde_json::from_str::<VersionId>("\"c2VjcmV0\"").unwrap_err();
    assert!(!error.to_string().contains("c2VjcmV0"));
}

proptest! {
    #[test]
    fn whatever_is_accepted_survives_the_round_trip(text in "\\PC{0,80}") {
        if let Ok(id) = text.parse::<ClientId>() {
            let json = serde_json::to_string(&id).unwrap();
            prop_assert_eq!(serde_json::from_str::<ClientId>(&json).unwrap(), id);
        }
        if let Ok(id) = text.parse::<RotationId>() {
            prop_assert_eq!(id.as_str().parse::<RotationId>().unwrap(), id);
        }
        let _ = text.parse::<Npub>();
        let _ = text.parse::<MlsGroupId>();
    }
}
