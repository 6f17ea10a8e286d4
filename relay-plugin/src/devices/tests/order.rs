//! One device's messages, whichever way they come and however fast, count in the order in which they came.

use std::sync::Arc;
use std::time::Instant;

use futures::future::join;
use keyturn_store::devices::DeviceOptions;
use serde_json::Value;

use super::faulty::{Faults, Faulty};
use super::world::{World, id, nonce, ok, request, settings};
use crate::devices::flow::{Devices, Handled};
use crate::devices::intake::{Carriage, Incoming};

fn faulty() -> (World, Faults) {
    let faults = Faults::default();
    let world = World::over(settings(), |store, _| {
        Arc::new(Faulty {
            store,
            faults: faults.clone(),
        })
    });
    (world, faults)
}

async fn tell(devices: &Arc<Devices>, carriage: Carriage, device: usize, said: &Value) -> Handled {
    let payload = said.to_string();
    let incoming = Incoming {
        carriage,
        topic: &format!("iot/{}/status", id(device)),
        payload: payload.as_bytes(),
        retained: false,
        arrived: Instant::now(),
    };
    devices.handle(incoming).await
}

#[tokio::test]
async fn a_result_and_the_request_after_it_do_not_swap_and_keep_nobody_else_waiting() {
    let (mut w, faults) = faulty();
    w.start();
    for n in 1..=2 {
        w.allow(&id(n), DeviceOptions::default()).await;
    }
    assert_eq!(
        w.publish(&id(1), &request(&id(1), &nonce(1))).await,
        Handled::Asked
    );
    let command = w.answer(&id(1)).await;
    let open = faults.gate(&id(1));
    let (result, next) = (ok(&command), request(&id(1), &nonce(2)));
    // One over our subscription, the other by the broker's webhook.
    let pair = join(
        tell(&w.devices, Carriage::Mqtt, 1, &result),
        tell(&w.devices, Carriage::Webhook, 1, &next),
    );
    let others = async {
        let asked = request(&id(2), &nonce(3));
        assert_eq!(
            tell(&w.devices, Carriage::Mqtt, 2, &asked).await,
            Handled::Asked
        );
        // Only the first of the pair has come as far as the store.
        assert_eq!(faults.met(&id(1)), 1);
        faults.mend(&id(1));
        open.send_replace(true);
    };
    let (told, ()) = join(pair, others).await;
    assert_eq!(told, (Handled::Reported, Handled::Asked));
    w.stop().await;
    let trail = w.events().await;
    let said: Vec<&str> = trail
        .iter()
        .filter(|record| {
            let device = record.device.as_ref();
            device.is_some_and(|device| device.device_id == id(1))
        })
        .map(|record| record.event.as_str())
        .filter(|event| *event != "device.issued")
        .collect();
    assert_eq!(
        said,
        [
            "device.allowed",
            "device.asked",
            "device.confirmed",
            "device.asked"
        ]
    );
}

#[tokio::test]
async fn a_handler_that_panics_or_is_given_up_does_not_hold_up_its_device() {
    let (w, faults) = faulty();
    w.allow(&id(1), DeviceOptions::default()).await;
    faults.set(&id(1), super::faulty::Fault::Panic);
    let devices = Arc::clone(&w.devices);
    let panics = tokio::spawn(async move {
        let asked = request(&id(1), &nonce(1));
        tell(&devices, Carriage::Mqtt, 1, &asked).await
    });
    assert!(panics.await.unwrap_err().is_panic());
    // A broker that hangs up while its call is looked at.
    let open = faults.gate(&id(1));
    let devices = Arc::clone(&w.devices);
    let given_up = tokio::spawn(async move {
        let asked = request(&id(1), &nonce(2));
        tell(&devices, Carriage::Webhook, 1, &asked).await
    });
    w.until("it is looked at", async |_| faults.met(&id(1)) == 2)
        .await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    faults.mend(&id(1));
    drop(open);
    let asked = w.publish(&id(1), &request(&id(1), &nonce(3))).await;
    assert_eq!(asked, Handled::Asked);
}
