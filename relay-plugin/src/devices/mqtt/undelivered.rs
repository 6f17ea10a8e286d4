//! What a lost connection had not delivered: taken out of the library, in the order in which it was sent.
//!
//! Nothing of the connection stays behind in the library's state, which is made anew: a publish that waits for a free number, or the number reached, can hold up the next connection for good.

use std::time::{Duration, Instant};

use super::RESEND;
use super::options::IN_FLIGHT;
use super::outbox::Parcel;

/// What the broker has not acknowledged. `rumqttc` forgets it when the broker has no session of ours, and can lose some when it has; so it is taken out and sent anew, in the
/// order in which it was sent. What takes a command back is left out: by now the next command may be on its way.
pub(super) fn five(poll: &mut rumqttc::v5::EventLoop, number: u16) -> Vec<Parcel> {
    let number = poll
        .state
        .events
        .iter()
        .filter_map(five_number)
        .last()
        .unwrap_or(number);
    let mut fresh = rumqttc::v5::MqttState::new(IN_FLIGHT, true);
    fresh.events = std::mem::take(&mut poll.state.events);
    let waiting = std::mem::replace(&mut poll.state, fresh).collision;
    let pending = std::mem::take(&mut poll.pending);
    let publishes = pending.into_iter().filter_map(|request| match request {
        rumqttc::v5::Request::Publish(publish) => Some(publish),
        _ => None,
    });
    in_order(publishes, waiting, number, |publish| publish.pkid)
        .map(|publish| Parcel {
            topic: String::from_utf8_lossy(&publish.topic).into_owned(),
            payload: publish.payload,
            retain: publish.retain,
            expires_in: publish
                .properties
                .and_then(|properties| properties.message_expiry_interval)
                .map_or(Duration::MAX, |secs| Duration::from_secs(secs.into())),
            since: Instant::now(),
        })
        .filter(|parcel| !parcel.forgets())
        .collect()
}

/// See [`five`].
pub(super) fn four(poll: &mut rumqttc::EventLoop, number: u16) -> Vec<Parcel> {
    let number = poll
        .state
        .events
        .iter()
        .filter_map(four_number)
        .last()
        .unwrap_or(number);
    let mut fresh = rumqttc::MqttState::new(IN_FLIGHT, true);
    fresh.events = std::mem::take(&mut poll.state.events);
    let waiting = std::mem::replace(&mut poll.state, fresh).collision;
    let pending = std::mem::take(&mut poll.pending);
    let publishes = pending.into_iter().filter_map(|request| match request {
        rumqttc::Request::Publish(publish) => Some(publish),
        _ => None,
    });
    in_order(publishes, waiting, number, |publish| publish.pkid)
        .map(|publish| Parcel {
            topic: publish.topic,
            payload: publish.payload,
            retain: publish.retain,
            // 3.1.1 has no expiry to read back.
            expires_in: RESEND,
            since: Instant::now(),
        })
        .collect()
}

/// First what was sent, then what waited for a number that the broker had not given back, then what no number was given yet. The library lists what was sent by its number, and numbers
/// begin anew after the largest: those above the `latest` are the older ones.
fn in_order<P>(
    publishes: impl Iterator<Item = P>,
    waiting: Option<P>,
    latest: u16,
    number: impl Fn(&P) -> u16,
) -> impl Iterator<Item = P> {
    let (sent, unsent): (Vec<P>, Vec<P>) = publishes.partition(|publish| number(publish) != 0);
    let (older, newer): (Vec<P>, Vec<P>) = sent
        .into_iter()
        .partition(|publish| number(publish) > latest);
    older.into_iter().chain(newer).chain(waiting).chain(unsent)
}

/// The number of a publish that was sent.
pub(super) fn five_number(event: &rumqttc::v5::Event) -> Option<u16> {
    match event {
        rumqttc::v5::Event::Outgoing(rumqttc::Outgoing::Publish(number)) => Some(*number),
        _ => None,
    }
}

