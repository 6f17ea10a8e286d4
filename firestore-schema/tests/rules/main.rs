//! The security rules, judged by the official emulator: every collection, every kind of person, every way to read and write, over REST and over gRPC.
//!
//! What must hold: auditors get, list, query, count and listen to what auditors read, and nothing else; nobody writes; everybody else gets nothing. `owner`, who
//! bypasses the rules, can do all of it, which shows that it is the rules that refuse.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod grpc;
mod people;
mod rest;
mod token;

use std::path::Path;

use keyturn_store::collections::{self, Collection};
use keyturn_store::emulator::Emulator;
use people::{Person, people};
use tokio::sync::OnceCell;

/// Something that can be tried in one collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Get,
    GetMissing,
    BatchGet,
    List,
    Query,
    Count,
    /// Over gRPC only: REST has no such method.
    Listen,
    /// All collections of that id, wherever they lie.
    GroupQuery,
    /// The names of collections below a document.
    Collections,
    Create,
    Update,
    Delete,
    Commit,
    BatchWrite,
}

impl Act {
    /// What changes something comes last, and `Delete` after `Create`, so that whoever may do it all can do it in this order.
    const ALL: [Self; 14] = [
        Self::Get,
        Self::GetMissing,
        Self::BatchGet,
        Self::List,
        Self::Query,
        Self::Count,
        Self::Listen,
        Self::GroupQuery,
        Self::Collections,
        Self::Create,
        Self::Update,
        Self::Commit,
        Self::BatchWrite,
        Self::Delete,
    ];

    const fn reads_one_collection(self) -> bool {
        match self {
            Self::Get
            | Self::GetMissing
            | Self::BatchGet
            | Self::List
            | Self::Query
            | Self::Count
            | Self::Listen => true,
            Self::GroupQuery
            | Self::Collections
            | Self::Create
            | Self::Update
            | Self::Delete
            | Self::Commit
            | Self::BatchWrite => false,
        }
    }
}

/// Where it is tried.
#[derive(Clone, Debug)]
struct Place {
    /// Path of the document that the collection lies under; `None` at the root.
    parent: Option<String>,
    collection: String,
}

/// The document that is there, the one that never is, and the one that is created and deleted.
const THERE: &str = "there";
const MISSING: &str = "missing";
const NEW: &str = "new";

impl Place {
    fn of(collection: &Collection) -> Self {
        Self {
            parent: collection.parent.map(|parent| format!("{parent}/{THERE}")),
            collection: collection.id.to_owned(),
        }
    }

    fn below(parent: &str, collection: &str) -> Self {
        Self {
            parent: Some(parent.to_owned()),
            collection: collection.to_owned(),
        }
    }

    /// Path of the collection below `…/documents`.
    fn path(&self) -> String {
        match &self.parent {
            Some(parent) => format!("{parent}/{}", self.collection),
            None => self.collection.clone(),
        }
    }

    fn document(&self, id: &str) -> String {
        format!("{}/{id}", self.path())
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Allowed,
    Refused,
    /// Neither: the test itself is wrong.
    Else(String),
}

fn rules() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/firestore.rules"))
}

async fn under_rules() -> &'static Emulator {
    static SHARED: OnceCell<Emulator> = OnceCell::const_new();
    SHARED.get_or_init(|| Emulator::start(Some(rules()))).await
}

/// Every collection there is; one in the wrong place for each that auditors read; one that nobody has thought of.
fn places() -> Vec<(Place, bool)> {
    let mut places = Vec::new();
    for collection in collections::ALL {
        places.push((Place::of(collection), collection.auditors));
        if collection.auditors {
            let parent = format!("{}/{THERE}", collection.id);
            places.push((Place::below(&parent, "notes"), false));
            places.push((Place::below("oauth2_clients/there", collection.id), false));
        }
    }
    let unheard_of = Place {
        parent: None,
        collection: "unheard_of".to_owned(),
    };
    places.push((unheard_of, false));
    places
}

fn expected(person: &Person, auditors: bool, act: Act) -> Verdict {
    if person.bypasses || (person.auditor && auditors && act.reads_one_collection()) {
        Verdict::Allowed
    } else {
        Verdict::Refused
    }
}

/// Tries everything everywhere as everybody; the document in each place says "untouched" before and after.
macro_rules! table {
    ($wire:ident, $acts:expr) => {{
        let emulator = under_rules().await;
        let project = emulator.fresh_project();
        let seeds = rest::Wire::open(&emulator.endpoint(), &project).await;
        let wire = $wire::Wire::open(&emulator.endpoint(), &project).await;
        for (place, _) in places() {
            seeds.seed(&place).await;
        }
        let mut wrong = Vec::new();
        let mut tried = 0;
        for person in people() {
            for (place, auditors) in places() {
                for act in $acts {
                    let found = wire.attempt(&person, &place, act).await;
                    let expected = expected(&person, auditors, act);
                    tried += 1;
                    if found != expected {
                        let place = place.path();
                        let who = person.is;
                        wrong.push(format!("{who}: {act:?} {place}: {found:?}"));
                    }
                }
                if !person.bypasses {
                    assert!(seeds.untouched(&place).await, "{}", place.path());
                }
            }
        }
        assert!(wrong.is_empty(), "{} of {tried}: {wrong:#?}", wrong.len());
        assert!(tried > 3_000, "only {tried}");
    }};
}

#[tokio::test]
async fn over_rest_auditors_read_what_is_theirs_and_nobody_else_anything() {
    let acts = Act::ALL.into_iter().filter(|act| *act != Act::Listen);
    let acts: Vec<Act> = acts.collect();
    table!(rest, acts.iter().copied());
}

#[tokio::test]
async fn over_grpc_auditors_read_what_is_theirs_and_nobody_else_anything() {
    table!(grpc, Act::ALL);
}

/// The rules name exactly the collections that the list says auditors read: a match that nobody tries could open anything.
#[test]
fn the_rules_name_the_collections_of_auditors_and_no_others() {
    let text = std::fs::read_to_string(rules()).unwrap();
    let mut named: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("match /"))
        .filter(|rest| !rest.starts_with("databases/"))
        .map(|rest| rest.split('/').next().unwrap())
        .collect();
    let open = collections::ALL.iter().filter(|it| it.auditors);
    let mut listed: Vec<&str> = open.map(|it| it.id).collect();
    named.sort_unstable();
    listed.sort_unstable();
    assert_eq!(named, listed);
    for word in ["write", "create", "update", "delete", "=**", "if true"] {
        let code = text.lines().filter(|line| !line.trim().starts_with("//"));
        assert!(code.into_iter().all(|line| !line.contains(word)), "{word}");
    }
}
