//! The connection against a broker that does what no good one does.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod broker;

use std::sync::Arc;

use keyturn_store::devices::DeviceOptions;
use serde_json::json;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use self::broker::{Broker, Did, Order};
use super::*;
use crate::devices::outgoing::{self, Outgoing, Outlet as _};
use crate::devices::tests::faulty::{Fault, Faults, Faulty};
use crate::devices::tests::world::{World, id, nonce, request, settings};
use crate::web::readiness::{Readiness, State};

const BOTH: [Version; 2] = [Version::V5, Version::V311];
const STATUS: [&str; 3] = [
    "iot/river-0/status",
    "iot/river-1/status",
    "iot/river-2/status",
];

/// A relay's side of the connection.
struct Side {
    world: World,
    faults: Faults,
    outbox: Outbox,
    readiness: Readiness,
    stop: CancellationToken,
    link: JoinHandle<()>,
}

impl Side {
    async fn of(broker: &Broker) -> Self {
        let faults = Faults::default();
        let world = World::over(settings(), |store, _| {
            Arc::new(Faulty {
                store,
                faults: faults.clone(),
            })
        });
        for n in 0..3 {
            world.allow(&id(n), DeviceOptions::default()).await;
        }
        let (outbox, inbox) = outbox(16);
        let (readiness, stop) = (Readiness::default(), CancellationToken::new());
        let link = run(
            broker.options(),
            inbox,
            Arc::clone(&world.devices),
            readiness.register_apart("mqtt"),
            stop.clone(),
        );
        Self {
            world,
            faults,
            outbox,
            readiness,
            link: tokio::spawn(link),
            stop,
        }
    }

    async fn until_ready(&self) {
        self.world
            .until("it is ready", async |_| {
                self.readiness.states()["mqtt"] == State::Ready
            })
            .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.link)
            .await
            .expect("it did not stop")
            .unwrap();
    }
}

fn answer(n: usize, text: &str) -> Outgoing {
    Outgoing {
        device: id(n),
        payload: Zeroizing::new(text.as_bytes().to_vec()),
        retain: false,
        expires_in: Duration::from_secs(600),
    }
}

fn published(n: usize, text: &str) -> Did {
    Did::Published {
        topic: format!("iot/{}/command", id(n)),
        payload: text.as_bytes().to_vec(),
    }
}

fn asks(n: usize) -> Vec<u8> {
    request(&id(n), &nonce(n)).to_string().into_bytes()
}

#[tokio::test]
async fn a_panic_of_the_library_is_one_lost_connection_and_loses_no_answer() {
    for version in BOTH {
        let mut broker = Broker::start(version).await;
        let side = Side::of(&broker).await;
        broker.until(&Did::Connected { clean: false }).await;
        broker.until(&Did::Subscribed).await;
        // Two that the broker has and does not acknowledge; then the packet.
        broker.order(Order::Acknowledge(false));
        for text in ["first", "second"] {
            side.outbox.send(answer(1, text)).await.unwrap();
            broker.until(&published(1, text)).await;
        }
        broker.order(Order::Publish(7, wire::POISON, b"{}".to_vec()));
        // It would be sent again and again, had the session not been given up.
        broker.until(&Did::Left).await;
        broker.order(Order::Acknowledge(true));
        broker.until(&Did::Connected { clean: true }).await;
        broker.until(&Did::Subscribed).await;
        broker.until(&published(1, "first")).await;
        broker.until(&published(1, "second")).await;
        // It goes on as ever, and hears devices.
        side.until_ready().await;
        broker.order(Order::Publish(8, STATUS[1], asks(1)));
        broker.until(&Did::Acknowledged(8)).await;
        assert_eq!(side.world.doc(&id(1)).await.attempts, 1);
        side.stop().await;
    }
}

#[tokio::test]
async fn a_refused_subscription_is_tried_again_until_it_is_taken() {
    for version in BOTH {
        let mut broker = Broker::start(version).await;
        broker.order(Order::Refuse(true));
        let side = Side::of(&broker).await;
        for _ in 0..3 {
            broker.until(&Did::Connected { clean: false }).await;
            broker.until(&Did::Subscribed).await;
        }
        side.world
            .until("readiness says so", async |_| {
                let why = "the broker refused the subscription; see its access rules";
                side.readiness.states()["mqtt"] == State::Impaired(why)
            })
            .await;
        broker.order(Order::Refuse(false));
        side.until_ready().await;
        broker.order(Order::Publish(1, STATUS[1], asks(1)));
        broker.until(&Did::Acknowledged(1)).await;
        assert_eq!(side.world.doc(&id(1)).await.attempts, 1);
        side.stop().await;
    }
}

#[tokio::test]
async fn acknowledgements_come_in_order_also_behind_a_result_that_waits_and_a_handler_that_panics()
{
    for version in BOTH {
        let mut broker = Broker::start(version).await;
        let side = Side::of(&broker).await;
        side.until_ready().await;
        side.faults.set(&id(0), Fault::Away(u32::MAX));
        let result = json!({ "nonce": nonce(0), "auth_result": "ok" }).to_string();
        broker.order(Order::Publish(1, STATUS[0], result.into_bytes()));
        side.faults.set(&id(1), Fault::Panic);
        broker.order(Order::Publish(2, STATUS[1], asks(1)));
        broker.order(Order::Publish(3, STATUS[2], asks(2)));
        // The last one is looked at although the first waits.
        side.world
            .until("the others are looked at", async |w| {
                w.doc(&id(2)).await.attempts == 1
                    && side.faults.met(&id(1)) == 1
                    && side.faults.met(&id(0)) > 1
            })
            .await;
        side.faults.mend(&id(0));
        let mut order = Vec::new();
        while order.len() < 3 {
            if let Did::Acknowledged(number) = broker.next().await {
                order.push(number);
            }
        }
        assert_eq!(order, [1, 2, 3]);
        side.stop().await;
    }
}

