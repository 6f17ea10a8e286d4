//! Kills: at chosen points, by copying the files as a SIGKILL would leave them; at random ones, by SIGKILL.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Clock, Peer, group};
use keyturn_mls::error::CommitError;
use keyturn_mls::{
    AppMessage, Decision, Disposition, Inbound, Member, MlsGroupId, Receipt, UnixMs,
};
use nostr::{Event, JsonUtil, Keys};

/// Kills the peer: what is open is forgotten as it is, the files as they lie now are opened again.
fn kill(peer: &mut Peer) {
    let copy = tempfile::TempDir::new().unwrap();
    copy_into(peer.dir.path(), copy.path());
    peer.close();
    peer.dir = copy;
    peer.reopen();
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_staged_commit_is_found_again_and_published() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 2, &mut clock);
    let mut guest = Peer::new();
    let package = guest.key_package(clock.0);
    let staged = peers[0].invite(&group, &[package], clock.0).unwrap();
    kill(&mut peers[0]);
    let pending = peers[0].pending_commits().unwrap();
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0].event, staged.event);
    assert_eq!(pending[0].welcomes, 1);
    assert!(
        peers[0].released_welcomes().unwrap().is_empty(),
        "not before the commit is accepted"
    );
    assert!(matches!(
        peers[0].self_update(&group, clock.0),
        Err(CommitError::Pending(id)) if id == staged.event.id
    ));
    peers[1].follow(&staged.event, &clock);

    peers[0].commit_published(staged.event.id, clock.0).unwrap();
    kill(&mut peers[0]);
    assert!(peers[0].pending_commits().unwrap().is_empty());
    let welcomes = peers[0].released_welcomes().unwrap();
    assert_eq!(welcomes.len(), 1);
    let again = peers[0].commit_published(staged.event.id, clock.0).unwrap();
    assert_eq!(again, welcomes, "told twice, the same answer");
    guest.join(&welcomes[0].event, clock.0);
    peers[0].welcome_sent(welcomes[0].event.id).unwrap();
    kill(&mut peers[0]);
    assert!(peers[0].released_welcomes().unwrap().is_empty());
    assert_eq!(
        guest.roster_hash(&group).unwrap(),
        peers[1].roster_hash(&group).unwrap()
    );
}

#[test]
fn a_commit_published_before_the_kill_comes_back_and_is_merged() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 2, &mut clock);
    let staged = peers[0].self_update(&group, clock.0).unwrap();
    kill(&mut peers[0]);
    let applied = peers[0].follow(&staged.event, &clock);
    assert!(applied.own);
    peers[1].follow(&staged.event, &clock);
    clock.settle();
    let event = peers[0].say(&group, "{}", &clock);
    assert_eq!(peers[1].take(&event, &clock).1.len(), 1);
}

#[test]
fn a_rejected_commit_is_gone_and_the_next_one_works() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 2, &mut clock);
    let staged = peers[0].self_update(&group, clock.0).unwrap();
    peers[0].commit_rejected(staged.event.id).unwrap();
    kill(&mut peers[0]);
    assert!(peers[0].pending_commits().unwrap().is_empty());
    assert!(matches!(
        peers[0].commit_published(staged.event.id, clock.0),
        Err(CommitError::NotPending(_))
    ));
    let staged = peers[0].self_update(&group, clock.0).unwrap();
    common::publish(&mut peers, 0, &staged, &clock);
}

#[test]
fn a_kill_while_joining_leaves_the_welcome_openable() {
    let clock = Clock::start();
    let mut maker = Peer::new();
    let mut guest = Peer::new();
    let package = guest.key_package(clock.0);
    let made = maker
        .create_group(keyturn_mls::GroupSpec::default(), &[package], clock.0)
        .unwrap();
    kill(&mut maker);
    let welcome = maker.released_welcomes().unwrap().remove(0).event;
    let (from, copy) = (
        guest.dir.path().to_owned(),
        tempfile::TempDir::new().unwrap(),
    );
    guest
        .open_welcome(
            &welcome,
            |_| {
                copy_into(&from, copy.path());
                Decision::Join
            },
            clock.0,
        )
        .unwrap();
    guest.close();
    guest.dir = copy;
    guest.reopen();
    assert!(guest.groups().unwrap().is_empty());
    guest.join(&welcome, clock.0);
    kill(&mut guest);
    assert_eq!(guest.groups().unwrap()[0].id, made.group.id);
    assert!(guest.needs_self_update(&made.group.id).unwrap());
}

