//! What a rotation costs in write commits. Each is a round trip to Firestore that the requester waits for.

use keyturn_proto::Action;
use keyturn_store::fake_kms::FakeKms;
use keyturn_tests::attack::contains;
use keyturn_tests::eventually;
use keyturn_tests::world::{deadline, open_and_ack, reason, set};

const PROGRAM: &str = env!("CARGO_BIN_EXE_keyturn-under-test");
/// One each for nonce, reservation, preparation, and the ack that promotes.
const MOST: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_to_promoted_takes_four_write_commits_with_a_quorum_of_one() {
    let server = FakeKms::start().await.unwrap();
    let (mut world, proxy) = super::world(PROGRAM, &server, |config| {
        set(config, "policy", "quorum", 1);
    })
    .await;
    let (relay, mut alice, mut bob, group) = world.with_group().await;
    let store = world.operator().await;
    // The first makes a secret where there was none; those that follow replace one.
    for turn in 1..=3 {
        let before = proxy.committed().len();
        let reply = world
            .ask(&mut alice, &group, Action::Rotation, reason("cost"))
            .await
            .unwrap();
        open_and_ack(&mut bob, &reply.action_id).await;
        bob.await_done(&reply.action_id, deadline()).await.unwrap();

        // The lease is renewed by the clock, whether anybody asks for anything or not.
        let all = proxy.committed().split_off(before);
        let mut commits = all
            .into_iter()
            .filter(|commit| !contains(commit, b"/documents/leases/"))
            .collect::<Vec<_>>();
        let promoted = commits
            .iter()
            .position(|commit| contains(commit, b"rotation.promoted"))
            .expect("one of them promotes");
        commits.truncate(promoted + 1);
        assert!(
            (2..=MOST).contains(&commits.len()),
            "turn {turn}: {} commits:\n{}",
            commits.len(),
            commits
                .iter()
                .map(|commit| documents(commit))
                .collect::<String>()
        );
        for (nth, commit) in commits.iter().enumerate() {
            let is_with_its_record = contains(commit, b"/documents/audit/")
                && contains(commit, b"/documents/audit_chains/");
            let burns_a_nonce = contains(commit, b"/documents/nonces/");
            assert!(
                is_with_its_record || burns_a_nonce,
                "turn {turn}: commit {nth} changes something and does not record it"
            );
        }
        // That the end was told is recorded later, and waited for by nobody.
        eventually("the end is recorded as announced", async || {
            let rotation = store.rotation(&reply.action_id).await.unwrap().unwrap();
            rotation.announced_at
        })
        .await;
    }
    tokio::task::spawn_blocking(move || relay.terminate())
        .await
        .unwrap();
}

/// The documents that a commit names, for whoever has to find out.
fn documents(commit: &[u8]) -> String {
    let text = String::from_utf8_lossy(commit);
    let named = text.split("/documents/").skip(1);
    let ids = named.map(|rest| {
        rest.split(|it: char| it.is_control())
            .next()
            .unwrap_or(rest)
    });
    format!("{}\n", ids.collect::<Vec<_>>().join(" "))
}
