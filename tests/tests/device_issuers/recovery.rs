//! The relay is killed between any two effects of an issue and of a destruction, and started again over the same files.

use std::collections::BTreeSet;

use keyturn::crash::Point;
use keyturn_store::fake_kms::FakeKms;
use keyturn_tests::iot::{Given, House, Line, Mqtt};
use keyturn_tests::relay::Relay;

use super::{ID, Issuer, PROGRAM, connect, never_given_twice, settled};

/// Where the process dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// At a point on the way to the command: the device hears nothing.
    Issuing(Point),
    /// The command has reached the device; its result has not been said.
    BeforeResult,
    /// At a point of the destruction that the device's proven ok has caused.
    Destroying(Point),
}

/// Between the intent and the record of what was made.
const IN_STEPS: [Death; 2] = [
    Death::Issuing(Point::BeforeIssue),
    Death::Issuing(Point::AfterIssue),
];

const DEATHS: [Death; 4] = [
    Death::Issuing(Point::AfterIssueRecorded),
    Death::BeforeResult,
    Death::Destroying(Point::BeforeDestroy),
    Death::Destroying(Point::AfterDestroy),
];

struct Stage {
    issuer: Issuer,
    house: House,
    device: Line,
    /// What the device holds and has reported.
    held: Given,
}

impl Stage {
    async fn set(issuer: Issuer) -> (Self, Relay) {
        let house = House::new(PROGRAM, Mqtt::V5, |config| issuer.configure(config)).await;
        let relay = house.relay().await;
        house.allow(ID, &[]).await;
        let mut device = connect(&house).await;
        let held = device.renew().await;
        device.confirm(&held).await;
        settled(&house).await;
        let stage = Self {
            issuer,
            house,
            device,
            held,
        };
        (stage, relay)
    }

    /// One renewal through a death; the relay that came after.
    async fn live_through(&mut self, death: Death, mut relay: Relay) -> Relay {
        let old = self.held.clone();
        let before = self.issuer.living(&self.house).await;
        let new = match death {
            Death::Issuing(point) => {
                relay.arm(point);
                let nonce = self.device.ask().await;
                let relay = self.born_again(relay, true).await;
                let living = self.issuer.living(&self.house).await;
                assert!(living.is_superset(&before), "{death:?}: {living:?}");
                // One whose issue was cut off is told so. Once it is recorded, only the device can know that nothing came.
                if !matches!(point, Point::AfterIssueRecorded) {
                    let told = self.device.answer(&nonce).await.unwrap_err();
                    assert_eq!(told["error"], "interrupted", "{death:?}");
                }
                let new = self.device.renew().await;
                self.device.confirm(&new).await;
                return self.judge(death, relay, &old, new).await;
            }
            Death::BeforeResult | Death::Destroying(_) => {
                if let Death::Destroying(point) = death {
                    relay.arm(point);
                }
                self.device.renew().await
            }
        };
        let relay = match death {
            Death::BeforeResult => {
                let relay = self.born_again(relay, false).await;
                // What it got before the kill is as good as ever.
                self.device.confirm(&new).await;
                relay
            }
            Death::Issuing(_) | Death::Destroying(_) => {
                self.device.confirm(&new).await;
                self.born_again(relay, true).await
            }
        };
        self.judge(death, relay, &old, new).await
    }

    /// Waits for the armed point, or kills; then starts the relay again.
    async fn born_again(&self, relay: Relay, armed: bool) -> Relay {
        let ended = move || {
            if armed {
                relay.wait_for_crash()
            } else {
                relay.kill()
            }
        };
        tokio::task::spawn_blocking(ended).await.unwrap();
        self.house.relay().await
    }

    /// What the device holds works, what it held before does not, and there is nothing else.
    async fn judge(&mut self, death: Death, relay: Relay, old: &Given, new: Given) -> Relay {
        let doc = settled(&self.house).await;
        let current = doc.current.unwrap().accessor;
        let living = self.issuer.living(&self.house).await;
        assert_eq!(living, BTreeSet::from([current]), "{death:?}");
        for (given, works) in [(&new, true), (old, false)] {
            let Self { issuer, house, .. } = &*self;
            let found = issuer.logs_in(house, &relay, &given.credential).await;
            assert_eq!(found, works, "{death:?}");
        }
        never_given_twice(&self.device);
        self.held = new;
        relay
    }

    async fn events(&self, event: &str) -> usize {
        self.house.count(ID, event).await
    }
}

/// `cut_off` are the deaths between the intent and the record, and how many of them leave a secret_id behind that has to be found.
async fn survives_every_kill(issuer: Issuer, cut_off: &[Death], orphans: usize) {
    let (mut stage, mut relay) = Stage::set(issuer).await;
    let deaths = cut_off.len() + DEATHS.len();
    for death in cut_off.iter().chain(&DEATHS) {
        relay = stage.live_through(*death, relay).await;
    }
    // One that was made and not recorded was found by its nonce; before the issuer was asked, there was nothing to find.
    assert_eq!(stage.events("device.interrupted").await, cut_off.len());
    assert_eq!(stage.events("device.orphan_found").await, orphans);
    // One in the beginning, one per death that the device saw through, and the one whose command was never sent.
    assert_eq!(stage.events("device.issued").await, 1 + deaths + 1);
    // Each was destroyed once: those that were replaced, the orphans, and the one that nobody was told of. One of them was gone when it was asked for again.
    let (now, before) = (
        stage.events("device.destroyed").await,
        stage.events("device.already_gone").await,
    );
    assert_eq!((now, before), (deaths + orphans, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_embedded_issuer_nothing_is_lost_and_nothing_made_twice() {
    survives_every_kill(Issuer::Embedded, &[], 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_embedded_issuer_and_a_key_elsewhere_nothing_is_lost_and_nothing_made_twice() {
    let server = FakeKms::start().await.unwrap();
    survives_every_kill(Issuer::InSteps(Box::new(server)), &IN_STEPS, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_vault_nothing_is_lost_and_nothing_made_twice() {
    survives_every_kill(Issuer::vault().await, &IN_STEPS, 1).await;
}