#[test]
fn a_commit_followed_before_the_kill_is_followed_after_it() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 2, &mut clock);
    let a = peers[0].self_update(&group, clock.0).unwrap();
    let b = peers[1].self_update(&group, clock.0).unwrap();
    let (first, second) = if (a.event.created_at, *a.event.id.as_bytes())
        < (b.event.created_at, *b.event.id.as_bytes())
    {
        (a.event, b.event)
    } else {
        (b.event, a.event)
    };
    peers[2].follow(&second, &clock);
    kill(&mut peers[2]);
    assert!(matches!(
        &peers[2].take(&second, &clock).0[..],
        [Inbound::Duplicate { .. }]
    ));
    assert_eq!(peers[2].follow(&first, &clock).undone, Some(second.id));
    kill(&mut peers[2]);
    assert!(peers[2].next_settle().unwrap().is_some());
}

const CHILD: &str = "KEYTURN_MLS_CRASH_CHILD";

/// Not a test by itself: what the killed process does. Seals and commits until it is killed, writing each
/// event out before it goes on, as publishing does.
#[test]
fn child() {
    let Ok(line) = std::env::var(CHILD) else {
        return;
    };
    let [dir, key, secret, group]: [&str; 4] =
        line.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let group: MlsGroupId = group.parse().unwrap();
    let mut member = open(Path::new(dir), key, secret);
    let mut out = std::io::stdout();
    let mut publish = |event: &Event| {
        writeln!(out, "EVENT {}", event.as_json()).unwrap();
        out.flush().unwrap();
    };
    let now = || Clock::start().0;
    for pending in member.pending_commits().unwrap() {
        publish(&pending.event);
        member.commit_published(pending.event.id, now()).unwrap();
    }
    for i in 0_u64.. {
        if i % 3 == 2 {
            let staged = member.self_update(&group, now()).unwrap();
            publish(&staged.event);
            member.commit_published(staged.event.id, now()).unwrap();
        } else {
            let sealed = member.seal(&group, common::payload("{}"), now()).unwrap();
            publish(&sealed.event);
        }
    }
}

fn open(dir: &Path, key: &str, secret: &str) -> Member {
    let mut config = keyturn_mls::MemberConfig::new(
        dir.join("member.db"),
        keyturn_mls::StorageKey::from_text(key).unwrap(),
        Keys::parse(secret).unwrap(),
    );
    config.settle = Duration::ZERO;
    Member::open(config).unwrap()
}

#[test]
fn killed_at_random_points_a_member_never_uses_a_key_twice_and_always_comes_back() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 2, &mut clock);
    peers[0].close();
    let dir: PathBuf = peers[0].dir.path().to_owned();
    let secret = peers[0].keys.secret_key().to_secret_hex();
    let line = format!("{} {} {secret} {group}", dir.display(), peers[0].key);
    let mut events: Vec<Event> = Vec::new();
    for round in 0..12_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD, &line)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        let before = events.len();
        // A different number of events each round, so that the kill falls on different steps.
        for text in lines.by_ref() {
            let text = text.unwrap();
            if let Some((_, json)) = text.split_once("EVENT ") {
                events.push(Event::from_json(json).unwrap());
                seen += 1;
            }
            if seen > round {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What was written before the kill reached the "relay" too; a torn last line did not.
        for text in lines.map_while(Result::ok) {
            if let Some(event) = text
                .split_once("EVENT ")
                .and_then(|(_, json)| Event::from_json(json).ok())
            {
                events.push(event);
            }
        }
        assert!(
            events.len() > before,
            "the child of round {round} came up again"
        );
    }
    let mut opened = 0;
    let mut commits = 0;
    for event in &events {
        for inbound in peers[1]
            .receive(
                event,
                Receipt::stored(UnixMs(u64::MAX / 4)),
                &mut |_: &AppMessage| Disposition::Consume,
            )
            .unwrap()
        {
            match inbound {
                Inbound::Message { .. } => opened += 1,
                Inbound::Commit(_) => commits += 1,
                // A pending commit may have been published before and after a kill.
                Inbound::Duplicate { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    let distinct: std::collections::HashSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(
        opened + commits,
        distinct.len(),
        "everything published is openable, once"
    );
    assert!(
        opened > 12 && commits > 4,
        "{opened} messages, {commits} commits"
    );
}
