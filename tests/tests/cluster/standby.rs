//! What somebody has who steals a relay that stands by.

use super::*;

/// Half a secret is enough: the other half may stand on another page.
fn holds(bytes: &[u8], secret: &[u8]) -> bool {
    let (front, back) = secret.split_at(secret.len() / 2);
    let halves = [front, back].into_iter();
    halves
        .flat_map(spellings)
        .any(|needle| contains(bytes, &needle))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_files_and_keys_of_a_standby_open_no_notify_that_it_has_taken_in() {
    let (mut stage, _first, second) = Stage::set(|_| {}).await;
    let root = stage.sibling.root().to_owned();
    let wire = Subscriber::everything(&second.url).await;
    let before = frozen(&second, || Stolen::from_relay(&root));
    let Stage {
        world,
        alice,
        bob,
        group,
        ..
    } = &mut stage;
    let (_, delivered) = world.rotate(alice, bob, group).await;
    let secret = delivered.notify.secret.expose();

    // The control: the standby is a member, and could have read it. That also finds it among all events.
    let candidates = Candidates::of(&before);
    let (notify, trail) = eventually(
        "control: files from before it came open the notify",
        async || {
            let events = wire.events().into_iter();
            let group_events = events.filter(|e| e.kind == Kind::from(445));
            group_events
                .filter_map(|event| match candidates.open(&event) {
                    Reached::Content(opened) => Some((event, opened)),
                    _ => None,
                })
                .find(|(_, opened)| contains(&opened.plaintext, secret.as_bytes()))
                .map(|(event, opened)| (event, opened.trail))
        },
    )
    .await;
    let pages = before.clear_bytes();
    assert!(
        trail.iter().any(|key| holds(&pages, key)),
        "control: the search finds what opens it"
    );
    eventually("the standby has taken it in", async || {
        let now = frozen(&second, || Stolen::from_relay(&root));
        (!matches!(Candidates::of(&now).open(&notify), Reached::Content(_))).then_some(())
    })
    .await;

    second.kill();
    let killed = Stolen::from_relay(&root);
    stage.sibling.relay().await.terminate();
    let ended = Stolen::from_relay(&root);
    for (name, stolen) in [("killed", &killed), ("ended", &ended)] {
        let reached = Candidates::of(stolen).open(&notify);
        assert!(
            matches!(reached, Reached::Sender { leaf, .. } if leaf != stolen.own_leaf()),
            "{name}: {reached:?}"
        );
        let opened = stolen.replay(None, std::slice::from_ref(&notify));
        assert!(
            !opened.iter().any(|text| contains(text, secret.as_bytes())),
            "{name}: OpenMLS opened it"
        );
        let (pages, files) = (stolen.clear_bytes(), stolen.files());
        assert!(
            contains(&pages, b"openmls_group_data"),
            "{name}: open pages"
        );
        for bytes in files.iter().chain([&pages]) {
            assert!(
                !Needles::of(secret).in_bytes(bytes),
                "{name}: the plaintext"
            );
            assert!(
                !trail.iter().any(|key| holds(bytes, key)),
                "{name}: what opens it is left"
            );
        }
    }
}
