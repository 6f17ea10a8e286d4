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
mod tests {
    use super::in_order;

    #[test]
    fn what_was_sent_first_is_sent_first_again_although_numbers_begin_anew() {
        let listed = [1, 2, 3, 254, 255, 256, 0, 0];
        let listed = listed.into_iter().enumerate();
        let ordered = in_order(listed, Some((9, 254)), 3, |(_, number)| *number);
        let places: Vec<usize> = ordered.map(|(place, _)| place).collect();
        assert_eq!(places, [3, 4, 5, 0, 1, 2, 9, 6, 7]);
    }
}
