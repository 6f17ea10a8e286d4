//! Whatever is done to a chain is found, and nothing is found in one that nobody touched.
#![allow(clippy::unwrap_used)]

use keyturn_proto::UnixMs;

use super::*;
use crate::audit::{Instance, entry_id, seal};
use crate::documents::{Actor, AuditDevice};

/// A chain of `n` entries and its head.
fn chain(n: u64) -> (Vec<Stored<AuditEntry>>, AuditChainDoc) {
    let records = (1..=n)
        .map(|at| AuditRecord {
            at: UnixMs(at),
            actor: Actor::Relay,
            event: format!("event.{at}"),
            reason: String::new(),
            client_id: Some("a".parse().unwrap()),
            rotation_id: None,
            version_id: None,
            group: None,
            nostr_event: None,
            device: None,
        })
        .collect();
    let mut sealed = seal(Vec::new(), records, None, &Instance::operator()).unwrap();
    (stored(sealed.entries), sealed.heads.pop().unwrap())
}

fn stored(entries: Vec<AuditEntry>) -> Vec<Stored<AuditEntry>> {
    let wrap = |entry: AuditEntry| Stored {
        id: entry.id.clone(),
        doc: Some(entry),
    };
    entries.into_iter().map(wrap).collect()
}

fn check(head: Option<&AuditChainDoc>, entries: &[Stored<AuditEntry>]) -> Vec<Finding> {
    verify_chain(&chain_id("client:a"), head, entries)
}

fn entry(of: &mut [Stored<AuditEntry>], at: usize) -> &mut AuditEntry {
    of[at].doc.as_mut().unwrap()
}

#[test]
fn an_untouched_chain_has_no_findings() {
    for n in [1, 2, 7] {
        let (entries, head) = chain(n);
        assert_eq!(check(Some(&head), &entries), []);
    }
    assert_eq!(check(None, &[]), []);
}

#[test]
fn what_is_sealed_belongs_to_its_chain_whatever_it_names() {
    let about = |client: Option<&str>, device: Option<&str>, claimed: bool| {
        let entry = chain(1).0.remove(0).doc.unwrap();
        AuditRecord {
            client_id: client.map(|id| id.parse().unwrap()),
            device: device.map(|id| AuditDevice {
                device_id: id.parse().unwrap(),
                nonce: Some("n".to_owned()),
                accessor: None,
                claimed,
            }),
            ..entry.record
        }
    };
    let records = vec![
        about(Some("a"), None, false),
        about(None, Some("meter-1"), false),
        about(None, None, false),
        about(Some("a"), Some("meter-1"), false),
        // Whoever invents a device makes no chain.
        about(None, Some("invented"), true),
    ];
    let sealed = seal(Vec::new(), records, None, &Instance::operator()).unwrap();
    let mut names: Vec<&str> = sealed.heads.iter().map(|head| &*head.chain).collect();
    names.sort_unstable();
    assert_eq!(names, ["client:a", "device:meter-1", "instance:operator"]);
    for head in &sealed.heads {
        let of_chain = sealed
            .entries
            .iter()
            .filter(|entry| entry.chain == head.chain);
        let entries = stored(of_chain.cloned().collect());
        assert_eq!(
            verify_chain(&head.id, Some(head), &entries),
            [],
            "{}",
            head.chain
        );
    }
    // A claim in the device's chain, or what is no claim outside of it, hash and all.
    for (from, into) in [
        ("instance:", "device:meter-1"),
        ("device:", "instance:operator"),
    ] {
        let entry = sealed
            .entries
            .iter()
            .find(|entry| entry.chain.starts_with(from) && entry.record.device.is_some());
        let mut entry = entry.unwrap().clone();
        let device = entry.record.device.as_mut().unwrap();
        device.device_id = "meter-1".parse().unwrap();
        (entry.chain, entry.seq) = (into.to_owned(), 1);
        entry.id = entry_id(&chain_id(into), 1);
        entry.previous = GENESIS.to_owned();
        entry.hash = encode::hash(into, 1, GENESIS, &entry.record);
        let found = verify_chain(&chain_id(into), None, &stored(vec![entry]));
        assert!(
            matches!(
                found[..],
                [Finding::Foreign { .. }, Finding::HeadMissing { .. }]
            ),
            "{into}: {found:?}"
        );
    }
    // Moved from one device to another, hash and all.
    let entry = sealed
        .entries
        .iter()
        .find(|entry| entry.chain.starts_with("device:"));
    let mut entry = entry.unwrap().clone();
    let device = entry.record.device.as_mut().unwrap();
    device.device_id = "meter-2".parse().unwrap();
    entry.hash = encode::hash(&entry.chain, 1, &entry.previous, &entry.record);
    let id = chain_id("device:meter-1");
    let found = verify_chain(&id, None, &stored(vec![entry]));
    assert!(
        matches!(
            found[..],
            [Finding::Foreign { .. }, Finding::HeadMissing { .. }]
        ),
        "{found:?}"
    );
}

