//! The relay cannot read what it sent. Somebody takes every file of the relay with every key it holds, and every event that was ever published, and
//! tries to open the relay's own rotate-notify: by hand with everything in the member database, and with OpenMLS. Each attempt is shown to work
//! on files from before, where it should.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use keyturn::quickstart::leaks::Needles;
use keyturn_admin::OpenedSecret;
use keyturn_mls::{AppMessage, Disposition};
use keyturn_proto::Action;
use keyturn_tests::World;
use keyturn_tests::attack::{Candidates, Opened, Reached, Stolen, contains, frozen};
use keyturn_tests::member_file::{key_package_secrets, log_frames, spellings};
use keyturn_tests::tap::{Subscriber, is_stored, publish};
use keyturn_tests::world::{CLIENT, GROUP, deadline, eventually, open_and_ack, reason};
use nostr::{Event, EventBuilder, Keys, Kind};

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");

/// A sealed notify, what is in it, and how it opened where it could be opened.
struct Notify {
    event: Event,
    secret: String,
    /// The secrets that open it, from those in files from before it was sealed down to the message key.
    trail: Vec<Vec<u8>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_files_and_keys_of_the_relay_open_none_of_its_own_notifies() {
    let mut world = World::new(PROGRAM, |_| {}).await;
    for name in ["alice", "bob"] {
        world.enrol(name).await;
    }
    world.bind(GROUP, "alice").await;
    world.client(CLIENT, &[GROUP]).await;
    let relay = world.relay().await;
    let wire = Subscriber::everything(&relay.url).await;
    let service = world.service();
    let by_service = |event: &Event| event.pubkey.to_bytes() == *service.as_bytes();
    let key_package = wire
        .wait_for("the relay's key package", |event| {
            event.kind == Kind::from(30_443) && by_service(event)
        })
        .await;
    let root = world.dir.path().to_owned();
    let steal = |relay| frozen(relay, || Stolen::from_relay(&root));
    let before_joining = steal(&relay);

    // One epoch, two rotations; a third one in the next epoch.
    let mut alice = world.admin("alice", &relay).await;
    let mut bob = world.admin("bob", &relay).await;
    let group = world.found(GROUP, &mut alice, &mut [&mut bob]).await;
    let before_first = steal(&relay);
    let rotation = world
        .ask(&mut alice, &group, Action::Rotation, reason("first"))
        .await
        .unwrap()
        .action_id;
    alice.await_secret(&rotation, deadline()).await.unwrap();
    let alices = Stolen::from_admin(&world.home("alice"), world.keys("alice"));
    let sealed_first = steal(&relay);
    let first = open_and_ack(&mut alice, &rotation).await;
    open_and_ack(&mut bob, &rotation).await;
    alice.await_done(&rotation, deadline()).await.unwrap();
    let before_second = steal(&relay);
    let (_, second) = world.rotate(&mut alice, &mut bob, &group).await;
    alice.self_update(&group, deadline()).await.unwrap();
    let (_, third) = world.rotate(&mut alice, &mut bob, &group).await;
    assert_eq!(before_first.epoch() + 1, steal(&relay).epoch());

    let welcome = wire
        .wait_for("the relay's Welcome", |event| {
            event.kind == Kind::GiftWrap
                && event
                    .tags
                    .public_keys()
                    .any(|to| to.to_bytes() == *service.as_bytes())
        })
        .await;
    eventually(
        "the Welcome and the key package it used are deleted",
        async || {
            let left =
                is_stored(&relay.url, &welcome).await || is_stored(&relay.url, &key_package).await;
            (!left).then_some(())
        },
    )
    .await;
    // Something that is written down and answered by nothing, so that the files are taken with a write-ahead log.
    let noise = noise(&wire.events());
    publish(&relay.url, &noise).await;
    wire.wait_for("the noise", |event| event.id == noise.id)
        .await;
    let files = root.join("data/member.db");
    eventually("the log is written to", async || {
        (!log_frames(&files).is_empty()).then_some(())
    })
    .await;
    relay.kill();
    let killed = Stolen::from_relay(&root);
    assert!(!log_frames(&killed.database()).is_empty());
    let again = world.relay().await;
    again.terminate();
    let ended = Stolen::from_relay(&root);

    let events: Vec<Event> = wire
        .events()
        .into_iter()
        .filter(|event| event.kind == Kind::from(445))
        .collect();
    let notifies = [
        control(&before_first, &first, &events),
        control(&before_second, &second, &events),
        // The stored commit leads from the files of one epoch into the next.
        control(&before_second.followed(&events), &third, &events),
    ];
    with_openmls(&before_first, &before_second, &alices, &notifies);
    joining_again(&before_joining, &killed, &welcome, &events, &notifies);

    for (name, stolen, sealed) in [
        ("sealed", &sealed_first, &notifies[..1]),
        ("killed", &killed, &notifies[..]),
        ("ended", &ended, &notifies[..]),
    ] {
        for notify in sealed {
            nothing_opens(name, stolen, notify, &events);
        }
        nothing_is_left(name, stolen, &before_joining, sealed);
    }
    drop((alice, bob));
}

/// By hand, from files that were taken before the notify was sealed: it opens. That finds the notify among all events.
fn control(before: &Stolen, delivered: &OpenedSecret, events: &[Event]) -> Notify {
    let candidates = Candidates::of(before);
    let secret = delivered.notify.secret.expose().to_owned();
    let opened = events
        .iter()
        .find_map(|event| match candidates.open(event) {
            Reached::Content(Opened { plaintext, trail })
                if contains(&plaintext, secret.as_bytes()) =>
            {
                Some((event.clone(), trail))
            }
            _ => None,
        });
    let (event, trail) = opened.expect("control: files from before sealing open the notify");
    let pages = before.clear_bytes();
    assert!(
        trail.iter().any(|secret| holds(&pages, secret)),
        "control: the search finds what opens it"
    );
    Notify {
        event,
        secret,
        trail,
    }
}

/// The controls of the attempts with OpenMLS: they work on files from before, and on those of somebody the message was for.
fn with_openmls(first: &Stolen, second: &Stolen, alices: &Stolen, notifies: &[Notify; 3]) {
    for (before, notify) in [(first, &notifies[0]), (second, &notifies[1])] {
        let leaf = other_leaves(before)[0];
        let opened = before.replay(Some(leaf), std::slice::from_ref(&notify.event));
        assert!(
            notify.is_in(&opened),
            "control: OpenMLS opens it from files from before sealing"
        );
    }
    let notify = &notifies[0];
    assert!(
        matches!(
            Candidates::of(alices).open(&notify.event),
            Reached::Content(_)
        ),
        "control: an admin's files from before she opened it, by hand"
    );
    let mut opened = Vec::new();
    alices
        .again()
        .member()
        .receive_deferred(notify.event.id, &mut |message: &AppMessage| {
            opened.push(message.body.to_vec());
            Disposition::Consume
        })
        .unwrap();
    assert!(
        notify.is_in(&opened),
        "control: an admin's files from before she opened it, with OpenMLS"
    );
}

/// The Welcome, had somebody kept it, is of no use without the key package; and even with that one, the way ends where the relay renewed its leaf.
fn joining_again(
    before_joining: &Stolen,
    after: &Stolen,
    welcome: &Event,
    events: &[Event],
    notifies: &[Notify; 3],
) {
    let (opened, joined) = before_joining
        .rejoin(welcome, events)
        .expect("control: the Welcome opens with files from before joining");
    assert!(!notifies.iter().any(|notify| notify.is_in(&opened)));
    let candidates = Candidates::of(&joined);
    for notify in notifies {
        assert!(
            matches!(candidates.open(&notify.event), Reached::Nothing),
            "the relay's renewal of its leaf cannot be followed"
        );
    }
    let refused = after.rejoin(welcome, events).map(|_| ());
    assert!(
        refused.is_err(),
        "the key package that the Welcome needs is gone"
    );
}

/// Everything there is to try on files from after sealing.
fn nothing_opens(name: &str, stolen: &Stolen, notify: &Notify, events: &[Event]) {
    for stolen in [stolen, &stolen.followed(events)] {
        let candidates = Candidates::of(stolen);
        let reached = candidates.open(&notify.event);
        // The attempt gets as far as the sender: the outer layer and the header have keys of their own, which the relay keeps.
        assert!(
            matches!(reached, Reached::Sender { leaf, .. } if leaf == stolen.own_leaf()),
            "{name}: {reached:?} with {} candidates",
            candidates.count()
        );
    }
    let only = std::slice::from_ref(&notify.event);
    let seats = other_leaves(stolen).into_iter().map(Some);
    for seat in seats.chain([None]) {
        for events in [only, events] {
            assert!(
                !notify.is_in(&stolen.replay(seat, events)),
                "{name}: OpenMLS opened it from seat {seat:?}"
            );
        }
    }
}

/// No page, in use or free, and no frame of the log holds the plaintext, a secret that opens it, or one that joins again.
fn nothing_is_left(name: &str, stolen: &Stolen, before_joining: &Stolen, sealed: &[Notify]) {
    let pages = stolen.clear_bytes();
    assert!(
        contains(&pages, b"openmls_group_data"),
        "{name}: the pages are open"
    );
    let files = stolen.files();
    assert!(files.len() > 5, "{name}: store, events, keys, log");
    for notify in sealed {
        for bytes in files.iter().chain([&pages]) {
            assert!(
                !Needles::of(&notify.secret).in_bytes(bytes),
                "{name}: the plaintext"
            );
            for secret in &notify.trail {
                assert!(!holds(bytes, secret), "{name}: a secret is left");
            }
        }
    }
    let before = before_joining.clear_bytes();
    let used = before_joining.look(key_package_secrets);
    assert!(used.len() >= 2, "to open the Welcome, and of the leaf");
    for secret in used {
        assert!(
            holds(&before, &secret),
            "control: the search finds a key package's secret"
        );
        assert!(
            !holds(&pages, &secret),
            "{name}: the key package's secret is left"
        );
    }
    let snapshots: i64 = stolen.look(|db| {
        let kept = "SELECT count(*) FROM commits WHERE snapshot IS NOT NULL";
        db.query_row(kept, [], |row| row.get(0)).unwrap()
    });
    assert_eq!(snapshots, 0, "{name}: nothing to go back with is kept");
}

impl Notify {
    fn is_in(&self, opened: &[Vec<u8>]) -> bool {
        opened
            .iter()
            .any(|plaintext| contains(plaintext, self.secret.as_bytes()))
    }
}

/// Half a secret is enough: the other half may stand on another page.
fn holds(pages: &[u8], secret: &[u8]) -> bool {
    let (front, back) = secret.split_at(secret.len() / 2);
    [front, back]
        .iter()
        .flat_map(|half| spellings(half))
        .any(|needle| contains(pages, &needle))
}

fn other_leaves(stolen: &Stolen) -> Vec<u32> {
    (0..3).filter(|leaf| *leaf != stolen.own_leaf()).collect()
}

/// An event that claims to be of the group and that nothing opens.
fn noise(events: &[Event]) -> Event {
    let group = events
        .iter()
        .find(|event| event.kind == Kind::from(445))
        .unwrap();
    let content =
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, [0x5a_u8; 200]);
    EventBuilder::new(Kind::from(445), content)
        .tags(group.tags.iter().cloned())
        .sign_with_keys(&Keys::generate())
        .unwrap()
}
