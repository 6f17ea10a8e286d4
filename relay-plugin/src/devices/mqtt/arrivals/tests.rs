//! How much may wait, and what becomes of what finds no room.
#![allow(clippy::unwrap_used)]

use keyturn_proto::device::MAX_STATUS;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::devices::tests::world::World;

fn arrivals(world: &World) -> (Arrivals, UnboundedReceiver<Waiting>) {
    let (queue, came) = mpsc::unbounded_channel();
    let arrivals = Arrivals {
        queue,
        room: Arc::default(),
        devices: Arc::clone(&world.devices),
    };
    (arrivals, came)
}

#[derive(Default)]
struct Count {
    unawaited: usize,
    looked_at: usize,
    numbers: Vec<u16>,
    bytes: usize,
}

fn count(mut came: UnboundedReceiver<Waiting>) -> Count {
    let mut count = Count::default();
    while let Ok(waiting) = came.try_recv() {
        let receipt = match waiting {
            Waiting::Message(message) => {
                count.looked_at += 1;
                count.bytes += message.weight();
                message.receipt
            }
            Waiting::Overrun(receipt) => receipt,
        };
        if receipt.is_awaited() {
            count.numbers.push(receipt.number);
        } else {
            count.unawaited += 1;
        }
    }
    count
}

#[tokio::test]
async fn a_flood_is_bounded_and_whatever_the_broker_waits_for_is_acknowledged_in_order() {
    let world = World::new();
    let (arrivals, came) = arrivals(&world);
    let text = br#"{"online":true}"#;
    // More than fits of what needs no acknowledgement leaves room for as much as a broker may send of what does.
    for _ in 0..WAITING {
        arrivals.hand_over(Arrived::made("iot/d1/status", text, false, 0));
    }
    // And a broker may send more than it should.
    let last = u16::try_from(WAITING).unwrap();
    assert!(usize::from(RECEIVE) <= WAITING / 2 && last > RECEIVE);
    for number in 1..=last {
        arrivals.hand_over(Arrived::made("iot/d2/status", text, true, number));
    }
    let count = count(came);
    assert_eq!((count.unawaited, count.looked_at), (WAITING / 2, WAITING));
    assert_eq!(count.numbers, (1..=last).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_flood_of_the_longest_messages_is_bounded_in_bytes_and_leaves_room_for_what_is_awaited() {
    let world = World::new();
    let (arrivals, came) = arrivals(&world);
    // As long as a packet may be, in both parts.
    let topic = format!("iot/{}/status", "x".repeat(30_000));
    let long = vec![b'x'; 30_000];
    for _ in 0..WAITING {
        arrivals.hand_over(Arrived::made(&topic, &long, false, 0));
    }
    for number in 1..=RECEIVE {
        arrivals.hand_over(Arrived::made(&topic, &long, true, number));
    }
    assert!(arrivals.room.bytes.load(Ordering::Acquire) <= BYTES);
    let few = count(came);
    assert_eq!(few.looked_at, few.unawaited + usize::from(RECEIVE));
    assert!(few.unawaited > 1_000, "{}", few.unawaited);
    assert!(few.bytes <= BYTES, "{}", few.bytes);
    let each = few.bytes / few.looked_at;
    assert!((MAX_STATUS..5 << 10).contains(&each), "{each} bytes each");

    // What is given back is free again, to the last byte.
    let room = Room::default();
    assert!(room.take(BYTES, true) && !room.take(1, true));
    room.give_back(BYTES);
    assert!(room.take(BYTES, true));
}

#[test]
fn messages_as_devices_send_them_are_bounded_by_their_number() {
    let topic = "iot/river-iot-0001/status";
    let signed = [b'x'; 350];
    let weight = Arrived::made(topic, &signed, true, 1).weight();
    assert!(weight * WAITING <= BYTES, "{weight} bytes each");
    // What the module says of an acknowledgement.
    assert!(size_of::<Waiting>() <= 128, "{}", size_of::<Waiting>());
}