#[test]
fn a_removed_entry_is_found_at_its_place() {
    let (mut entries, head) = chain(5);
    entries.drain(1..3);
    assert_eq!(
        check(Some(&head), &entries),
        [Finding::Removed { from: 2, to: 3 }]
    );
    let (mut entries, head) = chain(5);
    entries.remove(0);
    assert_eq!(
        check(Some(&head), &entries),
        [Finding::Removed { from: 1, to: 1 }]
    );
}

#[test]
fn an_edit_of_any_field_is_found() {
    type Edit = fn(&mut AuditEntry);
    let edits: [Edit; 13] = [
        |e| e.record.at.0 += 1,
        |e| e.record.actor = Actor::Operator,
        |e| e.record.event.push('x'),
        |e| e.record.reason.push('x'),
        |e| e.record.rotation_id = Some(format!("{:026}", 1).parse().unwrap()),
        |e| e.record.version_id = Some(format!("{:026}", 1).parse().unwrap()),
        |e| e.record.group = Some(String::new()),
        |e| e.record.nostr_event = Some(String::new()),
        |e| e.previous = GENESIS.replace('0', "1"),
        |e| e.hash = GENESIS.to_owned(),
        |e| e.id.push('x'),
        |e| e.record.client_id = None,
        |e| e.chain = "client:b".to_owned(),
    ];
    for (n, edit) in edits.into_iter().enumerate() {
        let (mut entries, head) = chain(3);
        edit(entry(&mut entries, 1));
        let found = check(Some(&head), &entries);
        assert!(!found.is_empty(), "edit {n} was not found");
        let foreign = Finding::Foreign {
            id: entry_id(&chain_id("client:a"), 2),
        };
        let expected = if n < 11 {
            Finding::Edited { seq: 2 }
        } else {
            foreign
        };
        assert_eq!(found[0], expected, "edit {n}");
    }
}

#[test]
fn an_edit_with_its_own_new_hash_breaks_the_link_of_the_next() {
    let (mut entries, head) = chain(3);
    let edited = entry(&mut entries, 1);
    edited.record.reason = "nothing happened".to_owned();
    edited.hash = encode::hash(&edited.chain, 2, &edited.previous, &edited.record);
    assert_eq!(check(Some(&head), &entries), [Finding::Unlinked { seq: 3 }]);
    // The last one has no next; there the head tells.
    let (mut entries, head) = chain(2);
    let edited = entry(&mut entries, 1);
    edited.record.reason = "nothing happened".to_owned();
    edited.hash = encode::hash(&edited.chain, 2, &edited.previous, &edited.record);
    assert_eq!(
        check(Some(&head), &entries),
        [Finding::HeadDiffers { seq: 2 }]
    );
}

#[test]
fn two_entries_that_changed_places_are_found() {
    let (mut entries, head) = chain(4);
    let (b, c) = (entries[1].doc.take(), entries[2].doc.take());
    (entries[1].doc, entries[2].doc) = (c, b);
    let found = check(Some(&head), &entries);
    assert_eq!(
        found[..2],
        [
            Finding::Reordered { place: 2, seq: 3 },
            Finding::Reordered { place: 3, seq: 2 }
        ]
    );
    // The same in a file, where the lines changed places.
    let (mut entries, head) = chain(4);
    entries.swap(1, 2);
    let found = check(Some(&head), &entries);
    assert_eq!(
        found,
        [
            Finding::Removed { from: 2, to: 2 },
            Finding::Reordered { place: 4, seq: 2 }
        ]
    );
}

