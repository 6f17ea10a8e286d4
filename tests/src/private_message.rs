//! An MLS PrivateMessage opened by hand, from whatever secret is at hand (RFC 9420 §6.3 and §9), ciphersuite 1.

use aws_lc_rs::aead::{AES_128_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;

use crate::attack::Opened;

/// The largest group attacked here has eight leaves.
const DEPTH: usize = 3;

/// What is left of the message without its keys.
pub struct PrivateMessage {
    sender_aad: Vec<u8>,
    content_aad: Vec<u8>,
    sender: Vec<u8>,
    content: Vec<u8>,
}

/// Who sent it, and with which generation of his ratchet.
pub struct Sender {
    pub leaf: u32,
    pub generation: u32,
    reuse_guard: [u8; 4],
}

impl PrivateMessage {
    /// From an MLSMessage; `None` if it is something else.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        // Version mls10, wire format mls_private_message.
        let body = bytes.strip_prefix(&[0, 1, 0, 2])?;
        let mut rest = body;
        let group_id = opaque(&mut rest)?;
        // Epoch and content type.
        rest = rest.get(8 + 1..)?;
        assert!(!group_id.is_empty());
        let sender_aad = body[..body.len() - rest.len()].to_vec();
        opaque(&mut rest)?;
        let content_aad = body[..body.len() - rest.len()].to_vec();
        Some(Self {
            sender_aad,
            content_aad,
            sender: opaque(&mut rest)?.to_vec(),
            content: opaque(&mut rest)?.to_vec(),
        })
    }

    /// §6.3.2.
    pub fn sender(&self, sender_data_secret: &[u8]) -> Option<Sender> {
        let sample = &self.content[..self.content.len().min(32)];
        let key = expand(sender_data_secret, "key", sample, 16);
        let nonce = expand(sender_data_secret, "nonce", sample, 12);
        let data = open(&AES_128_GCM, &key, &nonce, &self.sender_aad, &self.sender)?;
        let word = |at: usize| data.get(at..at + 4)?.try_into().ok();
        Some(Sender {
            leaf: u32::from_be_bytes(word(0)?),
            generation: u32::from_be_bytes(word(4)?),
            reuse_guard: word(8)?,
        })
    }

    /// Takes `secret` for a ratchet secret of this or any earlier generation, for a leaf's, and for that of a node above it.
    pub fn content_below(&self, sender: &Sender, secret: &[u8]) -> Option<Opened> {
        (0..=sender.generation)
            .find_map(|generation| self.content_from(sender, secret, generation))
            .or_else(|| self.content_of_node(sender, secret, DEPTH))
    }

    /// §9: down the secret tree.
    fn content_of_node(&self, sender: &Sender, node: &[u8], depth: usize) -> Option<Opened> {
        let first = expand(node, "application", b"", 32);
        let mut opened = self.content_from(sender, &first, 0).or_else(|| {
            let deeper = depth.checked_sub(1)?;
            [b"left".as_slice(), b"right"].into_iter().find_map(|side| {
                let child = expand(node, "tree", side, 32);
                self.content_of_node(sender, &child, deeper)
            })
        })?;
        opened.trail.push(node.to_vec());
        Some(opened)
    }

    /// §9.1, from the ratchet secret of `generation` on.
    fn content_from(&self, sender: &Sender, secret: &[u8], generation: u32) -> Option<Opened> {
        let mut trail = vec![secret.to_vec()];
        let mut secret = secret.to_vec();
        for generation in generation..sender.generation {
            secret = expand(&secret, "secret", &generation.to_be_bytes(), 32);
            trail.push(secret.clone());
        }
        let generation = sender.generation.to_be_bytes();
        let key = expand(&secret, "key", &generation, 16);
        let nonce = expand(&secret, "nonce", &generation, 12);
        let mut opened = self.content(sender, &key, &nonce)?;
        opened.trail.extend(trail);
        Some(opened)
    }

    /// With the message key itself.
    pub fn content(&self, sender: &Sender, key: &[u8], nonce: &[u8]) -> Option<Opened> {
        let mut nonce = nonce.to_vec();
        for (byte, guard) in nonce.iter_mut().zip(sender.reuse_guard) {
            *byte ^= guard;
        }
        let plaintext = open(&AES_128_GCM, key, &nonce, &self.content_aad, &self.content)?;
        Some(Opened {
            plaintext,
            trail: vec![key.to_vec()],
        })
    }
}

/// A vector with its length in front (§2.1.2).
fn opaque<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let first = *rest.first()?;
    let bytes = 1usize << (first >> 6);
    let length = rest
        .get(1..bytes)?
        .iter()
        .fold(usize::from(first & 0x3f), |length, &byte| {
            length << 8 | usize::from(byte)
        });
    let whole = rest.get(bytes..bytes + length)?;
    *rest = &rest[bytes + length..];
    Some(whole)
}

/// ExpandWithLabel (§8), for up to 32 bytes.
fn expand(secret: &[u8], label: &str, context: &[u8], length: u16) -> Vec<u8> {
    let label = format!("MLS 1.0 {label}");
    let mut info = length.to_be_bytes().to_vec();
    for part in [label.as_bytes(), context] {
        assert!(part.len() < 64, "one byte holds the length");
        info.push(part.len() as u8);
        info.extend_from_slice(part);
    }
    info.push(1);
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::sign(&key, &info).as_ref()[..usize::from(length)].to_vec()
}

/// The plaintext, if `key` is the right one.
pub fn open(
    algorithm: &'static Algorithm,
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    sealed: &[u8],
) -> Option<Vec<u8>> {
    let key = LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?);
    let mut body = sealed.to_vec();
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let opened = key.open_in_place(nonce, Aad::from(aad), &mut body).ok()?;
    Some(opened.to_vec())
}
