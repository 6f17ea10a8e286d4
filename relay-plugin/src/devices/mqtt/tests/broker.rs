//! A broker of a few lines, of either version, that can be told to do what no good one does. It knows one client, whose session it keeps, and sends again what that
//! has not acknowledged.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::devices::mqtt::{Options, Version};

/// Longer than anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the client did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Did {
    Connected {
        clean: bool,
    },
    Subscribed,
    /// What the next message that it publishes says to the broker: whether to keep it, and (MQTT 5) for how many seconds.
    Said {
        retain: bool,
        expiry: Option<u32>,
    },
    Published {
        topic: String,
        payload: Vec<u8>,
    },
    Acknowledged(u16),
    Left,
}

/// What the broker is told.
pub(super) enum Order {
    /// Publish this to the client, at QoS 1, under this number.
    Publish(u16, &'static str, Vec<u8>),
    /// Refuse subscriptions, or take them.
    Refuse(bool),
    /// Acknowledge what the client publishes, or keep silent about it.
    Acknowledge(bool),
}

pub(super) struct Broker {
    port: u16,
    version: Version,
    orders: mpsc::UnboundedSender<Order>,
    did: mpsc::UnboundedReceiver<Did>,
}

struct Session {
    version: Version,
    did: mpsc::UnboundedSender<Did>,
    orders: mpsc::UnboundedReceiver<Order>,
    refuses: bool,
    acknowledges: bool,
    /// Not acknowledged by the client.
    unacknowledged: VecDeque<(u16, &'static str, Vec<u8>)>,
    known: bool,
}

impl Broker {
    pub(super) async fn start(version: Version) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (orders, take_orders) = mpsc::unbounded_channel();
        let (tell, did) = mpsc::unbounded_channel();
        let mut session = Session {
            version,
            did: tell,
            orders: take_orders,
            refuses: false,
            acknowledges: true,
            unacknowledged: VecDeque::new(),
            known: false,
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // However it ends.
                let _ = session.serve(stream).await;
                if session.did.send(Did::Left).is_err() {
                    return;
                }
            }
        });
        Self {
            port,
            version,
            orders,
            did,
        }
    }

    pub(super) fn order(&self, order: Order) {
        self.orders.send(order).ok().unwrap();
    }

    /// The next thing the client does.
    pub(super) async fn next(&mut self) -> Did {
        tokio::time::timeout(DEADLINE, self.did.recv())
            .await
            .expect("the client does nothing")
            .unwrap()
    }

    /// What it said to us with this message, which it publishes next, whatever else it does before.
    pub(super) async fn said_with(&mut self, wanted: &Did) -> (bool, Option<u32>) {
        loop {
            if let Did::Said { retain, expiry } = self.next().await {
                assert_eq!(self.next().await, *wanted);
                return (retain, expiry);
            }
        }
    }

    /// Waits until it does this, whatever else it does before.
    pub(super) async fn until(&mut self, wanted: &Did) {
        while self.next().await != *wanted {}
    }

    pub(super) fn options(&self) -> Options {
        Options {
            host: "127.0.0.1".to_owned(),
            port: self.port,
            tls: None,
            version: self.version,
            client_id: "keyturn-test".to_owned(),
            login: None,
            share: None,
            subscribe: true,
            session_expiry: Duration::from_secs(3600),
            keep_alive: Duration::from_secs(60),
            reconnect: (Duration::from_millis(10), Duration::from_millis(100)),
        }
    }
}

impl Session {
    async fn serve(&mut self, stream: TcpStream) -> std::io::Result<()> {
        let (mut read, mut write) = stream.into_split();
        let (packets, mut packet) = mpsc::unbounded_channel();
        // A packet is read to its end whatever is ordered meanwhile.
        tokio::spawn(async move {
            while let Ok(whole) = read_packet(&mut read).await {
                if packets.send(whole).is_err() {
                    return;
                }
            }
        });
        loop {
            tokio::select! {
                came = packet.recv() => match came {
                    // It says goodbye.
                    Some((0xe0, _)) => return Ok(()),
                    Some((kind, body)) => self.answer(&mut write, kind, &body).await?,
                    None => return Ok(()),
                },
                Some(order) = self.orders.recv() => match order {
                    Order::Refuse(refuses) => self.refuses = refuses,
                    Order::Acknowledge(acknowledges) => self.acknowledges = acknowledges,
                    Order::Publish(number, topic, payload) => {
                        self.unacknowledged.push_back((number, topic, payload));
                        let last = self.unacknowledged.len() - 1;
                        self.publish(&mut write, last).await?;
                    }
                },
            }
        }
    }

