//! One device that shouts, and the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keyturn_store::devices::DeviceOptions;

use super::world::{World, id, nonce, request};
use crate::devices::flow::Handled;
use crate::devices::intake::{Carriage, Incoming};

/// Requests of the one device.
const FLOOD: usize = 100_000;
/// Of the others, who ask once each while it shouts.
const OTHERS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_asks_a_hundred_thousand_times_is_mostly_not_heard_and_starves_nobody() {
    let mut w = World::running();
    for n in 0..=OTHERS {
        w.allow(&id(n), DeviceOptions::default()).await;
    }
    let shouting = id(0);
    let shouts = Arc::new(AtomicBool::new(false));
    let flood = tokio::spawn({
        let (devices, shouting, shouts) = (
            Arc::clone(&w.devices),
            shouting.clone(),
            Arc::clone(&shouts),
        );
        async move {
            let topic = format!("iot/{shouting}/status");
            let mut heard = 0;
            for n in 0..FLOOD {
                let payload = request(&shouting, &nonce(n)).to_string();
                let incoming = Incoming {
                    carriage: Carriage::Mqtt,
                    topic: &topic,
                    payload: payload.as_bytes(),
                    retained: false,
                    arrived: std::time::Instant::now(),
                };
                heard += usize::from(devices.handle(incoming).await == Handled::Asked);
                shouts.store(true, Ordering::SeqCst);
                // Where a broker's other messages would get their turn.
                tokio::task::yield_now().await;
            }
            heard
        }
    });
    w.until("it shouts", async |_| shouts.load(Ordering::SeqCst))
        .await;
    for n in 1..=OTHERS {
        let asked = w.publish(&id(n), &request(&id(n), &nonce(n))).await;
        assert_eq!(asked, Handled::Asked);
    }
    // What others are given does not wait for the end of the flood, and the flood's own answers are few.
    let mut told: HashMap<String, usize> = HashMap::new();
    let mut given = 0;
    while given < OTHERS {
        let message = w.next().await;
        let device = message.device.to_string();
        *told.entry(device.clone()).or_default() += 1;
        given += usize::from(device != shouting.as_str());
    }
    let heard = flood.await.unwrap();
    while !w.is_silent() {
        *told.entry(shouting.to_string()).or_default() += 1;
    }
    for n in 1..=OTHERS {
        assert_eq!(told[id(n).as_str()], 1, "{}", id(n));
        assert_eq!(w.doc(&id(n)).await.attempts, 1);
    }
    assert!(heard <= 12, "{heard} of its requests were taken in an hour");
    // At most the answers to what was taken, and 20 refusals a minute of what was looked into and as many of what was not; the flood lasts less than five.
    let answers = told.get(shouting.as_str()).copied().unwrap_or_default();
    assert!(answers <= 12 + 2 * 20 * 6, "it was told {answers} times");
    let trail = w.events().await;
    let refused = trail
        .iter()
        .filter(|record| record.event == "device.refused")
        .count();
    assert!(
        refused <= 5 * 3,
        "{refused} records of one device's refusals"
    );
    w.stop().await;
    let trail = w.events().await;
    let counted = trail
        .iter()
        .filter(|record| record.event == "device.refused_repeatedly")
        .count();
    assert!(counted >= 1, "nobody counted what was not written down");
}
