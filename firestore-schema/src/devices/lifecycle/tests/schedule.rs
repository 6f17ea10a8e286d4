//! Invitations.

use super::*;

#[test]
fn a_scheduled_device_is_invited_until_it_answers() {
    let mut w = World::new();
    let options = DeviceOptions {
        policy: DevicePolicy::Scheduled,
        ..DeviceOptions::default()
    };
    w.change(Change::Allow {
        role: "river-iot".into(),
        options,
    });
    let first = w.doc().due_at.unwrap();
    assert!((START..=START.plus(MINUTE)).contains(&first));
    w.now = first;
    let next_ping = w.now.plus(MINUTE);
    assert!(matches!(
        w.change(Change::Ping {
            nonce: nonce(1),
            next_ping
        }),
        Answer::Done(_)
    ));
    assert_eq!(
        w.change(Change::Ping {
            nonce: nonce(2),
            next_ping
        }),
        Answer::Stale,
        "not yet"
    );
    w.later(MINUTE);
    let next_ping = w.now.plus(MINUTE);
    w.change(Change::Ping {
        nonce: nonce(2),
        next_ping,
    });
    assert!(w.events.contains(&"device.ping_unanswered".to_owned()));
    assert_eq!(w.doc().pings_missed, 1);
    w.issue(2, "a");
    assert_eq!((w.doc().ping.clone(), w.doc().pings_missed), (None, 0));
    w.proven(2, "a");
    assert_eq!(w.doc().ping_at, Some(w.now.plus(HOUR * 6)));
}

#[test]
fn who_asks_by_itself_has_not_missed_its_invitation() {
    let mut w = World::new();
    let options = DeviceOptions {
        policy: DevicePolicy::Scheduled,
        ..DeviceOptions::default()
    };
    w.allow("river-iot", options);
    w.now = w.doc().due_at.unwrap();
    for n in [1, 2] {
        let next_ping = w.now.plus(MINUTE);
        w.change(Change::Ping {
            nonce: nonce(n),
            next_ping,
        });
        w.later(MINUTE);
    }
    assert_eq!(w.doc().pings_missed, 1);
    w.issue(3, "a");
    assert_eq!((w.doc().ping.clone(), w.doc().pings_missed), (None, 0));
}

/// An import or `invalidate --all` must not have them all ask in one instant.
#[test]
fn devices_that_are_changed_in_one_go_are_invited_one_after_the_other() {
    let options = DeviceOptions {
        policy: DevicePolicy::Scheduled,
        ..DeviceOptions::default()
    };
    let mut per_second = [0; 61];
    for n in 0..1000 {
        let id: DeviceId = format!("river-{n}").parse().unwrap();
        let (role, options) = ("river-iot".to_owned(), options.clone());
        let allowed = apply(&id, None, Change::Allow { role, options }, START);
        let mut doc = allowed.doc.unwrap();
        let first = doc.ping_at.unwrap();
        per_second[usize::try_from(first.since(START).as_secs()).unwrap()] += 1;
        // It holds something, and has its next invitation in hours.
        doc.ping_at = Some(START.plus(HOUR * 6));
        doc.current = Some(Held {
            accessor: "a".into(),
            role: "river-iot".into(),
            issuer: None,
            nonce: nonce(1),
            expected_proof: String::new(),
            proven: true,
            issued_at: START,
            expires_at: START.plus(LIMITS.ttl),
        });
        let invalidated = apply(&id, Some(doc), Change::Invalidate, START);
        assert_eq!(invalidated.doc.unwrap().ping_at, Some(first));
    }
    let most = per_second.iter().max().unwrap();
    assert!(*most <= 50, "{most} of 1000 within one second");
}