    async fn answer(
        &mut self,
        to: &mut OwnedWriteHalf,
        kind: u8,
        body: &[u8],
    ) -> std::io::Result<()> {
        let five = self.version == Version::V5;
        match kind >> 4 {
            1 => {
                // Behind the name and level of the protocol.
                let clean = body[7] & 2 != 0;
                if clean {
                    self.unacknowledged.clear();
                }
                let present = u8::from(self.known && !clean);
                self.known = true;
                let _ = self.did.send(Did::Connected { clean });
                let taken: &[u8] = if five {
                    &[0x20, 3, present, 0, 0]
                } else {
                    &[0x20, 2, present, 0]
                };
                to.write_all(taken).await?;
                for n in 0..self.unacknowledged.len() {
                    self.publish(to, n).await?;
                }
            }
            8 => {
                let code = if self.refuses {
                    if five { 0x87 } else { 0x80 }
                } else {
                    1
                };
                let _ = self.did.send(Did::Subscribed);
                let taken: &[u8] = if five {
                    &[0x90, 4, body[0], body[1], 0, code]
                } else {
                    &[0x90, 3, body[0], body[1], code]
                };
                to.write_all(taken).await?;
            }
            3 => {
                let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
                let (topic, rest) = body[2..].split_at(length);
                let (number, mut payload) = rest.split_at(2);
                let mut expiry = None;
                if five {
                    // A message of ours has less than 128 bytes of properties.
                    let properties;
                    (properties, payload) = payload[1..].split_at(usize::from(payload[0]));
                    expiry = expiry_of(properties);
                }
                let retain = kind & 1 != 0;
                let _ = self.did.send(Did::Said { retain, expiry });
                let _ = self.did.send(Did::Published {
                    topic: String::from_utf8(topic.to_vec()).unwrap(),
                    payload: payload.to_vec(),
                });
                if self.acknowledges {
                    to.write_all(&[0x40, 2, number[0], number[1]]).await?;
                }
            }
            4 => {
                let number = u16::from_be_bytes([body[0], body[1]]);
                self.unacknowledged
                    .retain(|(waiting, ..)| *waiting != number);
                let _ = self.did.send(Did::Acknowledged(number));
            }
            12 => to.write_all(&[0xd0, 0]).await?,
            _ => {}
        }
        Ok(())
    }

    async fn publish(&self, to: &mut OwnedWriteHalf, place: usize) -> std::io::Result<()> {
        let (number, topic, payload) = &self.unacknowledged[place];
        let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
        body.extend_from_slice(topic.as_bytes());
        body.extend_from_slice(&number.to_be_bytes());
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend_from_slice(payload);
        let length = u16::try_from(body.len()).unwrap();
        let [low, high] = [(length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
        to.write_all(&[0x32, low, high]).await?;
        to.write_all(&body).await
    }
}

/// Of the two properties that we send, in whatever order.
fn expiry_of(mut properties: &[u8]) -> Option<u32> {
    let mut expiry = None;
    while let Some((name, rest)) = properties.split_first() {
        properties = match name {
            // Whether the payload is text.
            0x01 => &rest[1..],
            0x02 => {
                let (seconds, rest) = rest.split_first_chunk().unwrap();
                expiry = Some(u32::from_be_bytes(*seconds));
                rest
            }
            other => panic!("a property {other:#x}"),
        };
    }
    expiry
}

async fn read_packet(from: &mut OwnedReadHalf) -> std::io::Result<(u8, Vec<u8>)> {
    let kind = from.read_u8().await?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = from.read_u8().await?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    Ok((kind, body))
}
