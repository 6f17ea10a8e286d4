//! Why a connection was lost, in stable words, and whether a packet was to blame that the broker would send again.

use rumqttc as four;

pub(super) fn five_error(error: &four::v5::ConnectionError) -> &'static str {
    use four::v5::{ConnectionError as Error, StateError, mqttbytes};
    match error {
        Error::Timeout(_) => "timeout",
        Error::Tls(_) => "tls",
        Error::Io(io)
        | Error::MqttState(
            StateError::Io(io) | StateError::Deserialization(mqttbytes::Error::Io(io)),
        ) => of_io(io),
        Error::ConnectionRefused(_) => "refused",
        Error::MqttState(StateError::ServerDisconnect { .. }) => "disconnected_by_broker",
        Error::MqttState(StateError::ConnFail { .. }) => "refused",
        Error::MqttState(StateError::ConnectionAborted) => "network",
        Error::MqttState(StateError::AwaitPingResp) => "no_ping_response",
        Error::RequestsDone => "closed",
        _ => "protocol",
    }
}

/// A broker that does not like our certificate says so in the first answer after the handshake (TLS 1.3).
fn of_io(error: &std::io::Error) -> &'static str {
    let inner = error.get_ref();
    if inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
        "tls"
    } else {
        "network"
    }
}

pub(super) fn four_error(error: &four::ConnectionError) -> &'static str {
    use four::{ConnectionError as Error, StateError};
    match error {
        Error::NetworkTimeout | Error::FlushTimeout => "timeout",
        Error::Tls(_) => "tls",
        Error::Io(io)
        | Error::MqttState(StateError::Io(io) | StateError::Deserialization(four::Error::Io(io))) => {
            of_io(io)
        }
        Error::ConnectionRefused(_) => "refused",
        Error::MqttState(StateError::ConnectionAborted) => "network",
        Error::MqttState(StateError::AwaitPingResp) => "no_ping_response",
        Error::RequestsDone => "closed",
        _ => "protocol",
    }
}

pub(super) fn five_poisoned(error: &four::v5::ConnectionError) -> bool {
    use four::v5::{ConnectionError as Error, StateError, mqttbytes};
    match error {
        Error::MqttState(StateError::IncomingPacketTooLarge { .. } | StateError::WrongPacket) => {
            true
        }
        Error::MqttState(StateError::Deserialization(why)) => {
            !matches!(why, mqttbytes::Error::Io(_))
        }
        _ => false,
    }
}

pub(super) fn four_poisoned(error: &four::ConnectionError) -> bool {
    use four::{ConnectionError as Error, StateError};
    match error {
        Error::MqttState(StateError::Deserialization(why)) => !matches!(why, four::Error::Io(_)),
        Error::MqttState(StateError::WrongPacket) => true,
        _ => false,
    }
}
