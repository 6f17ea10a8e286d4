//! What comes from one relay to the other, and what does not come back.

use super::*;

/// An event of its own, also within a second.
fn event(keys: &Keys, kind: u16, tags: Vec<Tag>, at: Timestamp) -> nostr::Event {
    let content = Keys::generate().public_key().to_hex();
    let builder = EventBuilder::new(Kind::from_u16(kind), content).tags(tags);
    let builder = builder.custom_created_at(at);
    builder.sign_with_keys(keys).unwrap()
}

fn h(group: &str) -> Vec<Tag> {
    vec![Tag::parse(["h", group]).unwrap()]
}

/// Events of the kinds that are mirrored, of people and groups that concern nobody here.
fn strangers(count: usize, at: Timestamp) -> Vec<nostr::Event> {
    let one = |n: usize| {
        let somebody = vec![Tag::public_key(Keys::generate().public_key())];
        let (kind, tags) = match n % 3 {
            0 => (445, h(&"ab".repeat(32))),
            1 => (1059, somebody),
            _ => (40913, Vec::new()),
        };
        event(&Keys::generate(), kind, tags, at)
    };
    (0..count).map(one).collect()
}

async fn send(relay: &Relay, events: &[nostr::Event]) -> BTreeSet<String> {
    let mut wire = Wire::connect(&relay.url).await;
    for event in events {
        wire.send(json!(["EVENT", event])).await;
    }
    for _ in events {
        let (_, accepted, why) = wire.next_ok().await;
        assert!(accepted, "{why}");
    }
    events.iter().map(|event| event.id.to_hex()).collect()
}

/// Waits until something was counted: that comes a moment after what is counted.
async fn counted(relay: &Relay, name: &str, label: &str) {
    eventually(&format!("{name} {label}"), async || {
        (counter(relay, name, label).await > 0).then_some(())
    })
    .await;
}

async fn has_all(relay: &Relay, ids: &BTreeSet<String>) {
    let mut wire = Wire::connect(&relay.url).await;
    eventually("everything is mirrored", async || {
        (wire.stored(ids.clone()).await == *ids).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mirror_catches_up_after_an_outage_of_either() {
    let (stage, first, second) = Stage::set(|_| {}).await;
    let live = send(&first, &strangers(20, Timestamp::now())).await;
    has_all(&second, &live).await;
    second.kill();
    let missed = send(&first, &strangers(40, Timestamp::now())).await;
    let second = stage.sibling.relay().await;
    has_all(&second, &missed).await;
    first.kill();
    let missed = send(&second, &strangers(40, Timestamp::now())).await;
    let first = stage.world.relay().await;
    has_all(&first, &missed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_who_fills_a_second_hides_nothing_from_the_mirror() {
    // More than a relay shows of one second at once.
    const CROWD: usize = 330;
    let (mut stage, first, second) = Stage::set(|_| {}).await;
    let us = PublicKey::from_slice(stage.sibling.npub.as_bytes()).unwrap();
    let alice = stage.world.keys("alice");
    let groups = stage.alice.groups().unwrap();
    let group = groups.into_iter().find(|group| group.id == stage.group);
    let group = group.unwrap().nostr_group_id.to_hex();
    second.kill();
    let crowded = Timestamp::now() - 60;
    // What the other relay has to have lies before, under and behind what strangers have piled up.
    let mut ours = strangers(5, crowded - 1);
    ours.push(event(&alice, 40913, Vec::new(), crowded));
    ours.push(event(&Keys::generate(), 445, h(&group), crowded));
    ours.push(event(
        &Keys::generate(),
        1059,
        vec![Tag::public_key(us)],
        crowded,
    ));
    ours.extend(strangers(5, crowded + 1));
    let ours = send(&first, &ours).await;
    send(&first, &strangers(3 * CROWD, crowded)).await;
    let second = stage.sibling.relay().await;
    has_all(&second, &ours).await;
    counted(&second, MIRROR_SKIPPED, "others").await;
    assert_eq!(counter(&second, MIRROR_SKIPPED, "ours").await, 0);

    // Whoever knows a group's address can fill that, too: then some of it is given up, aloud, and the rest is had.
    second.kill();
    let crowd = (0..CROWD).map(|_| event(&Keys::generate(), 445, h(&group), crowded + 20));
    send(&first, &crowd.collect::<Vec<_>>()).await;
    let behind = send(&first, &strangers(5, crowded + 21)).await;
    let second = stage.sibling.relay().await;
    has_all(&second, &behind).await;
    counted(&second, MIRROR_SKIPPED, "ours").await;
    counted(&second, ALARMS, "mirror.skipped").await;
    // The groups go on.
    let wish = stage.wish("after the flood");
    stage.rotate(&wish, async {}).await;
    stage.well(&wish, &second, "after the flood").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_withdrawn_goes_from_both_relays_and_does_not_come_back() {
    let short = |config: &mut toml::Table| set(config, "outbox", "retention", "1s");
    let (mut stage, first, second) = Stage::set(short).await;
    let wish = stage.wish("to be withdrawn");
    let mut ids = BTreeSet::new();
    let watch = async {};
    stage.rotate(&wish, watch).await;
    let withdrawn = eventually("the store lists it", async || {
        let all = stage
            .judge
            .store
            .withdrawn(&Default::default(), 1000)
            .await
            .unwrap();
        let of_wish = all.into_iter().filter(|e| e.rotation_id == wish.id);
        let found: BTreeSet<String> = of_wish.map(|event| event.event_id).collect();
        (!found.is_empty()).then_some(found)
    })
    .await;
    ids.extend(withdrawn);
    for relay in [&first, &second] {
        let mut wire = Wire::connect(&relay.url).await;
        eventually("it is gone", async || {
            wire.stored(ids.clone()).await.is_empty().then_some(())
        })
        .await;
    }
}