#[tokio::test]
async fn what_a_device_is_told_has_an_expiry_and_only_what_is_sealed_is_kept() {
    use keyturn_proto::device::DeviceError;

    let (device, minute) = (id(1), Duration::from_secs(60));
    for version in BOTH {
        let mut broker = Broker::start(version).await;
        let side = Side::of(&broker).await;
        side.until_ready().await;
        let error = DeviceError::Unavailable;
        let retry = outgoing::retry(&device, &nonce(1), error, 10, minute).unwrap();
        let ping = outgoing::ping(&device, &nonce(2), minute).unwrap();
        let clear = command(false, minute);
        // The broker keeps it for as long as the secret_id is good.
        let sealed = command(true, minute);
        for (message, kept, seconds) in [
            (retry, false, 60),
            (ping, false, 60),
            (clear, false, 60),
            (sealed, true, 3_600),
        ] {
            let text = String::from_utf8(message.payload.to_vec()).unwrap();
            side.outbox.send(message).await.unwrap();
            let (retain, expiry) = broker.said_with(&published(1, &text)).await;
            // 3.1.1 has no expiry, and so nothing may be kept.
            assert_eq!(retain, kept && version == Version::V5, "{text}");
            assert_eq!(expiry.is_some(), version == Version::V5, "{text}");
            // What it has waited is taken off.
            let (least, most) = (seconds - 30, seconds);
            assert!(
                expiry.is_none_or(|expiry| (least..=most).contains(&expiry)),
                "{expiry:?} of {text}"
            );
        }
        // Taking it back takes nothing back where nothing was kept.
        side.outbox.offer(outgoing::forget(&device)).unwrap();
        side.outbox.send(answer(1, "after")).await.unwrap();
        if version == Version::V5 {
            let (retain, _) = broker.said_with(&published(1, "")).await;
            assert!(retain);
        }
        let (retain, _) = broker.said_with(&published(1, "after")).await;
        assert!(!retain);
        side.stop().await;
    }
}

/// What a device is sent; sealed and to be kept, or in clear.
fn command(sealed: bool, expires_in: Duration) -> Outgoing {
    use crate::devices::issuer::{Credential, CredentialText, Issued};
    use keyturn_proto::device::Suite;
    use keyturn_store::devices::Sealing;

    let issued = Issued {
        role_id: "role-id".to_owned(),
        credential: Credential::SecretId(CredentialText::new(Zeroizing::new("s".to_owned()))),
        accessor: "accessor".parse().unwrap(),
        ttl: Duration::from_secs(3_600),
    };
    let options = DeviceOptions {
        sealing: sealed.then(|| Sealing {
            key: "QxDul9iMwfCIpVdsd6sM9cOseX89lROcbIS1QpxZZio"
                .parse()
                .unwrap(),
            suite: Suite::default(),
            retain: true,
        }),
        ..DeviceOptions::default()
    };
    outgoing::command(&id(1), &options, &nonce(3), &issued, expires_in).unwrap()
}

#[tokio::test]
async fn an_answer_whose_time_is_over_is_dropped_and_counted() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    // All of this runs on one thread.
    let _guard = metrics::set_default_local_recorder(&recorder);
    for version in BOTH {
        let mut broker = Broker::start(version).await;
        let side = Side::of(&broker).await;
        let late = Outgoing {
            expires_in: Duration::from_millis(900),
            ..answer(1, "late")
        };
        side.outbox.send(late).await.unwrap();
        // Taking back what the broker keeps is no answer: nobody counts it.
        let forget = Outgoing {
            retain: true,
            expires_in: Duration::ZERO,
            ..answer(1, "")
        };
        side.outbox.send(forget).await.unwrap();
        side.outbox.send(answer(1, "in time")).await.unwrap();
        loop {
            if let Did::Published { payload, .. } = broker.next().await {
                assert_eq!(payload, b"in time");
                break;
            }
        }
        side.stop().await;
    }
    let counted = format!("{} 2", names::DEVICE_ANSWERS_EXPIRED);
    let shown = recorder.handle().render();
    assert!(shown.lines().any(|line| line == counted), "{shown}");
}

#[tokio::test]
async fn a_relay_that_stops_acknowledges_nothing_that_it_has_not_stored() {
    let mut broker = Broker::start(Version::V5).await;
    let side = Side::of(&broker).await;
    side.until_ready().await;
    side.faults.set(&id(0), Fault::Away(u32::MAX));
    let result = json!({ "nonce": nonce(0), "auth_result": "ok" }).to_string();
    broker.order(Order::Publish(1, STATUS[0], result.clone().into_bytes()));
    broker.order(Order::Publish(2, STATUS[1], asks(1)));
    side.world
        .until("both are looked at", async |w| {
            side.faults.met(&id(0)) > 1 && w.doc(&id(1)).await.attempts == 1
        })
        .await;
    side.world.devices.give_way();
    side.stop().await;
    // The next one gets both; the request is a second delivery by now, or rather one of another store here.
    let next = Side::of(&broker).await;
    let mut order = Vec::new();
    while order.len() < 2 {
        match broker.next().await {
            Did::Acknowledged(number) => order.push(number),
            Did::Connected { clean } => {
                assert!(order.is_empty(), "{order:?} before the relay came back");
                assert!(!clean);
            }
            _ => {}
        }
    }
    assert_eq!(order, [1, 2]);
    next.stop().await;
}
