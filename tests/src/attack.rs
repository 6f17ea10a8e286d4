//! Somebody who has all files of a relay, with every key among them, and a recorded event: what he can open.
//!
//! Two ways. By hand: everything in the member database that has the length of a secret is tried as every secret that would open the message
//! (RFC 9420 §6.3 and §9). And with OpenMLS: the database is changed until the library would open the message if anything in it could.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::CHACHA20_POLY1305;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ciborium::Value;
use keyturn_mls::error::WelcomeError;
use keyturn_mls::{
    AppMessage, Decision, Disposition, Member, MemberConfig, Receipt, StorageKey, WelcomeOutcome,
};
use nostr::{Event, Keys};
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};

use crate::Relay;
use crate::member_file::{byte_strings, cells, group_data, keyed, pages, set_group_data};
use crate::private_message::{PrivateMessage, open};
use crate::world::{PATIENCE, SETTLE, copy_tree, now};

/// A copy of all files of somebody with a member database, and the keys that are among them.
pub struct Stolen {
    dir: tempfile::TempDir,
    /// Where in `dir` the member database lies.
    database: PathBuf,
    storage_key: String,
    keys: Keys,
}

impl Stolen {
    /// Everything the relay of the world at `root` has. It must not run meanwhile, see [`frozen`].
    pub fn from_relay(root: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for part in ["data", "secrets"] {
            copy_tree(&root.join(part), &dir.path().join(part));
        }
        for file in ["keyturn.toml", "relay.log"] {
            std::fs::copy(root.join(file), dir.path().join(file)).unwrap();
        }
        let read = |name: &str| read(&dir.path().join("secrets").join(name));
        Self {
            database: "data/member.db".into(),
            storage_key: read("mls-storage.key"),
            keys: Keys::parse(&read("nostr.key")).unwrap(),
            dir,
        }
    }

    /// The home of an admin, whose session does nothing meanwhile.
    pub fn from_admin(home: &Path, keys: Keys) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_tree(home, dir.path());
        Self {
            database: "member.db".into(),
            storage_key: read(&dir.path().join("member.key")),
            keys,
            dir,
        }
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn database(&self) -> PathBuf {
        self.dir.path().join(&self.database)
    }

    pub fn storage_key(&self) -> &str {
        &self.storage_key
    }

    /// Another copy, to be spoilt by one attempt.
    pub fn again(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_tree(self.root(), dir.path());
        Self {
            dir,
            database: self.database.clone(),
            storage_key: self.storage_key.clone(),
            keys: self.keys.clone(),
        }
    }

    /// The content of every file.
    pub fn files(&self) -> Vec<Vec<u8>> {
        let mut todo = vec![self.root().to_owned()];
        let mut files = Vec::new();
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                todo.extend(
                    std::fs::read_dir(path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            } else {
                files.push(std::fs::read(path).unwrap());
            }
        }
        files
    }

    /// Every page and cell as it was stolen.
    pub fn clear_bytes(&self) -> Vec<u8> {
        let scratch = self.again();
        let (file, key) = (scratch.database(), scratch.storage_key());
        // First the pages: opening the database moves its log.
        let mut all = pages(&file, key);
        for cell in cells(&file, key) {
            all.push(0);
            all.extend(cell);
        }
        all
    }

    /// A look into the database through SQLite.
    pub fn look<T>(&self, look: impl FnOnce(&Connection) -> T) -> T {
        let scratch = self.again();
        look(&keyed(&scratch.database(), scratch.storage_key()))
    }

    /// The member that this database makes. Spoils the copy.
    pub fn member(&self) -> Member {
        let storage_key = StorageKey::from_text(&self.storage_key).unwrap();
        let mut config = MemberConfig::new(self.database(), storage_key, self.keys.clone());
        config.settle = SETTLE;
        Member::open(config).unwrap()
    }

    /// Where the owner sits in the only group.
    pub fn own_leaf(&self) -> u32 {
        let leaf = self.look(|db| group_data(db, "own_leaf_index").as_integer().unwrap());
        leaf.try_into().unwrap()
    }

