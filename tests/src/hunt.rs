//! Looks in many places for what may be in none of them, and shows each time that it would have been found.

use std::collections::BTreeSet;

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use keyturn::quickstart::leaks::Needles;

use crate::attack::contains;

/// Something that may not be found.
pub struct Wanted {
    name: String,
    text: String,
    is_code: bool,
}

impl Wanted {
    /// Something long and random: a secret, a hash, a proof. Looked for in every spelling.
    pub fn text(name: &str, text: &str) -> Self {
        assert!(
            text.len() >= 16,
            "{name} is too short to be told from chance"
        );
        Self {
            name: name.to_owned(),
            text: text.to_owned(),
            is_code: false,
        }
    }

    /// A TOTP code.
    pub fn code(name: &str, digits: &str) -> Self {
        assert!(digits.bytes().all(|byte| byte.is_ascii_digit()));
        Self {
            name: name.to_owned(),
            text: digits.to_owned(),
            is_code: true,
        }
    }

    fn spellings(&self) -> Vec<Vec<u8>> {
        if self.is_code {
            return vec![self.text.clone().into_bytes()];
        }
        Needles::of(&self.text)
            .spellings()
            .map(<[u8]>::to_vec)
            .collect()
    }

    /// Ways in which a careless line of code would have written it.
    fn careless(&self) -> Vec<Vec<u8>> {
        let mut ways = vec![
            self.text.clone().into_bytes(),
            format!("{{\"x\":\"{}\"}}", self.text).into_bytes(),
        ];
        if !self.is_code {
            ways.push(hex::encode(&self.text).into_bytes());
            ways.push(STANDARD.encode(format!("=={}", self.text)).into_bytes());
            if let Ok(raw) = URL_SAFE_NO_PAD.decode(&self.text) {
                ways.push(STANDARD.encode(&raw).into_bytes());
                ways.push(hex::encode(&raw).into_bytes());
                ways.push(raw);
            }
        }
        ways
    }
}

/// Everything that is wanted, looked for in one go.
struct Search<'a> {
    wanted: &'a [Wanted],
    spellings: AhoCorasick,
    /// Which wanted each spelling belongs to.
    owners: Vec<usize>,
}

impl<'a> Search<'a> {
    fn for_all(wanted: &'a [Wanted]) -> Self {
        let spelled = wanted.iter().enumerate().flat_map(|(owner, wanted)| {
            let spellings = wanted.spellings().into_iter();
            spellings.map(move |spelling| (owner, spelling))
        });
        let (owners, spellings): (Vec<usize>, Vec<Vec<u8>>) = spelled.unzip();
        assert!(!spellings.iter().any(Vec::is_empty));
        Self {
            wanted,
            spellings: AhoCorasick::new(spellings).unwrap(),
            owners,
        }
    }

    fn finds(&self, hay: &[u8]) -> BTreeSet<usize> {
        self.spellings
            .find_overlapping_iter(hay)
            .map(|found| (self.owners[found.pattern().as_usize()], found))
            .filter(|(owner, found)| {
                !self.wanted[*owner].is_code || stands_alone(hay, found.range())
            })
            .map(|(owner, _)| owner)
            .collect()
    }
}

/// Six digits come by chance: in a fraction of a second, in a hex id, in a longer number. A code that was written down stands alone.
fn stands_alone(hay: &[u8], code: std::ops::Range<usize>) -> bool {
    let is_apart = |byte: Option<&u8>| {
        byte.is_none_or(|byte| !byte.is_ascii_alphanumeric() && !b".-_+/".contains(byte))
    };
    is_apart(code.start.checked_sub(1).and_then(|before| hay.get(before)))
        && is_apart(hay.get(code.end))
}

/// Somewhere to look.
pub struct Place {
    pub name: String,
    pub bytes: Vec<u8>,
}

impl Place {
    /// `known` is what proves that the right thing is searched.
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>, known: &[&str]) -> Self {
        let (name, bytes) = (name.into(), bytes.into());
        for known in known {
            assert!(
                contains(&bytes, known.as_bytes()),
                "{name}: {known} should be in what is searched ({} bytes)",
                bytes.len()
            );
        }
        Self { name, bytes }
    }
}

/// Panics with all finds. `allowed(place, wanted)` names what may be where.
pub fn hunt(wanted: &[Wanted], places: &[Place], allowed: impl Fn(&str, &str) -> bool) {
    let search = Search::for_all(wanted);
    let mut finds = Vec::new();
    for place in places {
        for found in search.finds(&place.bytes) {
            if !allowed(&place.name, &wanted[found].name) {
                finds.push(format!("{} in {}", wanted[found].name, place.name));
            }
        }
        control(&search, place);
    }
    assert!(finds.is_empty(), "found:\n{}", finds.join("\n"));
}

/// In a copy of the beginning of each place, everything is found in every way it could have been written.
fn control(search: &Search<'_>, place: &Place) {
    let around = &place.bytes[..place.bytes.len().min(2 << 10)];
    let (front, back) = around.split_at(around.len() / 2);
    for (owner, wanted) in search.wanted.iter().enumerate() {
        for way in wanted.careless() {
            let planted = [front, b"\n", &way, b"\n", back].concat();
            assert!(
                search.finds(&planted).contains(&owner),
                "control: {} planted in {} is found",
                wanted.name,
                place.name
            );
        }
    }
}
