//! How the broker is reached.

use std::time::Duration;

use rumqttc::Transport;
use zeroize::Zeroizing;

/// Largest packet that is read. Larger than any message that is good for anything, so that one that is a little too large is refused by name.
pub const MAX_PACKET: u32 = 65_536;
/// Messages that the broker may have sent without an acknowledgement.
pub(super) const RECEIVE: u16 = 1_024;
/// Our own messages under way without the broker's acknowledgement.
pub(super) const IN_FLIGHT: u16 = 256;
/// Messages between our own queue and the protocol.
pub(super) const CHANNEL: usize = 64;

/// Which protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 5.
    V5,
    /// MQTT 3.1.1: no message expiry, no limit that the broker keeps.
    V311,
}

/// Certificates, PEM.
pub struct Tls {
    /// Who may sign the broker's certificate.
    pub ca: Vec<u8>,
    /// Our own certificate and its key.
    pub client: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

/// See the configuration's `[mqtt]`. Has no `Debug`: it holds the password.
pub struct Options {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `None` for plain TCP.
    pub tls: Option<Tls>,
    /// Which protocol.
    pub version: Version,
    /// Names our session at the broker: the same after a restart, and no other relay's.
    pub client_id: String,
    /// User name and password.
    pub login: Option<(String, Zeroizing<String>)>,
    /// The shared subscription's group; `None` for a subscription of our own.
    pub share: Option<String>,
    /// False when the broker's webhook brings the messages.
    pub subscribe: bool,
    /// How long the broker keeps our session while we are away.
    pub session_expiry: Duration,
    /// Pings.
    pub keep_alive: Duration,
    /// First and longest pause before connecting again.
    pub reconnect: (Duration, Duration),
}

impl Options {
    /// The filter to subscribe to.
    #[must_use]
    pub fn filter(&self) -> String {
        let filter = keyturn_proto::device::topic::STATUS_FILTER;
        match &self.share {
            Some(group) => format!("$share/{group}/{filter}"),
            None => filter.to_owned(),
        }
    }

    fn transport(&self) -> Transport {
        match &self.tls {
            None => Transport::Tcp,
            Some(Tls { ca, client }) => {
                let client = client
                    .as_ref()
                    .map(|(certificate, key)| (certificate.clone(), key.to_vec()));
                Transport::tls(ca.clone(), client, None)
            }
        }
    }

    pub(super) fn v5(&self) -> rumqttc::v5::MqttOptions {
        let mut options =
            rumqttc::v5::MqttOptions::new(self.client_id.clone(), self.host.clone(), self.port);
        let expiry = u32::try_from(self.session_expiry.as_secs()).unwrap_or(u32::MAX);
        options
            .set_transport(self.transport())
            .set_clean_start(false)
            .set_session_expiry_interval(Some(expiry))
            .set_max_packet_size(Some(MAX_PACKET))
            .set_receive_maximum(Some(RECEIVE))
            .set_outgoing_inflight_upper_limit(IN_FLIGHT)
            .set_keep_alive(self.keep_alive)
            .set_manual_acks(true);
        let mut network = options.network_options();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        if let Some((name, password)) = &self.login {
            options.set_credentials(name.clone(), password.as_str());
        }
        options
    }

    pub(super) fn v311(&self) -> rumqttc::MqttOptions {
        let mut options =
            rumqttc::MqttOptions::new(self.client_id.clone(), self.host.clone(), self.port);
        let packet = usize::try_from(MAX_PACKET).unwrap_or(usize::MAX);
        options
            .set_transport(self.transport())
            .set_clean_session(false)
            .set_max_packet_size(packet, packet)
            .set_inflight(IN_FLIGHT)
            .set_keep_alive(self.keep_alive)
            .set_manual_acks(true);
        if let Some((name, password)) = &self.login {
            options.set_credentials(name.clone(), password.as_str());
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_that_share_a_group_share_its_subscription() {
        let mut options = Options {
            host: "localhost".to_owned(),
            port: 1,
            tls: None,
            version: Version::V5,
            client_id: "keyturn-test".to_owned(),
            login: None,
            share: None,
            subscribe: true,
            session_expiry: Duration::ZERO,
            keep_alive: Duration::from_secs(5),
            reconnect: (Duration::ZERO, Duration::ZERO),
        };
        assert_eq!(options.filter(), "iot/+/status");
        options.share = Some("relays".to_owned());
        assert_eq!(options.filter(), "$share/relays/iot/+/status");
    }
}