/// See [`five_number`].
pub(super) fn four_number(event: &rumqttc::Event) -> Option<u16> {
    match event {
        rumqttc::Event::Outgoing(rumqttc::Outgoing::Publish(number)) => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::Bytes;
    use rumqttc::v5::mqttbytes::QoS as QoS5;
    use rumqttc::v5::mqttbytes::v5 as packets5;
    use rumqttc::{QoS as QoS4, Request as Request4, v5::Request as Request5};

    use super::*;

    /// What is listed by number, number and payload; and what waits for the number of the oldest.
    const LISTED: [(u16, &str); 6] = [
        (1, "c"),
        (2, "d"),
        (255, "a"),
        (256, "b"),
        (0, "f"),
        (0, ""),
    ];
    const WAITS: (u16, &str) = (255, "e");

    fn in_turn(parcels: Vec<Parcel>) -> String {
        let payloads = parcels.into_iter().map(|parcel| parcel.payload.to_vec());
        String::from_utf8(payloads.collect::<Vec<_>>().concat()).unwrap()
    }

    #[test]
    fn everything_is_sent_again_in_its_order_and_nothing_is_left_for_the_next_connection() {
        let publish = |(number, payload): (u16, &'static str)| {
            let payload = Bytes::from_static(payload.as_bytes());
            let mut publish =
                packets5::Publish::new("iot/a/command", QoS5::AtLeastOnce, payload, None);
            publish.pkid = number;
            publish
        };
        let options = rumqttc::v5::MqttOptions::new("keyturn", "127.0.0.1", 1);
        let mut poll = rumqttc::v5::EventLoop::new(options, 1);
        let listed = LISTED.into_iter().map(publish).map(Request5::Publish);
        poll.pending.extend(listed);
        poll.state.collision = Some(publish(WAITS));
        // The last of them was sent, and nobody has looked at that yet.
        let sent = rumqttc::v5::Event::Outgoing(rumqttc::Outgoing::Publish(2));
        poll.state.events.push_back(sent);
        assert_eq!(in_turn(five(&mut poll, 1)), "abcdef");
        assert!(poll.state.collision.is_none() && poll.pending.is_empty());
        assert_eq!(poll.state.events.len(), 1);
    }

    #[test]
    fn the_same_over_the_older_version() {
        let publish = |(number, payload): (u16, &'static str)| {
            let payload = Bytes::from_static(payload.as_bytes());
            let mut publish =
                rumqttc::Publish::from_bytes("iot/a/command", QoS4::AtLeastOnce, payload);
            publish.pkid = number;
            publish
        };
        let options = rumqttc::MqttOptions::new("keyturn", "127.0.0.1", 1);
        let mut poll = rumqttc::EventLoop::new(options, 1);
        let listed = LISTED.into_iter().map(publish).map(Request4::Publish);
        poll.pending.extend(listed);
        poll.state.collision = Some(publish(WAITS));
        let sent = rumqttc::Event::Outgoing(rumqttc::Outgoing::Publish(2));
        poll.state.events.push_back(sent);
        assert_eq!(in_turn(four(&mut poll, 1)), "abcdef");
        assert!(poll.state.collision.is_none() && poll.pending.is_empty());
        assert_eq!(poll.state.events.len(), 1);
    }

    #[test]
    fn what_takes_a_command_back_is_not_sent_again() {
        let options = rumqttc::v5::MqttOptions::new("keyturn", "127.0.0.1", 1);
        let mut poll = rumqttc::v5::EventLoop::new(options, 1);
        for payload in ["old", "", "new"] {
            let payload = Bytes::from_static(payload.as_bytes());
            let mut publish =
                packets5::Publish::new("iot/a/command", QoS5::AtLeastOnce, payload, None);
            publish.retain = true;
            poll.pending.push_back(Request5::Publish(publish));
        }
        let again = five(&mut poll, 0);
        assert!(again.iter().all(|parcel| parcel.retain));
        assert_eq!(in_turn(again), "oldnew");
    }
}