    /// The epoch of the only group.
    pub fn epoch(&self) -> u64 {
        self.look(|db| {
            db.query_row("SELECT epoch FROM groups", [], |row| row.get(0))
                .unwrap()
        })
    }

    /// What the database becomes when every event is forgotten and `events` are received in this order.
    pub fn followed(&self, events: &[Event]) -> Self {
        let scratch = self.again();
        forget(&keyed(&scratch.database(), scratch.storage_key()));
        feed(&mut scratch.member(), events);
        scratch
    }

    /// Gives `events` to OpenMLS in this order, after every event was forgotten; `leaf`: from the seat of somebody else, with every ratchet kept
    /// for sending turned into one for receiving. What opened.
    pub fn replay(&self, leaf: Option<u32>, events: &[Event]) -> Vec<Vec<u8>> {
        let scratch = self.again();
        let db = keyed(&scratch.database(), scratch.storage_key());
        forget(&db);
        if let Some(leaf) = leaf {
            let mut secrets = group_data(&db, "message_secrets");
            let mut turned = 0;
            turn(&mut secrets, leaf, &mut turned);
            assert!(turned > 0, "the stored form is the one this attack knows");
            set_group_data(&db, "message_secrets", &secrets);
            set_group_data(&db, "own_leaf_index", &leaf.into());
        }
        drop(db);
        feed(&mut scratch.member(), events)
    }

    /// Joins anew from a Welcome as if it had never been opened, and lets OpenMLS follow `events`: what opened, and the database afterwards.
    pub fn rejoin(
        &self,
        welcome: &Event,
        events: &[Event],
    ) -> Result<(Vec<Vec<u8>>, Self), WelcomeError> {
        let scratch = self.again();
        forget(&keyed(&scratch.database(), scratch.storage_key()));
        let mut member = scratch.member();
        match member.open_welcome(welcome, |_| Decision::Replace, now())? {
            WelcomeOutcome::Joined(_) => Ok((feed(&mut member, events), scratch)),
            other => panic!("neither joined nor failed: {other:?}"),
        }
    }
}

pub fn contains(hay: &[u8], needle: &[u8]) -> bool {
    assert!(!needle.is_empty());
    let mut hay = hay;
    while let Some(at) = hay.iter().position(|byte| *byte == needle[0]) {
        hay = &hay[at..];
        if hay.starts_with(needle) {
            return true;
        }
        hay = &hay[1..];
    }
    false
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

fn forget(db: &Connection) {
    db.execute_batch("DELETE FROM seen; DELETE FROM held; DELETE FROM inbox; DELETE FROM joined;")
        .unwrap();
}

/// Looks while the relay stands still in the middle of whatever it does.
pub fn frozen<T>(relay: &Relay, look: impl FnOnce() -> T) -> T {
    let pid = Pid::from_raw(relay.pid().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let until = Instant::now() + PATIENCE;
    while !stopped(relay.pid()) {
        assert!(Instant::now() < until, "the relay stops in time");
        std::thread::sleep(Duration::from_millis(1));
    }
    let seen = look();
    kill_process(pid, Signal::CONT).unwrap();
    seen
}

/// Whether every thread has stopped.
fn stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .map(|thread| thread.unwrap().path().join("stat"))
        .all(|stat| {
            // The name, in parentheses, may contain anything; the state follows. A thread that has just ended does nothing either.
            std::fs::read_to_string(stat).map_or(true, |stat| {
                stat.rsplit(") ")
                    .next()
                    .is_some_and(|rest| rest.starts_with('T'))
            })
        })
}

fn feed(member: &mut Member, events: &[Event]) -> Vec<Vec<u8>> {
    let mut opened = Vec::new();
    for event in events {
        // What is not for this group or cannot be opened is an answer, not an error.
        member
            .receive(
                event,
                Receipt::stored(now()),
                &mut |message: &AppMessage| {
                    opened.push(message.body.to_vec());
                    Disposition::Consume
                },
            )
            .unwrap();
    }
    opened
}

/// `own_index` becomes `leaf`, an `EncryptionRatchet` a `DecryptionRatchet` with the same head.
fn turn(value: &mut Value, leaf: u32, turned: &mut usize) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| turn(item, leaf, turned)),
        Value::Map(entries) => {
            for (key, item) in entries {
                match key.as_text() {
                    Some("own_index") => {
                        *item = leaf.into();
                        *turned += 1;
                    }
                    Some("EncryptionRatchet") => {
                        *key = "DecryptionRatchet".into();
                        *item = Value::Map(vec![
                            ("past_secrets".into(), Value::Array(Vec::new())),
                            ("ratchet_head".into(), item.clone()),
                        ]);
                    }
                    _ => turn(item, leaf, turned),
                }
            }
        }
        _ => {}
    }
}