#[test]
fn a_tail_that_was_cut_off_is_missed_by_the_head() {
    let (mut entries, head) = chain(5);
    entries.truncate(3);
    assert_eq!(
        check(Some(&head), &entries),
        [Finding::Truncated { last: 3, head: 5 }]
    );
    assert_eq!(
        check(Some(&head), &[]),
        [Finding::Truncated { last: 0, head: 5 }]
    );
}

#[test]
fn a_head_that_is_gone_or_turned_back_is_found() {
    let (entries, head) = chain(3);
    assert_eq!(check(None, &entries), [Finding::HeadMissing { last: 3 }]);
    let older = chain(2).1;
    assert_eq!(
        check(Some(&older), &entries),
        [Finding::BeyondHead { last: 3, head: 2 }]
    );
    let renamed = AuditChainDoc {
        chain: "client:b".to_owned(),
        ..head
    };
    assert_eq!(
        check(Some(&renamed), &entries),
        [Finding::HeadDiffers { seq: 3 }]
    );
}

#[test]
fn what_belongs_elsewhere_or_nowhere_is_found() {
    let (mut entries, head) = chain(2);
    let id = entry_id(&chain_id("client:b"), 1);
    entries.push(Stored {
        id: id.clone(),
        doc: None,
    });
    assert_eq!(check(Some(&head), &entries), [Finding::Foreign { id }]);
    let (mut entries, head) = chain(3);
    entries[1].doc = None;
    assert_eq!(
        check(Some(&head), &entries),
        [Finding::Unreadable {
            id: entries[1].id.clone()
        }]
    );
}

#[test]
fn a_chain_that_was_written_anew_is_found_by_whoever_noted_its_head() {
    let noted = chain(3).1;
    // Somebody who may write everything makes another history of the same length, and a longer one.
    for n in [3, 5] {
        let (mut entries, _) = chain(n);
        let mut records: Vec<AuditRecord> =
            entries.drain(..).map(|e| e.doc.unwrap().record).collect();
        records[1].reason = "nothing happened".to_owned();
        let sealed = seal(Vec::new(), records, None, &Instance::operator()).unwrap();
        let (head, entries) = (&sealed.heads[0], stored(sealed.entries.clone()));
        assert_eq!(check(Some(head), &entries), [], "whole in itself");
        let mut check = ChainCheck::new(&head.id);
        check.expect(noted.seq, &noted.hash);
        entries.iter().for_each(|entry| check.push(entry));
        assert_eq!(check.finish(Some(head)), [Finding::Rewritten { seq: 3 }]);
    }
    // The head was turned back together with the tail.
    let (entries, head) = chain(2);
    let mut check = ChainCheck::new(&head.id);
    check.expect(noted.seq, &noted.hash);
    entries.iter().for_each(|entry| check.push(entry));
    assert_eq!(check.finish(Some(&head)), [Finding::Rewritten { seq: 3 }]);
    // What was noted is still there in a chain that only grew.
    let (entries, head) = chain(7);
    let mut check = ChainCheck::new(&head.id);
    check.expect(noted.seq, &noted.hash);
    entries.iter().for_each(|entry| check.push(entry));
    assert_eq!(check.finish(Some(&head)), []);
}

#[test]
fn a_part_of_a_chain_is_judged_by_what_is_there() {
    let (entries, head) = chain(6);
    let judge = |entries: &[Stored<AuditEntry>]| {
        let mut check = ChainCheck::partial(&head.id);
        entries.iter().for_each(|entry| check.push(entry));
        check.finish_without_head()
    };
    assert_eq!(judge(&entries[2..]), []);
    let holed: Vec<_> = [&entries[2], &entries[4]].into_iter().cloned().collect();
    assert_eq!(judge(&holed), [Finding::Removed { from: 4, to: 4 }]);
}
