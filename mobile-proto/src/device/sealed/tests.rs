//! Sealing against the vectors of RFC 9180, and against everything that must not open.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    hex::decode(hex).unwrap().try_into().unwrap()
}

/// The `hpke` crate through our own random source: same ephemeral input, same bytes as the RFC.
fn rfc9180<A: Aead>(recipient: &str, private: &str, ikm: &str, enc: &str, ct: &str) {
    let info = hex::decode("4f6465206f6e2061204772656369616e2055726e").unwrap();
    let (text, aad) = (
        hex::decode("4265617574792069732074727574682c20747275746820626561757479").unwrap(),
        hex::decode("436f756e742d30").unwrap(),
    );
    let key = SealingKey::from_bytes(bytes(recipient)).unwrap();
    let (found_enc, found_ct) = key
        .encrypt::<A>(Ephemeral::for_vectors(bytes(ikm)), &info, &aad, &text)
        .unwrap();
    assert_eq!(hex::encode(&found_enc), enc);
    assert_eq!(hex::encode(&found_ct), ct);
    let opened = decrypt::<A>(&bytes(private), &bytes(enc), &info, &aad, &found_ct).unwrap();
    assert_eq!(*opened, text);
}

#[test]
fn rfc_9180_appendix_a_1_1() {
    rfc9180::<AesGcm128>(
        "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d",
        "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8",
        "7268600d403fce431561aef583ee1613527cff655c1343f29812e66706df3234",
        "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431",
        "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a",
    );
}

#[test]
fn rfc_9180_appendix_a_2_1() {
    rfc9180::<ChaCha20Poly1305>(
        "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a",
        "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb",
        "909a9b35d3dc4713a5e72a4da274b55d3d3821a37e5d099e74a647db583a904b",
        "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a",
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
    );
}

const PRIVATE: [u8; 32] = [9; 32];

fn public() -> SealingKey {
    let private = <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&PRIVATE).unwrap();
    let public = X25519HkdfSha256::sk_to_pk(&private).to_bytes();
    SealingKey::from_bytes(public.as_slice().try_into().unwrap()).unwrap()
}

fn sealed(suite: Suite) -> (DeviceId, Sealed) {
    let device: DeviceId = "river-1".parse().unwrap();
    let nonce = "0123456789abcdef".parse().unwrap();
    let sealed = public()
        .seal(
            suite,
            &device,
            &nonce,
            "{\"secret_id\":\"s\"}",
            Ephemeral::generate().unwrap(),
        )
        .unwrap();
    (device, sealed)
}

#[test]
fn its_device_opens_it_and_the_json_holds_no_plaintext() {
    for suite in [Suite::ChaCha20Poly1305, Suite::Aes128Gcm] {
        let (device, sealed) = sealed(suite);
        let json = serde_json::to_string(&sealed).unwrap();
        assert!(!json.contains("secret_id"), "{json}");
        let back: Sealed = serde_json::from_str(&json).unwrap();
        let opened = back.open(&PRIVATE, &device).unwrap();
        assert_eq!(*opened, b"{\"secret_id\":\"s\"}");
        assert_eq!(suite.as_str().parse::<Suite>().unwrap(), suite);
    }
}

#[test]
fn nothing_else_opens_it() {
    let (device, good) = sealed(Suite::ChaCha20Poly1305);
    let other: DeviceId = "river-2".parse().unwrap();
    assert!(good.open(&PRIVATE, &other).is_err());
    assert!(good.open(&[8; 32], &device).is_err());
    let mut flipped = from_b64url("ct", &good.ct).unwrap().to_vec();
    flipped[0] ^= 1;
    for bad in [
        Sealed {
            nonce: "0123456789abcdeF".parse().unwrap(),
            ..good.clone()
        },
        Sealed {
            suite: Suite::Aes128Gcm,
            ..good.clone()
        },
        Sealed {
            ct: b64url(&flipped),
            ..good.clone()
        },
        Sealed {
            ct: String::new(),
            ..good.clone()
        },
        Sealed {
            ct: "A".repeat(8000),
            ..good.clone()
        },
        Sealed {
            enc: b64url(&[0; 32]),
            ..good.clone()
        },
        Sealed {
            enc: String::new(),
            ..good.clone()
        },
    ] {
        assert!(bad.open(&PRIVATE, &device).is_err(), "{bad:?}");
    }
}

#[test]
fn a_point_of_small_order_is_not_registered() {
    let mut one = [0u8; 32];
    one[0] = 1;
    let eight = bytes("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800");
    for point in [[0; 32], one, eight] {
        assert!(SealingKey::from_bytes(point).is_err());
    }
}

#[test]
fn two_seals_of_one_command_share_nothing() {
    let ((_, a), (_, b)) = (sealed(Suite::Aes128Gcm), sealed(Suite::Aes128Gcm));
    assert!(a.enc != b.enc && a.ct != b.ct);
}
