//! A rotation, killed at every step and around the times it waits for.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_survives_a_kill_at_every_step() {
    let (mut stage, mut relay) = Stage::set().await;
    for point in [
        Point::AfterInbox,
        Point::AfterAdmit,
        Point::AfterReserve,
        Point::AfterSeal,
        Point::AfterPrepare,
        Point::AfterOnePublish,
        Point::AfterPublish,
        Point::AfterAck,
        Point::AfterPromote,
    ] {
        println!("kill at {}", point.name());
        let wish = stage.rotation(reason(point.name()));
        relay = stage.rotate_through(relay, &wish, point).await;
    }
    // Nobody dies in this one.
    let wish = stage.rotation(reason("nobody dies"));
    let (signer, held) = (stage.world.issuer.signer(), &stage.held);
    carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
    stage.well(&relay, &wish, "after all").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_dies_one_step_further_each_time_ends_well() {
    let (mut stage, mut relay) = Stage::set().await;
    let wish = stage.rotation(reason("again and again"));
    relay.arm(Point::AfterReserve);
    let Stage {
        world,
        judge,
        held,
        alice,
        bob,
        current,
        ..
    } = &mut stage;
    let admins = carry_through(world.issuer.signer(), alice, bob, &wish, held);
    let operator = async {
        crashed(relay).await;
        // With one group, what comes after its one event is delivered leaves nothing to a recovery: its relay holds everything.
        for point in [
            Point::AfterSeal,
            Point::AfterPrepare,
            Point::AfterOnePublish,
        ] {
            let at = format!("recovery, {}", point.name());
            println!("{at}");
            match world.try_relay(Some(point)).await {
                Ok(relay) => crashed(relay).await,
                Err(status) => assert_eq!(status.signal(), Some(9), "{at}: {status}"),
            }
            judge.consistent(*current, &wish.id, held, &at).await;
        }
        world.relay().await
    };
    let (_, relay) = join!(admins, operator);
    stage.well(&relay, &wish, "at last").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_survives_a_kill_around_the_times_that_it_waits_for() {
    let (mut stage, mut relay) = Stage::set().await;

    // Promoted by the clock, and killed before anybody was told; then the grace of the first secret ends: retired, and killed again.
    let later = |seconds| Params {
        not_before: Some(now().plus(Duration::from_secs(seconds))),
        grace_duration_ms: Some(1_000),
        ..reason("not before")
    };
    let wish = stage.rotation(later(5));
    relay.arm(Point::AfterPromote);
    let Stage {
        world,
        judge,
        held,
        alice,
        bob,
        current,
        ..
    } = &mut stage;
    let admins = carry_through(world.issuer.signer(), alice, bob, &wish, held);
    let operator = async {
        crashed(relay).await;
        judge.consistent(*current, &wish.id, held, "promoted").await;
        // Armed from its start on, so that it cannot miss the moment; it may come before the relay is ready.
        if let Ok(relay) = world.try_relay(Some(Point::AfterRetire)).await {
            crashed(relay).await;
        }
        judge.consistent(*current, &wish.id, held, "retired").await;
        world.relay().await
    };
    let (_, relay) = join!(admins, operator);
    let retired = stage.current;
    stage.well(&relay, &wish, "promoted and retired").await;
    let versions = stage.judge.store.versions(&wish.client).await.unwrap();
    let old = versions
        .iter()
        .find(|version| version.version_id == retired);
    assert_eq!(old.unwrap().state, VersionState::Retired);
    assert_eq!(stage.judge.client().await.previous_version, None);

    // Killed while the quorum waits for its time, and away when the time comes.
    let wish = stage.rotation(later(20));
    let proof = stage.world.issuer.signer();
    insist(proof, &mut stage.alice, &wish).await;
    for admin in [&mut stage.alice, &mut stage.bob] {
        let opened = steady::open(admin, &wish.id, &stage.held).await;
        steady::ack(admin, &opened).await;
    }
    let waiting = eventually("the quorum is met", async || {
        let rotation = stage.judge.rotation(&wish.id).await?;
        (rotation.state == RotationState::QuorumMet).then_some(rotation)
    })
    .await;
    relay.kill();
    let old = stage.held.secret(stage.current);
    let verified = stage.judge.verify(&old).await;
    assert_eq!(verified, Some((stage.current, Which::Current)));
    eventually("its time comes", async || {
        (now() >= waiting.not_before).then_some(())
    })
    .await;
    let relay = stage.after_death(&wish, "quorum met").await;
    done(&mut stage.alice, &wish.id).await;
    stage.well(&relay, &wish, "quorum met").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_runs_out_of_time_while_the_relay_is_dead_expires_at_its_start() {
    let (mut stage, relay) = Stage::set().await;
    relay.terminate();
    stage
        .world
        .configure(|config| policy(config, "ack_deadline", "10s"));
    let relay = stage.world.try_relay(Some(Point::AfterPublish)).await;
    let wish = stage.rotation(reason("too late"));
    let (world, judge) = (&stage.world, &stage.judge);
    let operator = async {
        crashed(relay.unwrap()).await;
        let prepared = judge.rotation(&wish.id).await.unwrap();
        assert_eq!(prepared.state, RotationState::Prepared);
        eventually("the deadline passes", async || {
            (now() >= prepared.ack_deadline).then_some(())
        })
        .await;
        world.configure(|config| policy(config, "ack_deadline", "30m"));
        world.relay().await
    };
    let asked = insist(world.issuer.signer(), &mut stage.alice, &wish);
    let (reply, relay) = join!(asked, operator);
    assert!(
        matches!(
            reply.answer.body,
            NotifyState::Done {
                outcome: Outcome::Expired,
                ..
            }
        ),
        "{:?}",
        reply.answer
    );
    let over = eventually("it is over", async || {
        let rotation = stage.judge.rotation(&wish.id).await?;
        (rotation.state == RotationState::Done).then_some(rotation)
    })
    .await;
    assert_eq!(over.outcome, Some(Outcome::Expired));
    let versions = stage.judge.versions_of(&wish.id).await;
    assert_eq!(versions.len(), 1);
    assert_eq!(versions[0].state, VersionState::Cancelled);
    let client = stage.judge.client().await;
    assert_eq!(client.active_rotation, None);
    let old = stage.held.secret(stage.current);
    let verified = stage.judge.verify(&old).await;
    assert_eq!(verified, Some((stage.current, Which::Current)));

    let wish = stage.rotation(reason("in time"));
    let (signer, held) = (stage.world.issuer.signer(), &stage.held);
    carry_through(signer, &mut stage.alice, &mut stage.bob, &wish, held).await;
    stage.well(&relay, &wish, "after an expired one").await;
}