/// How far an attempt by hand came.
#[derive(Debug, PartialEq, Eq)]
pub enum Reached {
    /// Not even the outer layer opened.
    Nothing,
    /// The MLS message, but not who sent it.
    Message,
    /// Who sent it, but not what.
    Sender { leaf: u32, generation: u32 },
    /// All of it.
    Content(Opened),
}

#[derive(PartialEq, Eq)]
pub struct Opened {
    pub plaintext: Vec<u8>,
    /// Every secret on the way from what was found to the message key: each of them opens it.
    pub trail: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { plaintext, trail } = self;
        write!(
            f,
            "{} bytes, {} secrets from what was found",
            plaintext.len(),
            trail.len()
        )
    }
}

/// Whatever in a member database could be a secret.
pub struct Candidates {
    /// Secrets of the key schedule, ratchet secrets, nodes of the secret tree.
    secrets: BTreeSet<Vec<u8>>,
    /// Message keys with their nonces.
    keys: BTreeSet<Vec<u8>>,
    nonces: BTreeSet<Vec<u8>>,
}

impl Candidates {
    pub fn of(stolen: &Stolen) -> Self {
        let scratch = stolen.again();
        let (file, key) = (scratch.database(), scratch.storage_key());
        let mut found = byte_strings(&pages(&file, key));
        for cell in cells(&file, key) {
            found.extend(byte_strings(&cell));
            found.push(cell);
        }
        // Every key among the files, as it stands there and decoded.
        for file in stolen.files() {
            let text = String::from_utf8_lossy(&file).trim().to_owned();
            found.extend(hex::decode(text));
            found.push(file);
        }
        let of = |length: usize| {
            let fitting = found.iter().filter(|bytes| bytes.len() == length);
            fitting.cloned().collect()
        };
        Self {
            secrets: of(32),
            keys: of(16),
            nonces: of(12),
        }
    }

    /// How many secrets there are to try.
    pub fn count(&self) -> usize {
        self.secrets.len()
    }

    /// Opens as much of a 445 event as can be opened.
    pub fn open(&self, event: &Event) -> Reached {
        let sealed = STANDARD.decode(&event.content).unwrap();
        let (nonce, body) = sealed.split_at(12);
        let secrets = || self.secrets.iter();
        let outer = |key: &Vec<u8>| open(&CHACHA20_POLY1305, key, nonce, &[], body);
        let Some(message) = secrets().find_map(outer) else {
            return Reached::Nothing;
        };
        let Some(message) = PrivateMessage::parse(&message) else {
            return Reached::Message;
        };
        let Some(sender) = secrets().find_map(|secret| message.sender(secret)) else {
            return Reached::Message;
        };
        let kept_keys = || {
            self.keys.iter().find_map(|key| {
                let mut nonces = self.nonces.iter();
                nonces.find_map(|nonce| message.content(&sender, key, nonce))
            })
        };
        secrets()
            .find_map(|secret| message.content_below(&sender, secret))
            .or_else(kept_keys)
            .map_or(
                Reached::Sender {
                    leaf: sender.leaf,
                    generation: sender.generation,
                },
                Reached::Content,
            )
    }
}
